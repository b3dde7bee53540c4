"""Networks applied to a batch in micro-batches, for batches whose activations do not fit into memory.

The activations of one micro-batch exist at a time, also for gradients of any order: a backward pass computes each
micro-batch's outputs again. Losses see the outputs of the whole batch, so that any loss is that of the whole batch. It costs one
more forward pass. What a network computes across its batch it computes across a micro-batch: statistics of BatchNorm, but not
minibatch standard deviations, whose groups stay whole.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from noisytwins_jax.config import RunConfig
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.model import DiscriminatorInputs, Model
from noisytwins_jax.models.rows import Rows
from noisytwins_jax.training.augment.augmentation import Augmentation
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
PyTree = Any
# (what all rows share, arrays [N, …]) → (outputs [N, …], new statistics)
Network = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


def micro_batch_rows(config: RunConfig, layout: Layout) -> int:
    """Return the rows of a micro-batch, over all devices, that ``config.accumulation`` or ``config.device_batch`` asks for.

    Raises:
      UserError: a device's part of the batch has no such micro-batches of whole minibatch-standard-deviation groups.
    """
    rows, group = config.batch_size // layout.num_devices, config.discriminator.mbstd_group_size
    counts = micro_batch_counts(config, layout)
    if config.device_batch:
        fitting = [n for n in counts if rows // n <= config.device_batch]
        if not fitting:
            raise UserError(
                f"config.device_batch={config.device_batch} is smaller than a minibatch-std group of {group} images; give "
                f"at least {group}, or a smaller --config.discriminator.mbstd_group_size."
            )
        return layout.num_devices * (rows // min(fitting))
    if config.accumulation not in counts:
        below = [n for n in counts if n < config.accumulation][-1:]
        above = [n for n in counts if n > config.accumulation][:1]
        raise UserError(
            f"config.accumulation={config.accumulation} does not divide the {rows} images of a device into micro-batches of "
            f"whole minibatch-std groups of {group}; give {' or '.join(map(str, below + above))}, "
            "or smaller groups (--config.discriminator.mbstd_group_size)."
        )
    return config.batch_size // config.accumulation


def micro_batch_counts(config: RunConfig, layout: Layout) -> list[int]:
    """Return the values of ``config.accumulation`` that a batch allows: micro-batches are of whole groups on every device."""
    rows, group = config.batch_size // layout.num_devices, config.discriminator.mbstd_group_size
    return [n for n in range(1, rows + 1) if rows % n == 0 and rows // n % group == 0]


class MicroBatchedNetworks:
    """The networks of a model as a training step applies them: in micro-batches.

    Args:
      model: its networks.
      rows: of a micro-batch at most; in total, over all devices.
      layout: the mesh of the batch.
    """

    def __init__(self, model: Model, rows: int, layout: Layout):
        self.model, self.rows, self.layout = model, rows, layout

    def synthesize(
        self, variables: dict, conditioning: PyTree, key: Array, update_stats: bool = False
    ) -> tuple[Array, Array | None, PyTree]:
        """Generate images as `Model.synthesize`."""
        n = len(jax.tree.leaves(conditioning)[0])

        def network(shared: tuple[dict, Array], part: tuple[PyTree, Array]) -> tuple[tuple, PyTree]:
            (variables, key), (conditioning, indices) = shared, part
            rows = None if len(indices) == n else Rows(indices, n)
            images, low_images, stats = self.model.synthesize(variables, conditioning, key, update_stats, rows)
            return (images, low_images), stats

        images, stats = self._apply(network, n, (variables, key), (conditioning, jnp.arange(n)))
        return *images, stats

    def augment(self, augmentation: Augmentation, key: Array, images: Array, p: Array) -> Array:
        """Augment images ``[N, H, W, C]``; `p` is ADA's probability."""
        if not augmentation.active:
            return images

        def network(p: Array, part: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
            return augmentation.apply(*part, p), {}

        return self._apply(network, len(images), p, (images, augmentation.sample_inputs(key, images.shape)))[0]

    def discriminate(self, variables: dict, inputs: DiscriminatorInputs) -> DiscriminatorOutput:
        """Discriminate augmented images as `Model.discriminate`; statistics stay as they are."""

        def network(variables: dict, part: tuple[DiscriminatorInputs]) -> tuple[DiscriminatorOutput, PyTree]:
            return self.model.discriminate(variables, *part)

        return self._discriminate(network, variables, inputs)[0]

    def discriminate_both(
        self, variables: dict, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput, PyTree]:
        """Discriminate real and generated images as `Model.discriminate_both`."""

        def network(variables: dict, part: tuple[DiscriminatorInputs, DiscriminatorInputs]) -> tuple[tuple, PyTree]:
            real, fake, stats = self.model.discriminate_both(variables, *part)
            return (real, fake), stats

        outputs, stats = self._discriminate(network, variables, real, fake)
        return *outputs, stats

    def _discriminate(self, network: Network, variables: dict, *inputs: DiscriminatorInputs) -> tuple[PyTree, PyTree]:
        """Apply a discriminator; a key of dropout is no row, and each micro-batch folds its own from it."""
        n, dropout = len(inputs[0].labels), inputs[0].dropout

        def keyed(shared: tuple[dict, Array | None], part: tuple[tuple, Array]) -> tuple[PyTree, PyTree]:
            (variables, key), (inputs, indices) = shared, part
            if key is not None and len(indices) < n:
                key = jax.random.fold_in(key, indices[0])
            return network(variables, tuple(x._replace(dropout=key) for x in inputs))

        rows = tuple(x._replace(dropout=None) for x in inputs)
        return self._apply(keyed, n, (variables, dropout), (rows, jnp.arange(n)))

    def _apply(self, network: Network, n: int, shared: PyTree, rows: PyTree) -> tuple[PyTree, PyTree]:
        of_device = n // self.layout.num_devices
        count = min(
            c for c in range(1, of_device + 1) if of_device % c == 0 and (n // c <= self.rows or c == of_device)
        )
        return in_micro_batches(network, count, self.layout)(shared, rows)


def in_micro_batches(network: Network, count: int, layout: Layout) -> Network:
    """Return the same function of the batch, computed in `count` micro-batches; statistics are means over them."""
    if count == 1:
        return network

    def split(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: layout.split_batch(x, count), tree)

    def merge(tree: PyTree) -> PyTree:
        return jax.tree.map(layout.merge_batch, tree)

    @jax.custom_vjp
    def apply(shared: PyTree, rows: PyTree) -> tuple[PyTree, PyTree]:
        outputs, stats = jax.lax.map(lambda part: network(shared, part), split(rows))
        return merge(outputs), jax.tree.map(lambda x: x.mean(axis=0), stats)

    def forward(shared: PyTree, rows: PyTree) -> tuple[tuple[PyTree, PyTree], tuple]:
        masks = _Masks(*(tuple(x.perturbed for x in _primals(tree)) for tree in (shared, rows)))
        shared, rows = jax.tree.map(lambda x: x.value, (shared, rows), is_leaf=_is_primal)
        return apply(shared, rows), (shared, rows, masks)

    def backward(saved: tuple, cotangents: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        shared, rows, masks = saved

        # Checkpointed for second-order gradients, for which all that this computes would be stored otherwise.
        @jax.checkpoint
        def gradients(shared: PyTree, part: PyTree, cotangent: PyTree) -> tuple[list[Array], list[Array]]:
            def outputs(of_shared: list[Array], of_rows: list[Array]) -> PyTree:
                return network(_replace(shared, masks.shared, of_shared), _replace(part, masks.rows, of_rows))[0]

            return jax.vjp(outputs, _choose(shared, masks.shared), _choose(part, masks.rows))[1](cotangent)

        def add(total: list[Array], part: tuple[PyTree, PyTree]) -> tuple[list[Array], list[Array]]:
            of_shared, of_rows = gradients(shared, *part)
            return jax.tree.map(jnp.add, total, of_shared), of_rows

        zeros = jax.tree.map(jnp.zeros_like, _choose(shared, masks.shared))
        of_outputs = jax.tree.map(_instantiate, cotangents[0], is_leaf=_is_zero)  # statistics have no gradient
        of_shared, of_rows = jax.lax.scan(add, zeros, (split(rows), split(of_outputs)))
        return _gradient(shared, masks.shared, of_shared), _gradient(rows, masks.rows, merge(of_rows))

    apply.defvjp(forward, backward, symbolic_zeros=True)
    return apply


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Masks:
    """Which leaves of a network's arguments are differentiated."""

    shared: tuple[bool, ...]
    rows: tuple[bool, ...]


def _choose(tree: PyTree, mask: Sequence[bool]) -> list[Array]:
    return [x for x, chosen in zip(jax.tree.leaves(tree), mask, strict=True) if chosen]


def _replace(tree: PyTree, mask: Sequence[bool], values: Iterable[Array]) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    values = iter(values)
    return jax.tree.unflatten(
        structure, [next(values) if chosen else x for x, chosen in zip(leaves, mask, strict=True)]
    )


def _gradient(tree: PyTree, mask: Sequence[bool], values: Iterable[Array]) -> PyTree:
    """Return the cotangent of a tree: these values, and None for the leaves that are not differentiated."""
    values = iter(values)
    return jax.tree.unflatten(jax.tree.structure(tree), [next(values) if chosen else None for chosen in mask])


def _is_primal(x: Any) -> bool:
    return isinstance(x, CustomVJPPrimal)


def _primals(tree: PyTree) -> list[CustomVJPPrimal]:
    return jax.tree.leaves(tree, is_leaf=_is_primal)


def _is_zero(x: Any) -> bool:
    return isinstance(x, SymbolicZero)


def _instantiate(x: Any) -> Array:
    return jnp.zeros(x.shape, x.dtype) if _is_zero(x) else x
