"""Detection of the BigGAN network in a file, the check that it is complete, and its BatchNorm statistics."""

from collections.abc import Iterable, Mapping
from types import ModuleType

import numpy as np

from noisytwins_jax.interop.biggan import bigganpytorch as biggan_pytorch
from noisytwins_jax.interop.biggan import huggingface as biggan_huggingface
from noisytwins_jax.interop.biggan import studiogan as biggan_studiogan
from noisytwins_jax.interop.biggan import tfhub as biggan_tfhub
from noisytwins_jax.interop.biggan.architecture import Architecture, Path, Shape, Structure, infer_architecture
from noisytwins_jax.interop.biggan.layers import DERIVED_ROLES, Naming, Tensor, get_jax_shape, to_file_layout
from noisytwins_jax.utils.errors import UserError

MODULES: dict[str, ModuleType] = {
    "bigganpytorch": biggan_pytorch,
    "studiogan": biggan_studiogan,
    "huggingface": biggan_huggingface,
    "tfhub": biggan_tfhub,
}
_WAY_OUT = "give the whole state dict of one BigGAN network, as its publisher has it"


def matches(keys: Iterable[str]) -> str | None:
    """Return the name of the naming with such keys, or None if they are not BigGAN's."""
    keys = set(keys)
    return next((name for name, module in MODULES.items() if module.matches(keys)), None)


def recognise(tensors: Mapping[str, np.ndarray]) -> tuple[Naming, Architecture, Mapping[str, np.ndarray]]:
    """Return a file's naming, its network's architecture, and its tensors by the naming's names.

    Raises:
      UserError: see `state_dict.read_biggan`.
    """
    name = matches(tensors)
    if name is None:
        raise UserError(
            f"The checkpoint has {next(iter(tensors), 'nothing')!r}, which is in no BigGAN of {', '.join(MODULES)}; "
            f"{_WAY_OUT}."
        )
    if name == "tfhub":
        tensors = biggan_tfhub.normalize_names(tensors)
    naming, structure = MODULES[name].recognise(tensors)
    expected = list(naming.tensors(structure))
    weights = {t.path: t for t in expected if t.role == "weight"}

    def get_shape(path: Path) -> Shape:
        tensor = weights[path]
        if tensor.key not in tensors:
            raise _missing(naming, structure, tensor.key)
        shape = np.shape(tensors[tensor.key])
        dims = 4 if "conv" in path[-2] else 2
        if len(shape) != dims:
            raise UserError(
                f"The checkpoint's {tensor.key} is {format_shape(shape)}, but must have {dims} axes; {_WAY_OUT}."
            )
        return get_jax_shape(naming, tensor, shape)

    architecture = infer_architecture(structure, get_shape, naming.wide_rgb)
    check_tensors(naming, architecture, expected, tensors)
    known = {tensor.key for tensor in expected}
    unknown = next((key for key in tensors if key not in known), None)
    if unknown is not None:
        raise UserError(
            f"The checkpoint has {unknown!r}, which {naming.title} does not have in {structure.title}; "
            f"leave it out, or {_WAY_OUT}."
        )
    return naming, architecture, tensors


def check_tensors(
    naming: Naming, architecture: Architecture, expected: list[Tensor], tensors: Mapping[str, np.ndarray]
) -> None:
    """Raise a `UserError` about the first missing or wrongly shaped tensor; `DERIVED_ROLES` may be missing."""
    shapes = architecture.shapes()
    for tensor in expected:
        if tensor.key in tensors and tensor.role not in DERIVED_ROLES:
            shape, variable = np.shape(tensors[tensor.key]), np.broadcast_to(np.float32(0), shapes[tensor.path])
            expected_shape = to_file_layout(naming, tensor, variable).shape
            if not _fits(naming, tensor, shape, expected_shape):
                rows = "rows of " * (naming.grid and tensor.role in ("mean", "var"))
                raise UserError(
                    f"The checkpoint's {tensor.key} is {format_shape(shape)}, where {architecture.structure.title} with "
                    f"a width of {architecture.width} has {rows}{format_shape(expected_shape)}; {_WAY_OUT}."
                )
        elif tensor.role not in DERIVED_ROLES:
            raise _missing(naming, architecture.structure, tensor.key)


def _fits(naming: Naming, tensor: Tensor, shape: Shape, expected: Shape) -> bool:
    if naming.grid and tensor.role in ("mean", "var"):
        return shape[-1:] == expected
    if naming.torch_layout or tensor.role == "weight":
        return shape == expected
    # TF-Hub has vectors as [1, C] and [1, 1, 1, C].
    return [n for n in shape if n != 1] == [n for n in expected if n != 1]


def read_batch_statistics(
    naming: Naming, architecture: Architecture, tensors: Mapping[str, np.ndarray]
) -> dict[Path, np.ndarray]:
    """Return means and variances ``[S, C]`` by path, with a row for each truncation; S is 1 for a single set."""
    expected = list(naming.tensors(architecture.structure))
    counters = {t.path: t.key for t in expected if t.role == "counter" and t.key in tensors}
    statistics, first = {}, None
    for tensor in expected:
        if tensor.role not in ("mean", "var"):
            continue
        x = np.asarray(tensors[tensor.key], np.float32)
        x = x.reshape(-1, x.shape[-1])
        first = first or (tensor.key, len(x))
        if len(x) != first[1]:
            raise UserError(
                f"The checkpoint has {len(x)} rows of {tensor.key} but {first[1]} of {first[0]}; {_WAY_OUT}."
            )
        if tensor.path[1:-1] in counters:
            key = counters[tensor.path[1:-1]]
            x = _divide_by_counter(x, np.asarray(tensors[key], np.float32).reshape(-1, 1), key, naming)
        statistics[tensor.path] = x
    return statistics


def _divide_by_counter(x: np.ndarray, counter: np.ndarray, key: str, naming: Naming) -> np.ndarray:
    """Return statistics, given their sums over `counter` batches."""
    if naming.torch_layout:
        counter = np.where(counter == 0, np.float32(1), counter)  # running averages, not sums
    if not (counter > 0).all():
        raise UserError(
            f"The checkpoint's {key} is {counter.min():g}, so no BatchNorm statistics were accumulated; "
            "give a checkpoint that has them."
        )
    return x / counter


def _missing(naming: Naming, structure: Structure, key: str) -> UserError:
    return UserError(f"The checkpoint has no {key!r}, which {naming.title} has in {structure.title}; {_WAY_OUT}.")


def format_shape(shape: Shape) -> str:
    """Format a shape for messages."""
    return str(list(shape))
