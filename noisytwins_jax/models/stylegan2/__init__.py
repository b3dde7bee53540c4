"""Conditional StyleGAN2 generator and discriminator (Karras et al., CVPR 2020; conditioning of StyleGAN2-ADA).

Pure functions of a global batch, through Flax: ``module.apply(variables, ...)``. Collections: ``params`` (trained) and
``buffers`` (`w_avg`, fixed noise images). Channels at resolution r: ``min(channel_base / r, channel_max)``.

Beside the conditioning of StyleGAN2-ADA the networks have that of three methods:

* Transitional-cGAN (Shahbazi et al., ICLR 2022): `conditioning` of the generator, `heads` ``"transitional"``.
* D2D-CE (ReACGAN; Kang et al., NeurIPS 2021) and 2C (ContraGAN; Kang and Park, NeurIPS 2020): `heads` ``"embedding"``.
* UTLO (Khorram et al., "Taming the Tail in Class-Conditional GANs: Knowledge Sharing via Unconditional Training at
  Lower Resolutions", CVPR 2024): `low_resolution` of both. Layers up to that resolution are unconditional, and
  their image has its own logit.
"""

from noisytwins_jax.models.stylegan2.discriminator import Discriminator
from noisytwins_jax.models.stylegan2.generator import Generator
from noisytwins_jax.models.stylegan2.mapping import MappingNetwork, truncate
from noisytwins_jax.models.stylegan2.resolutions import shrink

__all__ = ["Discriminator", "Generator", "MappingNetwork", "shrink", "truncate"]
