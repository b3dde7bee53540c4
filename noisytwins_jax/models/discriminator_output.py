"""The output of a discriminator: one type for every family of networks and every kind of conditioning."""

from typing import NamedTuple

import jax

Array = jax.Array


class DiscriminatorOutput(NamedTuple):
    """Outputs of a discriminator for N images. Heads that a network does not have are ``None``."""

    logits: Array  # [N], positive for real: the adversarial loss, R1 and ADA use these
    conditional_logits: Array | None = None  # [N], beside unconditional `logits` (Transitional-cGAN)
    low_logits: Array | None = None  # [N], of the images' low-resolution versions, unconditional (UTLO)
    embedding: Array | None = None  # [N, E] of unit length (D2D-CE, 2C)
    proxy: Array | None = None  # [N, E] of unit length: the class vector of each image's label
