"""The training input: an endless, shuffled, resumable stream of batches, built on Grain.

The stream is one global sequence of images: epoch after epoch, each a new permutation of the whole set, with no image
dropped between epochs. Global batch ``k`` holds positions ``k * batch_size`` to ``(k + 1) * batch_size - 1`` of the
sequence, and process ``p`` of ``P`` reads the ``p``-th of ``P`` equal, contiguous slices of it: concatenated in process
order, the slices are the batch that a single process would read. Shuffling and mirroring depend only on the seed and
the global position, so a position saved with one number of processes resumes with any other.

With the images' neighbourhoods (IC-GAN) the sequence is one of instances: each is replaced by an image of its
neighbourhood, sampled again every epoch, and the batch also holds the instance's index.

Grain provides the threads, the prefetching and the iterator state. Its elements are whole batches: with one element per
image, Grain's overhead per image far exceeds the time to copy a small image.
"""

import functools
from types import TracebackType
from typing import Self

import grain
import numpy as np

from noisytwins_jax.data.source import ImageSource, LabelledImages, read_images
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.retry import retry

_NUM_BATCHES = 2**40  # more than any run has, and positions still fit an int64
_SHUFFLE, _MIRROR, _NEIGHBOUR = 1, 2, 3  # independent random streams of an epoch, by purpose


class TrainingBatches:
    """An endless iterator over this process's slices of the global batches; see ``training_batches``.

    Each element is ``{"image": uint8 [b, H, W, C], "label": int32 [b]}`` with ``b = batch_size / process_count``, and
    with neighbourhoods also ``"instance": int32 [b]``; the arrays belong to the caller. Also a context manager.
    """

    def __init__(self, batches: "_BatchReader", num_threads: int, prefetch: int) -> None:
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
        self._iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LabelledImages:
        """Return the next batch of this process."""
        return next(self._iterator)

    def state(self) -> dict[str, int]:
        """Return the position: ``{"next_index": k}``, ``k`` the index of the global batch that the next call returns.

        Prefetched batches do not count. ``k`` is the same on every process and for every number of processes, so one
        copy suffices; it depends only on ``batch_size``, as ``k * batch_size`` images have been consumed.
        """
        return {"next_index": int(self._iterator.get_state()["next_index"])}

    def restore(self, state: dict[str, int]) -> None:
        """Move to a position that ``state`` returned in a run with the same source, seed and batch size.

        Raises:
          UserError: ``state`` is not a valid position.
        """
        next_index = state.get("next_index")
        if not isinstance(next_index, int | np.integer) or not 0 <= next_index < _NUM_BATCHES:
            raise UserError(
                f"The saved position of the training data must be a non-negative batch number, but it is {state}; "
                "restore another checkpoint."
            )
        self._iterator.set_state({"next_index": int(next_index)})

    def close(self) -> None:
        """Stop the threads. Nothing can be read afterwards; closing twice is allowed."""
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
    """Stream shuffled training batches of ``source`` endlessly, starting at batch 0.

    Args:
      source: the images; if fewer than ``batch_size``, a batch holds some of them several times.
      batch_size: images in a *global* batch, over all processes.
      seed: seed of shuffling, mirroring and neighbours, at least 0.
      mirror: flip each image left-right with probability 1/2, sampled again every epoch. Does not change the order.
      neighbours: int ``[len(source), k]``, the neighbourhood of each image to sample from; None for the image itself.
      process_index: index of this process, in ``[0, process_count)`` (``jax.process_index()``).
      process_count: number of processes (``jax.process_count()``); must divide ``batch_size``.
      num_threads: batches read concurrently. A source on disk gains from more; 0 reads in the calling thread.
      prefetch: batches prefetched; 0 reads in the calling thread.

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
    """Random access to one process's slice of each global batch: a pure function of the batch index."""

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
        self._batch_size, self._local_batch_size = batch_size, batch_size // process_count
        self._offset = process_index * self._local_batch_size

    def __len__(self) -> int:
        return _NUM_BATCHES

    def __getitem__(self, index: int) -> LabelledImages:
        start = int(index) * self._batch_size + self._offset
        epochs, positions = np.divmod(np.arange(start, start + self._local_batch_size), len(self._source))
        indices = np.empty(self._local_batch_size, np.int64)
        chosen = np.zeros(self._local_batch_size, np.int64)
        mirrored = np.zeros(self._local_batch_size, bool)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            mask = epochs == epoch
            indices[mask] = _epoch_order(len(self._source), self._seed, epoch)[positions[mask]]
            if self._neighbours is not None:
                chosen[mask] = _epoch_neighbours(*self._neighbours.shape, self._seed, epoch)[positions[mask]]
            if self._mirror:
                mirrored[mask] = _epoch_mirroring(len(self._source), self._seed, epoch)[positions[mask]]
        instances = indices
        if self._neighbours is not None:
            indices = self._neighbours[instances, chosen].astype(np.int64)
        batch = retry(lambda: read_images(self._source, indices), f"Reading batch {index} of the training images")
        if self._mirror:
            batch["image"][mirrored] = batch["image"][mirrored, :, ::-1]
        if self._neighbours is not None:
            batch["instance"] = instances.astype(np.int32)
        return batch


# Consecutive batches share an epoch, and threads may read on both sides of its end, so a few epochs are cached.
@functools.lru_cache(maxsize=4)
def _epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation of one epoch, int64 ``[num_images]``."""
    return np.random.Generator(np.random.PCG64((_SHUFFLE, seed, epoch))).permutation(num_images)


@functools.lru_cache(maxsize=4)
def _epoch_neighbours(num_images: int, k: int, seed: int, epoch: int) -> np.ndarray:
    """Sample the neighbour used at each position of one epoch, int64 ``[num_images]`` below k."""
    return np.random.Generator(np.random.PCG64((_NEIGHBOUR, seed, epoch))).integers(k, size=num_images)


@functools.lru_cache(maxsize=4)
def _epoch_mirroring(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Sample which positions of one epoch are mirrored, bool ``[num_images]``."""
    return np.random.Generator(np.random.PCG64((_MIRROR, seed, epoch))).random(num_images, np.float32) < 0.5
