"""Export of a trained generator as an ONNX file, and its check in onnxruntime.

Inputs: ``z`` float32 ``[batch, z_dim]``, ``classes`` int64 ``[batch]`` and, for StyleGAN2, ``psi`` float32 ``[]``, the truncation
in W (1 for none). A BigGAN is truncated in z, which the caller draws, and has the batch statistics of the truncation that it
was exported with. Output: ``images`` float32 ``[batch, C, H, W]`` in [-1, 1], the order of axes that programs around ONNX
expect. Noise is that stored in the network, or none.
"""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.utils.errors import UserError, did_you_mean
from noisytwins_jax.utils.files import replacing
from noisytwins_jax.utils.version import __version__

TOLERANCE = 1e-4  # largest difference to JAX, of images in [-1, 1]
NOISE = ("const", "none")
_INSTALL = "python -m pip install onnx onnxruntime"
_BATCHES = (1, 3)  # of the check
Array = jax.Array


def check_installed() -> None:
    """Check that files can be written.

    Raises:
      UserError: the package onnx is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise UserError(f"ONNX files are written by the package onnx, which is not installed: {_INSTALL}")


def save_onnx(
    trained: TrainedGenerator, path: str | Path, truncation: str | None = None, noise: str | None = None
) -> float | None:
    """Write a generator as an ONNX file, unless onnxruntime draws other images with it than JAX.

    Args:
      trained: the generator.
      path: of the file; its folder is created if missing.
      truncation: for a BigGAN, a kind and a strength as ``"threshold:0.5"``, for its batch statistics.
      noise: StyleGAN2's noise of each pixel, of `NOISE`; by default the stored one, unless it was trained without.

    Returns:
      The largest difference between images of onnxruntime and of JAX; None if onnxruntime is not installed.

    Raises:
      UserError: onnx is not installed, the options do not fit the generator, or images differ by more than `TOLERANCE`.
    """
    check_installed()
    import onnx
    from onnx import helper

    from noisytwins_jax.interop.onnx.graph import OPSET, to_graph

    if trained.instances is not None:
        raise UserError(
            "An IC-GAN samples with features of its training images, which are not exported; sample it here."
        )
    trained, properties = _prepare(trained, truncation, noise)
    draw, inputs = _draw(trained), _inputs(trained)
    (batch,) = jax.export.symbolic_shape("batch")
    arguments = [
        jax.ShapeDtypeStruct((batch, trained.model.z_dim), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.float32),
    ][: len(inputs)]
    try:
        with jax.default_matmul_precision("highest"):
            graph = to_graph(draw, arguments, inputs, "images", trained.config.name)
    except NotImplementedError as error:
        raise UserError(f"This generator has no form in ONNX: {error} Export it for JAX: convert to-jax.") from None
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="noisytwins_jax"
    )
    model.producer_version = __version__
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    difference = _largest_difference(content, trained, draw, len(inputs))
    if difference is not None and not difference <= TOLERANCE:
        raise UserError(
            f"Images of the ONNX file differ by {difference:.1e} from JAX's, more than {TOLERANCE:g}, so it is not written; "
            "please report this with the run's config.json, or export for JAX: convert to-jax."
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return difference


def _prepare(
    trained: TrainedGenerator, truncation: str | None, noise: str | None
) -> tuple[TrainedGenerator, dict[str, str]]:
    """Return the generator in float32 with its noise and batch statistics, and the file's metadata."""
    config = trained.config
    properties = {
        "run": config.name,
        "step": str(trained.step),
        "network": config.network,
        "classes": json.dumps(trained.class_names, ensure_ascii=False),
        "z": config.latents.kind,
        "noisytwins_jax": __version__,
    }
    changes: dict[str, Any] = {"up_impl": "conv", "dtype": "float32"}
    variables = trained.variables
    if config.has_mapping_network:
        if truncation:
            raise UserError("Truncation ψ is an input of a StyleGAN2 in ONNX; leave it out here.")
        noise = noise or ("none" if config.generator.noise_mode == "none" else "const")
        if noise not in NOISE:
            raise UserError(f"Noise of an ONNX file is const or none; {did_you_mean(noise, NOISE)}")
        properties["noise"] = noise
        changes["generator"] = dataclasses.replace(config.generator, noise_mode=noise)
    else:
        if noise:
            raise UserError(f"A {config.network} generator has no noise of its pixels; leave --noise out.")
        cut = trained.truncation(None, truncation)
        properties["truncation"] = "none" if cut is None else f"{cut.kind}:{cut.strength:g}"
        variables = trained.variables_with_statistics(cut)
    return dataclasses.replace(trained, config=dataclasses.replace(config, **changes), variables=variables), properties


def _inputs(trained: TrainedGenerator) -> dict[str, np.dtype]:
    """Return name and dtype of each input, in their order."""
    inputs = {"z": np.dtype(np.float32), "classes": np.dtype(np.int64)}
    return inputs | ({"psi": np.dtype(np.float32)} if trained.config.has_mapping_network else {})


def _draw(trained: TrainedGenerator) -> Any:
    """Return the function of the inputs to images ``[batch, C, H, W]``."""
    key = jax.random.key(0)  # of random noise, of which there is none

    def draw(z: Array, classes: Array, psi: Array | None = None) -> Array:
        images, _ = trained.model.sample(trained.variables, z, classes, key, psi)
        return jnp.clip(images, -1.0, 1.0).transpose(0, 3, 1, 2)

    return draw


def _largest_difference(content: bytes, trained: TrainedGenerator, draw: Any, arguments: int) -> float | None:
    """Compare images of some classes, of onnxruntime and of JAX."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    compiled, largest = jax.jit(draw), 0.0
    for size in _BATCHES:
        z = np.asarray(trained.config.z.draw(jax.random.key(size), size), np.float32)
        classes = np.linspace(0, max(len(trained.class_names) - 1, 0), size).astype(np.int64)
        values = (z, classes, np.array(0.7, np.float32))[:arguments]
        names = [entry.name for entry in session.get_inputs()]
        (images,) = session.run(None, dict(zip(names, values, strict=True)))
        with jax.default_matmul_precision("highest"):
            expected = np.asarray(compiled(*values))
        if images.shape != expected.shape:
            return float("inf")
        largest = float(np.maximum(largest, np.abs(images - expected).max()))  # NaN stays NaN
    return largest
