"""The training input: an endless, shuffled, resumable stream of batches, built on Grain.

The stream is one global order of images: epoch after epoch, each a fresh permutation of the whole set, with no image
dropped between epochs. Batch ``k`` of the run is positions ``k * batch_size`` to ``(k + 1) * batch_size - 1`` of that
order, and process ``p`` of ``P`` reads the ``p``-th of the ``P`` equal, contiguous parts of it: the parts of all
processes, put together in the order of the processes, are the batch that a single process would read. Shuffling and
mirroring depend on the seed and the global position alone, never on the process, the threads or the past, so a
position saved by any number of processes resumes on any other.

With neighbourhoods of the images (IC-GAN) the order is one of instances: in the place of each stands an image of its
neighbourhood, drawn anew each epoch in the same way, together with the number of the instance.

Grain gives the threads, the prefetching and the iterator state. The elements that it moves are whole batches: with
one Grain element per image, the bookkeeping per image costs far more time than copying a small image does.
"""

import functools
from types import TracebackType
from typing import Self

import grain
import numpy as np

from noisytwins_jax.data.source import ImageSource, LabelledImages, read_images
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.retry import retry

_ENDLESS = 2**40  # batches: longer than any run, and positions still fit an int64
_SHUFFLE, _MIRROR, _NEIGHBOUR = 1, 2, 3  # purposes, so that the draws of an epoch are independent


class TrainingBatches:
    """Endless iterator over this process's share of the global batches; made by ``training_batches``.

    Each element is ``{"image": uint8 [b, H, W, C], "label": int32 [b]}`` with ``b = batch_size / process_count``, and with
    neighbourhoods also ``"instance": int32 [b]``; the arrays belong to the caller. Usable as a context manager that
    closes it.
    """

    def __init__(self, batches: "_BatchReader", num_threads: int, prefetch: int) -> None:
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
        self._iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LabelledImages:
        """The next batch of this process."""
        return next(self._iterator)

    def state(self) -> dict[str, int]:
        """The position: ``{"next_index": k}``, ``k`` the number of the global batch that the next call will return.

        Prefetched batches do not count. ``k`` is the same on every process and for every number of processes, so one
        copy is enough; it is only tied to ``batch_size``, as ``k * batch_size`` images have been consumed.
        """
        return {"next_index": int(self._iterator.get_state()["next_index"])}

    def restore(self, state: dict[str, int]) -> None:
        """Goes to a position that ``state`` returned, in this run or in another with the same source, seed and batch.

        Raises:
          UserError: ``state`` is not such a position.
        """
        next_index = state.get("next_index")
        if not isinstance(next_index, int | np.integer) or not 0 <= next_index < _ENDLESS:
            raise UserError(
                f"The saved position of the training data must be a non-negative batch number, but it is {state}; "
                "restore another checkpoint."
            )
        self._iterator.set_state({"next_index": int(next_index)})

    def close(self) -> None:
        """Stops the threads. Nothing can be read afterwards; closing twice is fine."""
        self._iterator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def training_batches(
    source: ImageSource,
    *,
    batch_size: int,
    seed: int,
    mirror: bool,
    neighbours: np.ndarray | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    prefetch: int = 4,
) -> TrainingBatches:
    """Streams shuffled training batches of ``source`` for ever, starting at batch 0.

    Args:
      source: the images; may have fewer than ``batch_size``, a batch then holds some of them several times.
      batch_size: images in a *global* batch, over all processes.
      seed: of shuffling and mirroring, at least 0.
      mirror: flip each image left-right with probability 1/2, drawn anew each epoch. Does not change the order.
      neighbours: int ``[len(source), k]``, the neighbourhood of each image, to draw from; None to show the image itself.
      process_index: which process this is, in ``[0, process_count)`` (``jax.process_index()``).
      process_count: number of processes (``jax.process_count()``); must divide ``batch_size``.
      num_threads: batches read at the same time. A source on disk gains from more; 0 reads in the calling thread.
      prefetch: batches read ahead; 0 reads in the calling thread.

    Raises:
      UserError: the source is empty or an argument is out of range.
    """
    if len(source) == 0:
        raise UserError("The training set holds no images; check the path of the data set.")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise UserError(
            f"process_index must be from 0 to process_count - 1, but they are {process_index} and {process_count}."
        )
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"The global batch of {batch_size} images cannot be divided among {process_count} processes; "
            f"choose a batch_size that is a positive multiple of {process_count}."
        )
    if seed < 0 or num_threads < 0 or prefetch < 0:
        raise UserError(
            f"seed, num_threads and prefetch must not be negative, but they are {seed}, {num_threads} and {prefetch}."
        )
    if 0 in (num_threads, prefetch):
        num_threads = prefetch = 0
    if neighbours is not None and (neighbours.ndim != 2 or len(neighbours) != len(source)):
        raise UserError(
            f"There are {len(source)} training images and neighbourhoods of shape {list(neighbours.shape)}; give one "
            "neighbourhood for each image."
        )
    batches = _BatchReader(source, batch_size, seed, mirror, neighbours, process_index, process_count)
    return TrainingBatches(batches, num_threads, prefetch)


class _BatchReader:
    """Random access to one process's share of each global batch: a pure function of the batch number."""

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        seed: int,
        mirror: bool,
        neighbours: np.ndarray | None,
        process_index: int,
        process_count: int,
    ) -> None:
        self._source, self._seed, self._mirror, self._neighbours = source, seed, mirror, neighbours
        self._batch_size, self._share = batch_size, batch_size // process_count
        self._offset = process_index * self._share

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> LabelledImages:
        start = int(index) * self._batch_size + self._offset
        epochs, places = np.divmod(np.arange(start, start + self._share), len(self._source))
        indices = np.empty(self._share, np.int64)
        chosen = np.zeros(self._share, np.int64)
        mirrored = np.zeros(self._share, bool)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            indices[here] = _epoch_order(len(self._source), self._seed, epoch)[places[here]]
            if self._neighbours is not None:
                chosen[here] = _epoch_neighbours(*self._neighbours.shape, self._seed, epoch)[places[here]]
            if self._mirror:
                mirrored[here] = _epoch_mirroring(len(self._source), self._seed, epoch)[places[here]]
        instances = indices
        if self._neighbours is not None:
            indices = self._neighbours[instances, chosen].astype(np.int64)
        batch = retry(lambda: read_images(self._source, indices), f"Reading batch {index} of the training images")
        if self._mirror:
            batch["image"][mirrored] = batch["image"][mirrored, :, ::-1]
        if self._neighbours is not None:
            batch["instance"] = instances.astype(np.int32)
        return batch


# A few epochs are kept: neighbouring batches share theirs, and threads may be on both sides of an epoch's end.
@functools.lru_cache(maxsize=4)
def _epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch, int64 ``[num_images]``."""
    return np.random.Generator(np.random.PCG64((_SHUFFLE, seed, epoch))).permutation(num_images)


@functools.lru_cache(maxsize=4)
def _epoch_neighbours(num_images: int, k: int, seed: int, epoch: int) -> np.ndarray:
    """Which neighbour stands at each place of one epoch's order, int64 ``[num_images]`` below k."""
    return np.random.Generator(np.random.PCG64((_NEIGHBOUR, seed, epoch))).integers(k, size=num_images)


@functools.lru_cache(maxsize=4)
def _epoch_mirroring(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Which places of one epoch's order are mirrored, bool ``[num_images]``."""
    return np.random.Generator(np.random.PCG64((_MIRROR, seed, epoch))).random(num_images, np.float32) < 0.5
