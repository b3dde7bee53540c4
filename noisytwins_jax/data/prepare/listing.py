"""What a data set is before it is prepared: which images, in which split and class, and how each one is read."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

_SHOWN = 10  # examples of each kind of problem


@dataclass(frozen=True, slots=True)
class Item:
    """One image that is to be prepared.

    Attributes:
      name: what the image is called in messages and in the prepared data; unique within its split.
      label: class id, from 0.
      place: what the listing's `Reader` needs to find it; must survive pickling.
    """

    name: str
    label: int
    location: Any


class RenderedImage(NamedTuple):
    """An image that a reader makes at its final size instead of reading it from a file.

    Attributes:
      image: uint8 ``[resolution, resolution, channels]``.
      factors: float32 ``[len(Listing.factor_names)]``, the true factors that it was made from.
    """

    image: np.ndarray
    factors: np.ndarray


# Reads one image: the bytes of an image file, decoded pixels uint8 [H, W] or [H, W, 3], or a drawn image. It is called
# in several processes, so it must survive pickling (a function of a module, a partial of one or an instance of a class);
# it raises OSError or ValueError for what cannot be read.
Reader = Callable[[Item], bytes | np.ndarray | RenderedImage]


class Problems:
    """What is wrong with a source, by kind, and what was put right, counted.

    A kind is a noun phrase in the plural that completes "3 …": ``"unreadable images"``, ``"lines that are not '<path>
    <class id>'"``. The person who prepares decides whether the wrong things stop the preparation or are left out.
    """

    def __init__(self) -> None:
        self.wrong: dict[str, list[str]] = {}
        self.converted: Counter[str] = Counter()

    def add(self, kind: str, what: str) -> None:
        """One thing that is wrong: `what` says where, in one line."""
        self.wrong.setdefault(kind, []).append(what)

    def convert(self, kind: str, count: int = 1) -> None:
        """Images that were converted, for example ``"grey images"``: no mistake, but worth knowing."""
        self.converted[kind] += count

    def merge(self, other: "Problems") -> None:
        """Takes over what another one collected."""
        for kind, things in other.wrong.items():
            self.wrong.setdefault(kind, []).extend(things)
        self.converted += other.converted

    def __len__(self) -> int:
        """How many things are wrong."""
        return sum(map(len, self.wrong.values()))

    def describe(self, shown: int | None = _SHOWN) -> str:
        """All kinds with their counts and the first few of each (all for ``None``), a thing a line."""
        lines = []
        for kind, things in self.wrong.items():
            lines.append(f"{len(things)} {kind}:")
            lines += [f"  {thing}" for thing in things[:shown]]
            if shown is not None and len(things) > shown:
                lines.append(f"  and {len(things) - shown} more")
        lines += [f"{count} {kind}, converted" for kind, count in sorted(self.converted.items())]
        return "\n".join(lines)


@dataclass(frozen=True)
class Listing:
    """A data set, ready to be prepared.

    Attributes:
      class_names: one name a class, in the order of the class ids.
      splits: ``"train"`` and, where metrics have real images of their own, ``"reference"``: the items of each in their
        published order. Without a reference split, metrics compare with the training images. ``"classifier"``, if there
        is one, is a balanced split for the networks that measure.
      read: how an item is read.
      description: what the data set is, one or two sentences.
      homepage: where it comes from; empty for none.
      citation: BibTeX; empty for none.
      published_counts: images of each split as published, where known: a difference is said, and is no error.
      factor_names: names of the true factors of drawn images, else empty.
      problems: what is wrong with the source so far; items that are wrong are not in `splits`.
    """

    class_names: Sequence[str]
    splits: dict[str, list[Item]]
    read: Reader
    description: str
    homepage: str = ""
    citation: str = ""
    published_counts: dict[str, int] = field(default_factory=dict)
    factor_names: tuple[str, ...] = ()
    problems: Problems = field(default_factory=Problems)
