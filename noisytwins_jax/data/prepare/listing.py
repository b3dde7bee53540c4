"""A data set before its preparation: the images, their splits and classes, and how to read them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

_MAX_EXAMPLES = 10  # of each kind of problem


@dataclass(frozen=True, slots=True)
class Item:
    """An image to prepare.

    Attributes:
      name: name of the image in messages and in the prepared data; unique within its split.
      label: class id, from 0.
      location: where the listing's `Reader` finds the image; must be picklable.
    """

    name: str
    label: int
    location: Any


class RenderedImage(NamedTuple):
    """An image that a reader renders at its final size instead of reading a file.

    Attributes:
      image: uint8 ``[resolution, resolution, channels]``.
      factors: float32 ``[len(Listing.factor_names)]``, the image's true factors.
    """

    image: np.ndarray
    factors: np.ndarray


# Reads one image: the bytes of an image file, decoded pixels uint8 [H, W] or [H, W, 3], or a rendered image. Several
# processes call it, so it must be picklable (a module's function, a partial of one or an instance of a class); it raises
# OSError or ValueError if an image cannot be read.
Reader = Callable[[Item], bytes | np.ndarray | RenderedImage]


@dataclass
class Problems:
    """Errors in a source by kind, and counts of converted images.

    A kind is a plural noun phrase that completes "3 …": ``"unreadable images"``, ``"lines that are not '<path> <class
    id>'"``. The user decides whether errors stop the preparation or are left out.
    """

    wrong: dict[str, list[str]] = field(default_factory=dict)
    converted: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, what: str) -> None:
        """Add an error; `what` says in one line where it is."""
        self.wrong.setdefault(kind, []).append(what)

    def convert(self, kind: str) -> None:
        """Count a converted image, for example of kind ``"grey images"``; this is not an error."""
        self.converted[kind] += 1

    def merge(self, other: "Problems") -> None:
        """Add the problems of another instance."""
        for kind, errors in other.wrong.items():
            self.wrong.setdefault(kind, []).extend(errors)
        self.converted += other.converted

    def __len__(self) -> int:
        """Return the number of errors."""
        return sum(map(len, self.wrong.values()))

    def describe(self, max_examples: int | None = _MAX_EXAMPLES) -> str:
        """Return all kinds with their counts and the first few examples (all for ``None``), one per line."""
        lines = []
        for kind, errors in self.wrong.items():
            lines.append(f"{len(errors)} {kind}:")
            lines += [f"  {error}" for error in errors[:max_examples]]
            if max_examples is not None and len(errors) > max_examples:
                lines.append(f"  and {len(errors) - max_examples} more")
        lines += [f"{count} {kind}, converted" for kind, count in sorted(self.converted.items())]
        return "\n".join(lines)


@dataclass(frozen=True)
class Listing:
    """A data set to prepare.

    Attributes:
      class_names: one name per class, in the order of the class ids.
      splits: ``"train"`` and, optionally, ``"reference"``, ``"classifier"`` and ``"full"``: the items of each in their
        published order. Without a reference split, metrics compare with the training images. The classifier split is a balanced
        set for training the metrics' networks; the full split is all images before the tail was cut off.
      read: reads an item.
      description: one or two sentences on the data set.
      homepage: web page of the data set; empty for none.
      citation: BibTeX; empty for none.
      published_counts: published numbers of images per split, where known; a difference is printed, but is no error.
      factor_names: names of the true factors of rendered images, else empty.
      few_classes: class ids whose generated images UTLO's protocol also evaluates alone; empty where none are published.
      problems: errors found in the source so far; `splits` does not contain the items concerned.
    """

    class_names: Sequence[str]
    splits: dict[str, list[Item]]
    read: Reader
    description: str
    homepage: str = ""
    citation: str = ""
    published_counts: dict[str, int] = field(default_factory=dict)
    factor_names: tuple[str, ...] = ()
    few_classes: tuple[int, ...] = ()
    problems: Problems = field(default_factory=Problems)
