"""BigGAN and BigGAN-deep (Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019).

Pure functions of a global batch, through Flax: ``module.apply(variables, ...)``. Collections:

* ``params``: trained, float32. Kernels are HWIO, matrices ``[in, out]``, class embeddings ``[classes, features]``.
* ``spectral``: beside every spectrally normalised ``weight`` the vector ``u`` of its power iteration.
* ``batch_stats``: the ``mean`` and ``var`` (biased) that batch normalisation of the generator uses outside training.

The last two are updated by calls with ``update_stats=True``, which need ``mutable=["spectral", "batch_stats"]``.
"""

from noisytwins_jax.models.biggan.architectures import default_z_dim
from noisytwins_jax.models.biggan.discriminator import Discriminator
from noisytwins_jax.models.biggan.generator import Generator

__all__ = ["Discriminator", "Generator", "default_z_dim"]
