"""Extractors of the user's own, from a file: a function written by ``jax.export``, or an ONNX file (``.onnx``).

It has one input, images uint8 ``[batch, H, W, C]``, and one output, features float32 ``[batch, D]`` with D fixed; its own
preprocessing and weights are inside. The batch must be free. H and W may be: otherwise images of another size are resized by
Pillow's antialiased bicubic filter. Grey images are repeated for C = 3.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.extractors.resize import resize_uint8
from noisytwins_jax.utils.errors import UserError, first_line

WANTED = (
    "one input, images uint8 [batch, H, W, C], and one output, features float32 [batch, D], with any batch and fixed D"
)
_HELP = "noisytwins_jax/evaluation/README.md shows how one is written"
Array = jax.Array


class _Function(NamedTuple):
    """A function from a file, with types and shapes by its own words; sizes that are free are None or text."""

    kind: str
    inputs: list[tuple[str, Sequence[Any]]]
    outputs: list[tuple[str, Sequence[Any]]]
    call: Callable[[Array], Array]


@functools.lru_cache(maxsize=2)  # training evaluates again and again
def load_file_extractor(file: str) -> FeatureExtractor:
    """Load an extractor from a file; features have no logits.

    Raises:
      UserError: the file is missing, is no function, or has another input or output; on `apply`, images do not fit.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"config.evaluation.extractors=file:{file}: there is no such file; {_HELP}.")
    content = path.read_bytes()
    function = (_read_onnx if path.suffix == ".onnx" else _read_exported)(path, content)
    height, width, channels = _check(path, function)
    feature_dim = int(function.outputs[0][1][1])
    sha256 = hashlib.sha256(content).hexdigest()
    fixed = isinstance(height, int)
    description = {
        "architecture": f"own extractor, {function.kind}",
        "file": path.name,
        "preprocessing": f"Pillow's bicubic to {height}x{width}, uint8" if fixed else "inside the file",
    }

    @jax.jit
    def apply(variables: None, images: Array) -> tuple[Array, Array]:
        del variables  # they are in the file
        if isinstance(channels, int) and images.shape[3] != channels:
            if (images.shape[3], channels) != (1, 3):
                raise UserError(
                    f"{path} takes images of {channels} channels, and these have {images.shape[3]}; {_HELP}."
                )
            images = jnp.repeat(images, 3, axis=3)
        if fixed:
            images = resize_uint8(images, height, width, "pillow_bicubic")
        try:
            features = function.call(images)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"{path} does not take images {list(images.shape)}: {first_line(error)}; it should have {WANTED}."
            ) from None
        return features, jnp.zeros((images.shape[0], 0))

    return FeatureExtractor(f"{path.stem}-{sha256[:8]}", sha256, description, feature_dim, None, apply)


def _check(path: Path, function: _Function) -> tuple[Any, Any, Any]:
    """Return height, width and channels of the input, ints where they are fixed.

    Raises:
      UserError: input or output are others than `WANTED`.
    """

    def fits(arrays: list[tuple[str, Sequence[Any]]], dtype: str, rank: int) -> bool:
        return len(arrays) == 1 and arrays[0][0] == dtype and len(arrays[0][1]) == rank

    def describe(arrays: list[tuple[str, Sequence[Any]]]) -> str:
        texts = [
            f"{dtype} [{', '.join('?' if size is None else str(size) for size in shape)}]" for dtype, shape in arrays
        ]
        return " and ".join(texts) or "nothing"

    inputs, outputs = function.inputs, function.outputs
    if fits(inputs, "uint8", 4) and fits(outputs, "float32", 2):
        batch, height, width, channels = inputs[0][1]
        same = isinstance(height, int) == isinstance(width, int)
        fitting = channels in (1, 3) or not isinstance(channels, int)
        if not isinstance(batch, int) and same and fitting and isinstance(outputs[0][1][1], int):
            return height, width, channels
    raise UserError(
        f"{path} takes {describe(inputs)} and returns {describe(outputs)}; an extractor has {WANTED}, C = 1 or 3. {_HELP}."
    )


def _read_exported(path: Path, content: bytes) -> _Function:
    try:
        exported = jax.export.deserialize(bytearray(content))
    except Exception as error:  # of flatbuffers, for which any bytes may be anything
        raise UserError(
            f"{path} is no function written by jax.export ({first_line(error)}); an ONNX file must end in .onnx. {_HELP}."
        ) from None
    platform = jax.export.default_export_platform()
    if platform not in exported.platforms:
        raise UserError(
            f"{path} was exported for {', '.join(exported.platforms)}, and this is {platform}; export it with "
            "jax.export.export(..., platforms=('cpu', 'cuda', 'tpu'))."
        )

    def declared(avals: Sequence[Any]) -> list[tuple[str, Sequence[Any]]]:
        return [(x.dtype.name, [int(d) if isinstance(d, int) else str(d) for d in x.shape]) for x in avals]

    return _Function("jax.export", declared(exported.in_avals), declared(exported.out_avals), exported.call)


def _read_onnx(path: Path, content: bytes) -> _Function:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            f"{path} is run by onnxruntime, which is not installed: python -m pip install onnxruntime"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime has a class for each reason
        raise UserError(f"{path} is no ONNX file that onnxruntime can run: {first_line(error)}.") from None

    def declared(entries: Sequence[Any]) -> list[tuple[str, Sequence[Any]]]:
        # "tensor(uint8)", "tensor(float)"
        names = [entry.type.removeprefix("tensor(").removesuffix(")") for entry in entries]
        return [(("float32" if name == "float" else name), x.shape) for name, x in zip(names, entries, strict=True)]

    inputs, outputs = declared(session.get_inputs()), declared(session.get_outputs())

    def run(images: Array) -> np.ndarray:
        (features,) = session.run(None, {session.get_inputs()[0].name: np.asarray(images)})
        return features

    def call(images: Array) -> Array:
        shape = jax.ShapeDtypeStruct((images.shape[0], outputs[0][1][1]), jnp.float32)
        return jax.pure_callback(run, shape, images)

    return _Function(f"ONNX by onnxruntime {onnxruntime.__version__}", inputs, outputs, call)
