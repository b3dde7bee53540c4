"""Which variables of a network come from another network of the same family, and how class tables are carried over.

What has the same name and shape is copied. Tables with a row for each class are put together row by row, since the
classes may be others. What has another shape, or is not in the source, stays as it was initialised.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Path = tuple[str, ...]
Shape = tuple[int, ...]
_FIRST_LAYER = ("params", "mapping", "fc0", "weight")  # of StyleGAN2: its inputs are z, then the class


class ClassRows(NamedTuple):
    """The rows of the source's class tables that the classes of a run start from.

    Attributes:
      rows: index of the source's class for each class of the run, -1 for the mean of all.
      gain: factor on the rows: tables that a network divides by √classes grow with their number.
      noise: standard deviation of the noise on rows that start from the mean, in units of the rows' own deviation.
      seed: of that noise.
    """

    rows: tuple[int, ...]
    gain: float
    noise: float
    seed: int

    def build(self, table: np.ndarray, path: Path) -> np.ndarray:
        """Return the table ``[classes, D]`` of the run, float32, from the source's ``[source's classes, D]``."""
        mean, rng = table.mean(axis=0), np.random.default_rng([self.seed, zlib.crc32("/".join(path).encode())])
        spread = table.std() if len(table) == 1 else table.std(axis=0)
        noise = self.noise * spread * rng.standard_normal((len(self.rows), *table.shape[1:]))
        rows = [mean + noise[i] if row < 0 else table[row] for i, row in enumerate(self.rows)]
        return (self.gain * np.stack(rows)).astype(np.float32)


class Transfer(NamedTuple):
    """Variables from the source by path, and the paths of every kind.

    Attributes:
      values: new values by path.
      copied, tables, widened: their paths, by how they were made.
      fresh: paths of the run's network that stay as they were initialised.
      left: paths of the source that have no use here.
    """

    values: dict[Path, np.ndarray]
    copied: list[Path]
    tables: list[Path]
    widened: list[Path]
    fresh: list[Path]
    left: list[Path]


def match_classes(source: Sequence[str], classes: Sequence[str], how: str) -> tuple[int, ...]:
    """Return for each of `classes` the index of the source's class that it starts from, -1 for the mean of all.

    Args:
      source: class names of the source.
      classes: class names of the run.
      how: ``"name"`` for the class of the same name, ``"index"`` for that of the same number, ``"mean"`` for none.
    """
    if how == "index":
        return tuple(i if i < len(source) else -1 for i in range(len(classes)))
    indices = {name.casefold(): i for i, name in enumerate(source)} if how == "name" else {}
    return tuple(indices.get(name.casefold(), -1) for name in classes)


def transfer(
    shapes: Mapping[Path, Shape], source: Mapping[Path, np.ndarray], class_tables: set[Path], rows: ClassRows
) -> Transfer:
    """Choose and build the variables that a network takes from another.

    Args:
      shapes: shape of every variable of the run's network.
      source: variables of the other network.
      class_tables: paths of variables with a row for each class.
      rows: how to put these together.
    """
    result = Transfer({}, [], [], [], [], sorted(source.keys() - shapes.keys()))
    for path, shape in shapes.items():
        value = source.get(path)
        if value is None:
            result.fresh.append(path)
        elif path in class_tables and value.shape[1:] == shape[1:]:
            result.values[path] = rows.build(value, path)
            result.tables.append(path)
        elif value.shape == shape:
            result.values[path] = value
            result.copied.append(path)
        elif path == _FIRST_LAYER and value.shape[1] == shape[1]:
            result.values[path] = _with_inputs(value, shape[0])
            result.widened.append(path)
        else:
            result.fresh.append(path)
    return result


def _with_inputs(weight: np.ndarray, inputs: int) -> np.ndarray:
    """Cut off inputs of a dense layer ``[in, out]``, or add inputs without effect; the others keep theirs.

    Such layers divide by the root of the number of inputs.
    """
    kept = min(inputs, len(weight))
    result = np.zeros((inputs, *weight.shape[1:]), np.float32)
    result[:kept] = weight[:kept] * math.sqrt(inputs / len(weight))
    return result
