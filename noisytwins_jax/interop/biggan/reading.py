"""Which BigGAN tensors of a file are, whether they are all there, and their moments."""

from collections.abc import Iterable, Mapping
from types import ModuleType

import numpy as np

from noisytwins_jax.interop.biggan import huggingface as biggan_huggingface
from noisytwins_jax.interop.biggan import pytorch as biggan_pytorch
from noisytwins_jax.interop.biggan import studiogan as biggan_studiogan
from noisytwins_jax.interop.biggan import tfhub as biggan_tfhub
from noisytwins_jax.interop.biggan.architecture import Architecture, Path, Shape, Structure, measure
from noisytwins_jax.interop.biggan.layers import DERIVED, Naming, Tensor, in_file_layout, our_shape
from noisytwins_jax.utils.errors import UserError

MODULES: dict[str, ModuleType] = {
    "bigganpytorch": biggan_pytorch,
    "studiogan": biggan_studiogan,
    "huggingface": biggan_huggingface,
    "tfhub": biggan_tfhub,
}
_WAY_OUT = "give the whole state dict of one BigGAN network, as its publisher has it"


def matches(keys: Iterable[str]) -> str | None:
    """The naming of a state dict with these keys: one of those above, or None if it is no BigGAN."""
    keys = set(keys)
    return next((name for name, module in MODULES.items() if module.matches(keys)), None)


def recognise(tensors: Mapping[str, np.ndarray]) -> tuple[Naming, Architecture, Mapping[str, np.ndarray]]:
    """What a file has: its naming, the network, and the tensors by the names that the naming has for them.

    Raises:
      UserError: see `biggan.read_biggan`.
    """
    name = matches(tensors)
    if name is None:
        raise UserError(
            f"The checkpoint has {next(iter(tensors), 'nothing')!r}, which is in no BigGAN of {', '.join(MODULES)}; "
            f"{_WAY_OUT}."
        )
    if name == "tfhub":
        tensors = biggan_tfhub.plain_names(tensors)
    naming, structure = MODULES[name].recognise(tensors)
    listed = list(naming.tensors(structure))
    weights = {t.path: t for t in listed if t.role == "weight"}

    def shape_of(path: Path) -> Shape:
        tensor = weights[path]
        if tensor.key not in tensors:
            raise _missing(naming, structure, tensor.key)
        shape = np.shape(tensors[tensor.key])
        dims = 4 if "conv" in path[-2] else 2
        if len(shape) != dims:
            raise UserError(
                f"The checkpoint's {tensor.key} is {list_of(shape)}, but must have {dims} axes; {_WAY_OUT}."
            )
        return our_shape(naming, tensor, shape)

    architecture = measure(structure, shape_of, naming.wide_rgb)
    check_tensors(naming, architecture, listed, tensors)
    known = {tensor.key for tensor in listed}
    unknown = next((key for key in tensors if key not in known), None)
    if unknown is not None:
        raise UserError(
            f"The checkpoint has {unknown!r}, which {naming.title} does not have in {structure.title}; "
            f"leave it out, or {_WAY_OUT}."
        )
    return naming, architecture, tensors


def check_tensors(
    naming: Naming, architecture: Architecture, listed: list[Tensor], tensors: Mapping[str, np.ndarray]
) -> None:
    """Raises a `UserError` about the first tensor that is missing or wrongly shaped; what is `DERIVED` may be missing."""
    expected = architecture.shapes()
    for tensor in listed:
        if tensor.key in tensors and tensor.role not in DERIVED:
            shape, ours = np.shape(tensors[tensor.key]), np.broadcast_to(np.float32(0), expected[tensor.path])
            wanted = in_file_layout(naming, tensor, ours).shape
            if not _fits(naming, tensor, shape, wanted):
                rows = "rows of " * (naming.grid and tensor.role in ("mean", "var"))
                raise UserError(
                    f"The checkpoint's {tensor.key} is {list_of(shape)}, where {architecture.structure.title} with a width "
                    f"of {architecture.width} has {rows}{list_of(wanted)}; {_WAY_OUT}."
                )
        elif tensor.role not in DERIVED:
            raise _missing(naming, architecture.structure, tensor.key)


def _fits(naming: Naming, tensor: Tensor, shape: Shape, wanted: Shape) -> bool:
    if naming.grid and tensor.role in ("mean", "var"):
        return shape[-1:] == wanted
    if naming.torch_layout or tensor.role == "weight":
        return shape == wanted
    return [n for n in shape if n != 1] == [
        n for n in wanted if n != 1
    ]  # TF-Hub has vectors as [1, C] and [1, 1, 1, C]


def moments_of(naming: Naming, architecture: Architecture, found: Mapping[str, np.ndarray]) -> dict[Path, np.ndarray]:
    """Means and variances by path, ``[S, C]``: S is 1 where there is one set."""
    listed = list(naming.tensors(architecture.structure))
    counters = {t.path: t.key for t in listed if t.role == "counter" and t.key in found}
    moments, first = {}, None
    for tensor in listed:
        if tensor.role not in ("mean", "var"):
            continue
        x = np.asarray(found[tensor.key], np.float32)
        x = x.reshape(-1, x.shape[-1])
        first = first or (tensor.key, len(x))
        if len(x) != first[1]:
            raise UserError(
                f"The checkpoint has {len(x)} rows of {tensor.key} but {first[1]} of {first[0]}; {_WAY_OUT}."
            )
        if tensor.path[1:-1] in counters:
            key = counters[tensor.path[1:-1]]
            x = _divided(x, np.asarray(found[key], np.float32).reshape(-1, 1), key, naming)
        moments[tensor.path] = x
    return moments


def _divided(x: np.ndarray, counter: np.ndarray, key: str, naming: Naming) -> np.ndarray:
    """Moments, which are sums over so many batches."""
    if naming.torch_layout:
        counter = np.where(counter == 0, np.float32(1), counter)  # running moments: nothing was summed up
    if not (counter > 0).all():
        raise UserError(
            f"The checkpoint's {key} is {counter.min():g}, so no moments were accumulated; give a checkpoint with moments."
        )
    return x / counter


def _missing(naming: Naming, structure: Structure, key: str) -> UserError:
    return UserError(f"The checkpoint has no {key!r}, which {naming.title} has in {structure.title}; {_WAY_OUT}.")


def list_of(shape: Shape) -> str:
    """For messages."""
    return str(list(shape))
