"""The state of ``torch.optim.Adam`` to the moments of this project's optimiser and back, for any family of networks.

PyTorch numbers parameters in the order of ``parameters()``, which a family knows (`Family`). Both keep the same first
and second moments and counts of updates, so that both ways together change no bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from noisytwins_jax.interop.network import ConvertedNetwork
from noisytwins_jax.utils.errors import UserError

PyTree = Any
Path = tuple[str, ...]

_WAY_OUT = "give the optimizer's state_dict() that was saved together with this very network"
_ENTRIES = ("step", "exp_avg", "exp_avg_sq")


class Family(Protocol):
    """A family of networks: the modules `interop.stylegan2` and `interop.biggan`."""

    def read_parameters(
        self, tensors: Mapping[str, np.ndarray], network: ConvertedNetwork, naming: str
    ) -> dict[str, Any]:
        """Tensors of the parameters' keys and shapes in PyTorch, as a tree of the network's ``params``."""

    def write_parameters(self, params: dict[str, Any], network: ConvertedNetwork, naming: str) -> dict[str, np.ndarray]:
        """The inverse, in the order of PyTorch's ``parameters()``."""


@dataclass(frozen=True)
class AdamMoments:
    """What Adam knows of one network; three trees of the parameters' structure.

    Attributes:
      counts: int, updates so far of each parameter.
      mu, nu: float32, moving averages of the gradient and of its square, in our layout.
    """

    counts: PyTree
    mu: PyTree
    nu: PyTree


def adam_to_jax(state_dict: Mapping[str, Any], network: ConvertedNetwork, naming: str, family: Family) -> AdamMoments:
    """Moments from ``{"state": {i: {"step", "exp_avg", "exp_avg_sq"}}, "param_groups": [{"params": [i, …], …}]}``.

    Args:
      state_dict: of ``torch.optim.Adam`` over all parameters of a network, with arrays for tensors.
      network: that network.
      naming: whose order of parameters it is, as in the family's functions.
      family: of the network.

    Returns:
      The moments; zeros for parameters that PyTorch has not updated yet, and so has no entry of.

    Raises:
      UserError: it is of another optimiser or of another network; the first difference is named.
    """
    written = family.write_parameters(network.variables["params"], network, naming)
    numbers, entries = _numbers(state_dict), state_dict["state"]
    if len(numbers) != len(written):
        raise UserError(
            f"The optimiser's state is of {len(numbers)} parameters, and the network has {len(written)}; {_WAY_OUT}."
        )
    for number in entries:
        if number not in numbers:
            raise UserError(f"The optimiser's state has an entry {number!r} of no parameter; {_WAY_OUT}.")
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in _ENTRIES}
    for number, (key, x) in zip(numbers, written.items(), strict=True):
        for name, value in zip(_ENTRIES, _entry(key, x.shape, number, entries.get(number)), strict=True):
            found[name][key] = value
    counts, mu, nu = (family.read_parameters(found[name], network, naming) for name in _ENTRIES)
    return AdamMoments(jax.tree.map(lambda x: int(x.flat[0]), counts), mu, nu)


def adam_to_torch(
    moments: AdamMoments,
    network: ConvertedNetwork,
    naming: str,
    family: Family,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
) -> dict[str, Any]:
    """The inverse of `adam_to_jax`, as PyTorch's ``load_state_dict`` takes it once arrays are tensors.

    Args:
      moments: of the network.
      network, naming, family: as of `adam_to_jax`.
      learning_rate, betas: as the updates use them, that is after the correction for lazy regularisation.
      epsilon: of Adam.
    """
    counts = jax.tree.map(lambda count, x: np.broadcast_to(np.float32(count), x.shape), moments.counts, moments.mu)
    written = [family.write_parameters(tree, network, naming) for tree in (counts, moments.mu, moments.nu)]
    state = {}
    for number, key in enumerate(written[0]):
        count, *both = (np.asarray(tensors[key], np.float32) for tensors in written)
        if count := count.flat[0]:
            values = (np.array(count), *(np.array(x, order="C") for x in both))
            state[number] = dict(zip(_ENTRIES, values, strict=True))
    group = {"lr": learning_rate, "betas": betas, "eps": epsilon, "weight_decay": 0, "amsgrad": False}
    return {"state": state, "param_groups": [{**group, "params": list(range(len(written[0])))}]}


def with_moments(opt_state: PyTree, moments: AdamMoments) -> PyTree:
    """An optimiser's state of `training.optimizer.lazy_adam` with these moments, placed as its own were.

    Such a state counts updates for all parameters together, or for those that a regulariser reaches and for the others.
    Where a file counts fewer for some of them (PyTorch skips parameters that have no gradient), the largest count is
    taken: it only enters the corrections ``1 - βᵗ``, which are 1 to float32 once t is some thousands.

    Raises:
      UserError: the moments are not of the same parameters and shapes; the first difference is named.
    """
    counts, mu, nu = map(flatten_dict, (moments.counts, moments.mu, moments.nu))
    unused = set(mu)

    def filled(state: Any) -> Any:
        if not _is_adam(state):
            return state
        paths = _by_path(state.mu)
        for path, old in paths.items():
            if path not in mu or np.shape(mu[path]) != old.shape:
                found = f"have shape {list(np.shape(mu[path]))}" if path in mu else "are missing"
                raise UserError(
                    f"The moments of {'/'.join(path)} {found} and should have {list(old.shape)}; {_WAY_OUT}."
                )
        unused.difference_update(paths)
        count = max((int(counts[path]) for path in paths), default=0)
        return state._replace(count=_like(state.count, count), mu=_filled(state.mu, mu), nu=_filled(state.nu, nu))

    result = jax.tree.map(filled, opt_state, is_leaf=_is_adam)
    if unused:
        raise UserError(
            f"There are moments of {'/'.join(min(unused))}, which the optimiser does not train; {_WAY_OUT}."
        )
    return result


def moments_of(opt_state: PyTree) -> AdamMoments:
    """The inverse of `with_moments`: the moments of an optimiser's state, as NumPy arrays."""
    counts, mu, nu = {}, {}, {}
    for state in filter(_is_adam, jax.tree.leaves(opt_state, is_leaf=_is_adam)):
        for found, tree in ((mu, state.mu), (nu, state.nu)):
            found |= {path: np.asarray(x) for path, x in _by_path(tree).items()}
        counts |= dict.fromkeys(_by_path(state.mu), int(state.count))
    return AdamMoments(*map(unflatten_dict, (counts, mu, nu)))


def _numbers(state_dict: Any) -> list[Any]:
    """The numbers of all parameters, in the optimiser's order."""
    try:
        groups = state_dict["param_groups"]
        if not isinstance(state_dict["state"], Mapping):
            raise TypeError
        numbers = [number for group in groups for number in group["params"]]
        unlike = any(group.get("amsgrad") or group.get("weight_decay") for group in groups)
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"This is no state of torch.optim.Adam, which has state and param_groups; {_WAY_OUT}."
        ) from None
    if unlike:
        raise UserError(
            "The optimiser's state is of Adam with amsgrad or weight decay, which this project's Adam has not; "
            "convert the network alone."
        )
    return numbers


def _entry(key: str, shape: tuple[int, ...], number: Any, entry: Mapping[str, Any] | None) -> list[np.ndarray]:
    """Count, everywhere in a tensor of the parameter's shape, and moments of one parameter."""
    if entry is None:
        return [np.zeros(shape, np.float32)] * 3
    name = f"The optimiser's entry {number!r}, of {key},"
    for part in _ENTRIES:
        if part not in entry:
            raise UserError(f"{name} lacks {part}; {_WAY_OUT}.")
    values = [np.asarray(entry[part], np.float32) for part in _ENTRIES]
    for part, value, expected in zip(_ENTRIES, values, ((), shape, shape), strict=True):
        if value.shape != expected:
            raise UserError(f"{name} has {part} of shape {list(value.shape)}, not {list(expected)}; {_WAY_OUT}.")
    return [np.broadcast_to(values[0], shape), *values[1:]]


def _is_adam(state: Any) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


def _path(entries: tuple) -> Path:
    return tuple(entry.key for entry in entries)


def _by_path(tree: PyTree) -> dict[Path, Any]:
    """Leaves by path; what `optax.partition` has masked out is none."""
    return {_path(entries): leaf for entries, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _filled(tree: PyTree, values: Mapping[Path, np.ndarray]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda entries, old: _like(old, values[_path(entries)]), tree)


def _like(old: Any, value: Any) -> Any:
    """The value with type and place of an array."""
    value = np.asarray(value, old.dtype)
    return jax.device_put(value, old.sharding) if isinstance(old, jax.Array) else value
