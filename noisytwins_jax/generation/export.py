"""Export of a sampler to a file that any JAX program can call without this package, by ``jax.export``.

    import jax
    import jax.export
    import numpy as np

    sampler = jax.export.deserialize(open("sampler.jax", "rb").read())
    images = jax.jit(sampler.call)(np.int32([3, 7]), np.int32([0, 1]), np.uint32(0), np.float32(0.7))

The weights are in the file. The arguments are class ids and numbers of samples, int32 ``[n]`` for any n; the seed, uint32;
and for StyleGAN2 ψ, float32 (1 for none). A BigGAN has the truncation it was exported with, as its BatchNorm statistics depend on it.
Images are uint8 ``[n, H, W, C]``. The images of ``TrainedGenerator.sample`` have the numbers ``class · 2²⁰ + 0, 1, …``.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp

from noisytwins_jax.generation.sample_programs import sample_program
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.models.fir import resolve_up_impl
from noisytwins_jax.models.model import Model
from noisytwins_jax.utils.errors import UserError, did_you_mean
from noisytwins_jax.utils.files import replacing

PLATFORMS = ("cpu", "cuda", "tpu")
Array = jax.Array


def export_sampler(
    trained: TrainedGenerator, truncation: str | None = None, platforms: Sequence[str] = PLATFORMS
) -> jax.export.Exported:
    """Export the sampler of a generator as a function; see the module.

    Args:
      trained: the generator.
      truncation: for a BigGAN, a kind and a strength as ``"threshold:0.5"``; StyleGAN2's ψ is an argument of the result.
      platforms: platforms it can run on, of `PLATFORMS`.

    Raises:
      UserError: the truncation or a platform is not supported, or images depend on training images (IC-GAN).
    """
    for name in platforms:
        if name not in PLATFORMS:
            raise UserError(f"There is no platform {name!r}: {did_you_mean(name, PLATFORMS)}")
    if trained.instances is not None:
        raise UserError(
            "An IC-GAN samples with features of its training images, which are not exported; sample it here."
        )
    in_w = trained.config.has_mapping_network
    if in_w and truncation:
        raise UserError("Truncation ψ is an argument of an exported StyleGAN2 sampler; leave it out here.")
    cut = trained.truncation(None, truncation)
    kind = "psi" if in_w else cut and cut.kind
    variables = trained.variables_with_statistics(cut)
    fixed = None if cut is None else jnp.float32(cut.strength)
    on_cpus, elsewhere = (sample_program(_model_on(trained, name), trained.config.z, kind) for name in ("cpu", "tpu"))

    def sample(*arguments: Array | None) -> Array:
        if on_cpus is elsewhere:
            return on_cpus(variables, *arguments)[0]
        return jax.lax.platform_dependent(variables, *arguments, cpu=on_cpus, default=elsewhere)[0]

    def with_psi(labels: Array, indices: Array, seed: Array, psi: Array) -> Array:
        return sample(psi, seed, labels, indices)

    def without_psi(labels: Array, indices: Array, seed: Array) -> Array:
        return sample(fixed, seed, labels, indices)

    (n,) = jax.export.symbolic_shape("n")
    integers, seed = jax.ShapeDtypeStruct((n,), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)
    arguments = (integers, integers, seed)
    if in_w:
        arguments += (jax.ShapeDtypeStruct((), jnp.float32),)
    return jax.export.export(jax.jit(with_psi if in_w else without_psi), platforms=tuple(platforms))(*arguments)


def _model_on(trained: TrainedGenerator, platform: str) -> Model:
    """Return the networks with the resampling convolutions that are fastest on a platform, unless a form is configured."""
    config = dataclasses.replace(trained.config, up_impl=resolve_up_impl(trained.config.up_impl, platform))
    return dataclasses.replace(trained, config=config).model


def save_sampler(
    trained: TrainedGenerator, path: str | Path, truncation: str | None = None, platforms: Sequence[str] = PLATFORMS
) -> Path:
    """Write the result of `export_sampler` to a file and return its path."""
    content = export_sampler(trained, truncation, platforms).serialize()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path
