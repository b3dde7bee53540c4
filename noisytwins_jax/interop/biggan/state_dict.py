"""Public state dicts of BigGAN and BigGAN-deep to Flax variables and back.

Four namings are read: ``"bigganpytorch"``, ``"studiogan"``, ``"huggingface"`` and ``"tfhub"``; the first three are also
written. Each has a module that lists its tensors; `biggan.layers` converts between layouts, and `biggan.architecture`
infers the architecture.

Flax variables do not include the singular values ``sv0`` and the right singular vectors ``weight_v``, which are computed
from weights and vectors u when written, nor BatchNorm's counters.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noisytwins_jax.interop.biggan import bigganpytorch as biggan_pytorch
from noisytwins_jax.interop.biggan import huggingface as biggan_huggingface
from noisytwins_jax.interop.biggan import studiogan as biggan_studiogan
from noisytwins_jax.interop.biggan.architecture import (
    Architecture,
    Path,
    Shape,
    Structure,
    find_structure,
    infer_architecture,
)
from noisytwins_jax.interop.biggan.layers import (
    DERIVED_ROLES,
    PARAMETER_ROLES,
    Naming,
    Tensor,
    compute_sigma_and_v,
    to_tensor,
    to_variable,
)
from noisytwins_jax.interop.biggan.reading import (
    check_tensors,
    format_shape,
    matches,
    read_batch_statistics,
    recognise,
)
from noisytwins_jax.interop.biggan.statistics import StatisticsGrid
from noisytwins_jax.interop.converted_network import ConvertedNetwork
from noisytwins_jax.utils.errors import UserError, did_you_mean

__all__ = [
    "matches",
    "published_epsilons",
    "read_biggan",
    "read_parameters",
    "read_statistics",
    "write_biggan",
    "write_parameters",
]

_WRITTEN = {
    "bigganpytorch": biggan_pytorch.NAMINGS,
    "studiogan": {"plain": biggan_studiogan.NAMING},
    "huggingface": {"plain": biggan_huggingface.NAMING},
}


def read_biggan(tensors: Mapping[str, np.ndarray]) -> ConvertedNetwork:
    """Convert the tensors of a generator or discriminator.

    The fields are those that follow from names and shapes, and the epsilons of normalisation, which the naming fixes. Of
    BatchNorm statistics for several truncations, those without truncation are used; see `read_statistics`.

    Args:
      tensors: a state dict, or variables of TF-Hub; of any floating dtype.

    Raises:
      UserError: it is not a BigGAN, this project has no such network, or a tensor is missing, wrongly shaped or unknown;
        the message names the first.
    """
    naming, architecture, tensors = recognise(tensors)
    flat = {path: rows[-1] for path, rows in read_batch_statistics(naming, architecture, tensors).items()}
    for tensor in naming.tensors(architecture.structure):
        if tensor.role not in DERIVED_ROLES and tensor.path not in flat:
            flat[tensor.path] = to_variable(naming, tensor, tensors[tensor.key], architecture)
    return ConvertedNetwork(
        role=architecture.structure.role,
        fields=architecture.fields() | _epsilons(naming, architecture.structure),
        num_classes=architecture.num_classes,
        channels=architecture.channels,
        variables=unflatten_dict(flat),
    )


def read_statistics(tensors: Mapping[str, np.ndarray]) -> StatisticsGrid:
    """Return the BatchNorm statistics for several truncations of a generator of ``"huggingface"`` or ``"tfhub"``.

    Raises:
      UserError: as `read_biggan`; or the naming has no such statistics.
    """
    naming, architecture, tensors = recognise(tensors)
    if not naming.grid:
        raise UserError(
            f"A checkpoint of {naming.title} has BatchNorm statistics for one truncation alone; give one of Hugging "
            "Face's BigGAN-deep."
        )
    statistics = read_batch_statistics(naming, architecture, tensors)
    means, variances = (
        {"/".join(path[1:-1]): x for path, x in statistics.items() if path[-1] == leaf} for leaf in ("mean", "var")
    )
    return StatisticsGrid(np.linspace(0, 1, len(next(iter(means.values())))), means, variances)


def write_biggan(
    network: ConvertedNetwork, naming: str, variant: str = "plain", statistics: StatisticsGrid | None = None
) -> dict[str, np.ndarray]:
    """Convert a network to a state dict in a public naming, in the public order.

    Weights, biases, vectors u and BatchNorm statistics are copied bit for bit. ``sv0`` and ``weight_v`` are computed from
    weight and u in float64: ``v = Wᵀu/‖Wᵀu‖`` and ``σ = uᵀWv``. The published code stores the v from which u was computed,
    half a step of power iteration earlier; both agree up to float32 rounding once the iteration has converged.
    ``accumulation_counter`` is 1 (the statistics are not sums), ``num_batches_tracked`` 0.

    Args:
      network: in the form that `read_biggan` returns.
      naming: ``"bigganpytorch"``, ``"studiogan"`` or ``"huggingface"``.
      variant: of ``"bigganpytorch"``: ``"plain"``, ``"mybn"`` or ``"cross_replica"``.
      statistics: for ``"huggingface"``: BatchNorm statistics for its 51 truncations; by default the network's, repeated.

    Raises:
      UserError: the network is not a BigGAN, or the naming cannot express it.
    """
    chosen = _get_naming(naming, variant)
    flat, architecture = _inspect(network)
    if chosen.name == "huggingface" and network.channels != 3:
        raise UserError(
            f"The network makes images of {network.channels} channels, and {chosen.title}'s have 3; choose another format."
        )
    _check_expressible(chosen, architecture)
    rows = _get_statistics_rows(chosen, network, statistics)
    written: dict[str, np.ndarray] = {}
    matrices: dict[Path, np.ndarray] = {}
    vectors: dict[Path, np.ndarray] = {}
    for tensor in chosen.tensors(architecture.structure):
        if tensor.role in ("sigma", "v"):
            sigma, v = compute_sigma_and_v(matrices[tensor.path], vectors[tensor.path])
            x = sigma if tensor.role == "sigma" else v
        elif tensor.role in DERIVED_ROLES:
            x = np.ones(1, np.float32) if tensor.role == "counter" else np.zeros((), np.int64)
        elif tensor.path in rows:
            x = rows[tensor.path]
        else:
            x = to_tensor(chosen, tensor, flat[tensor.path], architecture)
        written[tensor.key] = x
        if tensor.role in ("weight", "u"):
            (matrices if tensor.role == "weight" else vectors)[tensor.path[1:-1]] = x
    return written


def read_parameters(tensors: Mapping[str, np.ndarray], network: ConvertedNetwork, naming: str) -> dict[str, Any]:
    """Convert tensors shaped like the network's parameters, such as Adam's moments, to a tree shaped like ``params``.

    Raises:
      UserError: as `write_biggan`; or a tensor is missing or of a wrong shape.
    """
    chosen = _get_naming(naming)
    architecture, parameters = _get_parameters(network, naming)
    check_tensors(chosen, architecture, parameters, tensors)
    return unflatten_dict({t.path[1:]: to_variable(chosen, t, tensors[t.key], architecture) for t in parameters})


def write_parameters(params: dict[str, Any], network: ConvertedNetwork, naming: str) -> dict[str, np.ndarray]:
    """Invert `read_parameters`, in the order of ``parameters()``, by which PyTorch's optimisers number parameters.

    Raises:
      UserError: as `write_biggan`.
    """
    chosen, flat = _get_naming(naming), flatten_dict(params)
    architecture, parameters = _get_parameters(network, naming)
    return {t.key: to_tensor(chosen, t, flat[t.path[1:]], architecture) for t in parameters}


def published_epsilons(naming: str) -> dict[str, float]:
    """Return the epsilons that a naming's code uses, by configuration field."""
    return dict(_get_naming(naming).fields)


def _epsilons(naming: Naming, structure: Structure) -> dict[str, Any]:
    in_discriminators = ("biggan.spectral_norm_epsilon",)
    return {name: x for name, x in naming.fields.items() if structure.is_generator or name in in_discriminators}


def _get_naming(naming: str, variant: str = "plain") -> Naming:
    if naming not in _WRITTEN:
        raise UserError(
            f"BigGAN is written for {', '.join(_WRITTEN)}, not {naming!r}; {did_you_mean(naming, _WRITTEN)}"
        )
    variants = _WRITTEN[naming]
    if variant not in variants:
        raise UserError(f"{naming} has no variant {variant!r}; {did_you_mean(variant, variants)}")
    return variants[variant]


def _inspect(network: ConvertedNetwork) -> tuple[dict[Path, np.ndarray], Architecture]:
    """Return variables by path and their architecture; raise a `UserError` if they are not a BigGAN's."""
    flat = {path: np.asarray(x) for path, x in flatten_dict(network.variables).items()}
    blocks = {path[1]: int(path[1][7:]) for path in flat if path[0] == "params" and path[1].startswith("blocks_")}
    if not blocks:
        raise UserError("The network has no blocks, so it is no BigGAN; give one of a biggan or biggan_deep run.")
    if ("params", "instance", "weight") in flat:
        raise UserError(
            "The network is conditioned on instances, which no public BigGAN format has a place for; "
            "give one of a run with config.instances.neighbours=0."
        )
    generator = network.role == "generator"
    structure = find_structure(
        network.role,
        ("params", "blocks_0", "conv4", "weight") in flat,
        len(blocks),
        {i for name, i in blocks.items() if ("params", name, "attention", "gamma") in flat},
        spectral_norm=any(path[0] == "spectral" for path in flat),
        class_tables=generator and ("params", "shared", "weight") not in flat,
    )

    def get_shape(path: Path) -> Shape:
        if path not in flat:
            raise UserError(f"The network has no {'/'.join(path)}; give the whole of a {structure.title}.")
        return flat[path].shape

    wide = generator and get_shape(("params", "output_conv", "weight"))[-1] != network.channels
    architecture = infer_architecture(structure, get_shape, wide)
    expected = architecture.shapes()
    for path in dict.fromkeys([*expected, *flat]):
        if path not in flat or path not in expected or flat[path].shape != expected[path]:
            raise UserError(
                f"The network's {'/'.join(path)} is {format_shape(flat[path].shape) if path in flat else 'missing'}, where "
                f"{structure.title} {f'has {format_shape(expected[path])}' if path in expected else 'has none'}; "
                "give a network with what public BigGAN formats have."
            )
    return flat, architecture


def _check_expressible(naming: Naming, architecture: Architecture) -> None:
    s, only_torch = architecture.structure, naming.name == "bigganpytorch"
    wide = architecture.wide_rgb or architecture.channels == architecture.width
    problems = {
        "has no shared embedding": s.class_tables and (s.deep or not only_torch),
        "gives z to its first layer alone": s.is_generator and not architecture.skip_z and (s.deep or not only_torch),
        "has a last convolution as wide as the network": architecture.wide_rgb and not naming.wide_rgb,
    }
    if naming.name == "huggingface":
        problems |= {
            "is a discriminator": not s.is_generator,
            "is not BigGAN-deep": not s.deep,
            "has no last convolution as wide as the network (wide_rgb)": not wide or architecture.channels != 3,
            "has no spectral normalisation": not s.spectral_norm,
            "has attention not after one block": sum(block.attention for block in s.blocks) != 1,
        }
    problem = next((problem for problem, holds in problems.items() if holds), None)
    if problem:
        raise UserError(f"The network {problem}, which {naming.title} cannot express; choose another format.")


def _get_statistics_rows(
    naming: Naming, network: ConvertedNetwork, statistics: StatisticsGrid | None
) -> dict[Path, np.ndarray]:
    """Return BatchNorm statistics for several truncations by path, if the naming has them."""
    if not naming.grid:
        if statistics is not None:
            raise UserError(f"{naming.title} has no place for statistics of several truncations; give none.")
        return {}
    repeated = StatisticsGrid.repeated(network.variables["batch_stats"])
    statistics = statistics or repeated
    rows = {}
    for leaf, given, expected in (
        ("mean", statistics.means, repeated.means),
        ("var", statistics.variances, repeated.variances),
    ):
        for path, x in expected.items():
            if path not in given or given[path].shape[1:] != x.shape[1:]:
                raise UserError(f"The statistics have no {leaf} of {path}; give those of this very network.")
            rows["batch_stats", *path.split("/"), leaf] = np.ascontiguousarray(given[path], np.float32)
    return rows


def _get_parameters(network: ConvertedNetwork, naming: str) -> tuple[Architecture, list[Tensor]]:
    """Return the architecture and the trained tensors, in the public order."""
    chosen = _get_naming(naming)
    _, architecture = _inspect(network)
    _check_expressible(chosen, architecture)
    return architecture, [t for t in chosen.tensors(architecture.structure) if t.role in PARAMETER_ROLES]
