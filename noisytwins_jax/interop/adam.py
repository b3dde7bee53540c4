"""Conversion between the state of ``torch.optim.Adam`` and this project's optimiser state.

PyTorch numbers parameters in the order of ``parameters()``, which the network family knows. Both store the same first
and second moments and update counts, so a round trip is bit-exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from noisytwins_jax.interop.converted_network import ConvertedNetwork
from noisytwins_jax.utils.errors import UserError

PyTree = Any
Path = tuple[str, ...]

_WAY_OUT = "give the optimizer's state_dict() that was saved together with this very network"
_ENTRIES = ("step", "exp_avg", "exp_avg_sq")


class Family(Protocol):
    """A family of networks: the modules `stylegan2.state_dict` and `biggan.state_dict`."""

    def read_parameters(
        self, tensors: Mapping[str, np.ndarray], network: ConvertedNetwork, naming: str
    ) -> dict[str, Any]:
        """Convert tensors with the keys and shapes of PyTorch's parameters to a tree shaped like ``params``."""

    def write_parameters(self, params: dict[str, Any], network: ConvertedNetwork, naming: str) -> dict[str, np.ndarray]:
        """Invert `read_parameters`, in the order of PyTorch's ``parameters()``."""


@dataclass(frozen=True)
class AdamMoments:
    """Adam's state for one network: three trees with the structure of its parameters.

    Attributes:
      counts: int, updates so far of each parameter.
      mu, nu: float32, moving averages of the gradient and of its square, in Flax's layout.
    """

    counts: PyTree
    mu: PyTree
    nu: PyTree


def adam_to_jax(state_dict: Mapping[str, Any], network: ConvertedNetwork, naming: str, family: Family) -> AdamMoments:
    """Convert ``{"state": {i: {"step", "exp_avg", "exp_avg_sq"}}, "param_groups": [{"params": [i, …], …}]}``.

    Args:
      state_dict: of ``torch.optim.Adam`` over all parameters of a network, with arrays for tensors.
      network: that network.
      naming: the public format, which fixes the order of parameters.
      family: of the network.

    Returns:
      The moments; zeros for parameters without an entry, which PyTorch has not updated yet.

    Raises:
      UserError: the state belongs to another optimiser or network; the first difference is named.
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
    tensors: dict[str, dict[str, np.ndarray]] = {name: {} for name in _ENTRIES}
    for number, (key, x) in zip(numbers, written.items(), strict=True):
        for name, value in zip(_ENTRIES, _read_entry(key, x.shape, number, entries.get(number)), strict=True):
            tensors[name][key] = value
    counts, mu, nu = (family.read_parameters(tensors[name], network, naming) for name in _ENTRIES)
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
    """Invert `adam_to_jax`; PyTorch's ``load_state_dict`` accepts the result once its arrays are tensors.

    Args:
      moments: of the network.
      network, naming, family: see `adam_to_jax`.
      learning_rate, betas: as used in updates, after the correction for lazy regularisation.
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


def set_moments(opt_state: PyTree, moments: AdamMoments) -> PyTree:
    """Return an optimiser state of `training.optimizer.lazy_adam` with these moments, sharded as before.

    Such a state has one update count for all parameters, or one for those that a regulariser reaches and one for the
    others. Where a file has smaller counts for some (PyTorch skips parameters without a gradient), the largest is used:
    it only enters the bias corrections ``1 - βᵗ``, which are 1 in float32 after some thousand updates.

    Raises:
      UserError: parameters or shapes differ; the first difference is named.
    """
    counts, mu, nu = map(flatten_dict, (moments.counts, moments.mu, moments.nu))
    unused = set(mu)

    def replace(state: Any) -> Any:
        if not _is_adam(state):
            return state
        paths = _by_path(state.mu)
        for path, old in paths.items():
            if path not in mu or np.shape(mu[path]) != old.shape:
                problem = f"have shape {list(np.shape(mu[path]))}" if path in mu else "are missing"
                raise UserError(
                    f"The moments of {'/'.join(path)} {problem} and should have {list(old.shape)}; {_WAY_OUT}."
                )
        unused.difference_update(paths)
        count = max((int(counts[path]) for path in paths), default=0)
        return state._replace(
            count=_put_like(state.count, count), mu=_replace_leaves(state.mu, mu), nu=_replace_leaves(state.nu, nu)
        )

    result = jax.tree.map(replace, opt_state, is_leaf=_is_adam)
    if unused:
        raise UserError(
            f"There are moments of {'/'.join(min(unused))}, which the optimiser does not train; {_WAY_OUT}."
        )
    return result


def get_moments(opt_state: PyTree) -> AdamMoments:
    """Return the moments of an optimiser state as NumPy arrays: the inverse of `set_moments`."""
    counts, mu, nu = {}, {}, {}
    for state in filter(_is_adam, jax.tree.leaves(opt_state, is_leaf=_is_adam)):
        for flat, tree in ((mu, state.mu), (nu, state.nu)):
            flat |= {path: np.asarray(x) for path, x in _by_path(tree).items()}
        counts |= dict.fromkeys(_by_path(state.mu), int(state.count))
    return AdamMoments(*map(unflatten_dict, (counts, mu, nu)))


def _numbers(state_dict: Any) -> list[Any]:
    """Return the numbers of all parameters, in the optimiser's order."""
    try:
        groups = state_dict["param_groups"]
        if not isinstance(state_dict["state"], Mapping):
            raise TypeError
        numbers = [number for group in groups for number in group["params"]]
        unsupported = any(group.get("amsgrad") or group.get("weight_decay") for group in groups)
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"This is no state of torch.optim.Adam, which has state and param_groups; {_WAY_OUT}."
        ) from None
    if unsupported:
        raise UserError(
            "The optimiser's state is of Adam with amsgrad or weight decay, which this project's Adam does not have; "
            "convert the network alone."
        )
    return numbers


def _read_entry(key: str, shape: tuple[int, ...], number: Any, entry: Mapping[str, Any] | None) -> list[np.ndarray]:
    """Return one parameter's update count, broadcast to its shape, and both moments."""
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
    """Return leaves by path, without those that `optax.partition` has masked out."""
    return {_path(entries): leaf for entries, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _replace_leaves(tree: PyTree, values: Mapping[Path, np.ndarray]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda entries, old: _put_like(old, values[_path(entries)]), tree)


def _put_like(old: Any, value: Any) -> Any:
    """Return the value with the dtype and sharding of an array."""
    value = np.asarray(value, old.dtype)
    return jax.device_put(value, old.sharding) if isinstance(old, jax.Array) else value
