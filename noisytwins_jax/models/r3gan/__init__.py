"""R3GAN (Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", NeurIPS 2024).

Pure functions of a global batch, through Flax: ``module.apply(variables, ...)``. The only collection is ``params``:
float32; kernels are HWIO (inputs of a group, where there are groups), matrices ``[in, out]``, class embeddings
``[classes, features]``. There is no normalisation, no per-pixel noise, no mapping network, and no operation mixes images.
"""

from noisytwins_jax.models.r3gan.architectures import check_stages, default_cardinality, default_widths
from noisytwins_jax.models.r3gan.discriminator import Discriminator
from noisytwins_jax.models.r3gan.generator import Generator

__all__ = ["Discriminator", "Generator", "check_stages", "default_cardinality", "default_widths"]
