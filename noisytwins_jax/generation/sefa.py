"""SeFa: the directions in W that change the image most, from the weights only, without training or samples.

Shen and Zhou, "Closed-Form Factorization of Latent Semantics in GANs", CVPR 2021.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from noisytwins_jax.utils.errors import UserError


def directions(
    variables: dict[str, Any], layers: Sequence[int] | None = None, count: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the directions in W along which the styles of some layers change most.

    A step from w to w + d changes the concatenated styles of the layers by ``A d``, where A are the weights of their
    affine maps; the directions are the eigenvectors of ``AᵀA`` with the largest eigenvalues.

    Args:
      variables: a StyleGAN2 generator's collections, as `TrainedGenerator.variables`.
      layers: indices of modulated convolutions, from 0 at 4 px; all by default. Convolution i takes w number i of
        `TrainedGenerator.synthesize` (UTLO: one more above the low resolution). Image layers do not count.
      count: number of directions, at most w_dim.

    Returns:
      Directions float64 ``[count, w_dim]``, orthonormal, the strongest first, each with the sign that makes its largest
      coordinate positive; and their strengths float64 ``[count]``: the change ``|A d|`` of the styles by a step of length
      1.

    Raises:
      UserError: these are no variables of a StyleGAN2 generator, or a layer or the count is out of range.
    """
    weights = style_weights(variables)
    layers = list(range(len(weights)) if layers is None else layers)
    if not layers:
        raise UserError(f"There are no layers; give some from 0 to {len(weights) - 1}, or None for all.")
    if unknown := [i for i in layers if not 0 <= i < len(weights)]:
        raise UserError(f"There is no modulated convolution {unknown[0]}; they are 0 to {len(weights) - 1}.")
    affine = np.concatenate([weights[i] for i in layers])
    if not 1 <= count <= affine.shape[1]:
        raise UserError(
            f"{count} directions cannot be given; W has {affine.shape[1]} dimensions, ask for 1 to that many."
        )
    values, vectors = np.linalg.eigh(affine.T @ affine)  # ascending
    strongest = vectors[:, ::-1][:, :count].T
    largest = np.take_along_axis(strongest, np.abs(strongest).argmax(axis=1)[:, None], axis=1)
    return strongest * np.sign(largest), np.sqrt(np.maximum(values[::-1][:count], 0.0))


def style_weights(variables: dict[str, Any]) -> list[np.ndarray]:
    """Return the matrix from w to the style of each modulated convolution, from 4 px up: float64 ``[channels, w_dim]``.

    Raises:
      UserError: these are no variables of a StyleGAN2 generator.
    """
    synthesis = variables.get("params", {}).get("synthesis")
    if synthesis is None:
        raise UserError("SeFa reads the styles of a StyleGAN2 generator, and these are variables of another network.")
    blocks = sorted((name for name in synthesis if re.fullmatch(r"b\d+", name)), key=lambda name: int(name[1:]))
    stored = [
        np.asarray(synthesis[block][conv]["affine"]["weight"], np.float64)
        for block in blocks
        for conv in ("conv0", "conv1")
        if conv in synthesis[block]
    ]
    # Stored as [w_dim, channels], before the run-time gain.
    return [weight.T / math.sqrt(len(weight)) for weight in stored]
