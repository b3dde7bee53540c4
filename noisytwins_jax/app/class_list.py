"""The classes of a run from head to tail, with the numbers of images that it was trained with."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.evaluation.results import EVALUATION_FILE
from noisytwins_jax.generation.sheets import head_to_tail
from noisytwins_jax.utils.errors import UserError


class ClassList(NamedTuple):
    """Classes by id.

    Attributes:
      names: of every class.
      counts: training images of every class; None if they are not known.
      groups: ids of ``head``, ``medium`` and ``tail``; empty if the counts are not known.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...] | None
    groups: dict[str, list[int]]

    @property
    def order(self) -> list[int]:
        """All ids from head to tail; by id if the counts are not known."""
        return list(range(len(self.names))) if self.counts is None else head_to_tail(self.counts)

    def sorted(self, classes: list[int]) -> list[int]:
        """Sort ids from head to tail."""
        return [c for c in self.order if c in set(classes)]

    def spread(self, size: int) -> list[int]:
        """Return at most `size` classes at even distances from head to tail."""
        order = self.order
        chosen = np.linspace(0, len(order) - 1, min(size, len(order))).round().astype(int)
        return [order[i] for i in chosen]


def read_class_list(workdir: Path, config: RunConfig, names: tuple[str, ...]) -> ClassList:
    """Read the counts from the run's evaluation, or else from its training data if they are at hand."""
    counts = _evaluated_counts(workdir, len(names))
    if counts is None:
        try:
            counts = load_data(config.data).train.class_counts
        except (UserError, OSError):
            counts = None
    if counts is None or len(counts) != len(names):
        return ClassList(names, None, {})
    groups = class_groups(counts, config.data.group_thresholds)
    return ClassList(names, tuple(map(int, counts)), {name: ids.tolist() for name, ids in groups.items()})


def _evaluated_counts(workdir: Path, num_classes: int) -> list[int] | None:
    """Return the counts that an evaluation recorded, None if there is none or it lacks some."""
    try:
        rows = json.loads((workdir / EVALUATION_FILE).read_text())["per_class"]
        counts = {int(row["class"]): int(row["n_train"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [counts[c] for c in range(num_classes)] if sorted(counts) == list(range(num_classes)) else None
