"""Matching of the classes of generated images from files to the classes of the reference."""

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from noisytwins_jax.data.source import ImageSource
from noisytwins_jax.evaluation.image_files import ALL, ImageFiles, are_numbers
from noisytwins_jax.utils.errors import UserError


class Matched(NamedTuple):
    """Labels of generated images as classes of the reference.

    Attributes:
      labels: class of the reference for each generated image, int32 ``[n]``; None if they have to be compared without
        classes.
      note: a note for the report, or "".
    """

    labels: np.ndarray | None
    note: str


def match_classes(images: ImageFiles, reference: ImageSource) -> Matched:
    """Match the classes of generated images to those of the reference. Not every class needs generated images.

    Class folders, and an ``.npz`` with ``class_names``, match the classes of the same names (numbers may have leading
    zeros). If no name of the reference is among them, folders with numbers as names are class ids, unless the
    reference's classes have numbers as names too. Labels of another ``.npz`` are class ids: for a data set, or a folder
    whose classes are numbered as they are sorted, the positions in the order of classes; for an ``.npz`` its own ids.

    Args:
      images: the generated images.
      reference: the real images.

    Raises:
      UserError: both have classes, and one of the images' is not among the reference's, which is named.
    """
    known = tuple(reference.class_names)
    sides = [name for name, names in (("images", images.class_names), ("reference", known)) if names == (ALL,)]
    if sides:
        have = (
            "Neither the images nor the reference have"
            if len(sides) == 2
            else f"The {sides[0]} of this evaluation have no"
        )
        return Matched(None, f"{have} classes, so everything is compared as one class.")
    classes = _match_to_reference(images, reference, known)
    taken: dict[int, str] = {}
    for name, c in zip(images.class_names, classes, strict=True):
        if c in taken:
            raise UserError(
                f"The classes {taken[c]!r} and {name!r} of the images are one class of the reference, {known[c]!r}; put "
                "them together, or name them as there."
            )
        taken[c] = name
    missing = len(known) - len(classes)
    note = f"There are no generated images of {missing} of {len(known)} classes." if missing else ""
    return Matched(np.array(classes, np.int32)[images.labels], note)


def _match_to_reference(images: ImageFiles, reference: ImageSource, known: Sequence[str]) -> list[int]:
    """Return the reference's class for each class of the images."""
    names = images.class_names
    if images.class_ids is None:
        if are_numbers(names) and not are_numbers(known) and not set(names) & set(known):
            return _match_by_id([int(name) for name in names], {c: c for c in range(len(known))})
        return _match_by_name(names, known)
    if not images.named or not getattr(reference, "named", True):
        return _match_by_id(images.class_ids, _get_class_ids(reference, known))
    if all(c < len(known) and known[c] == name for c, name in zip(images.class_ids, names, strict=True)):
        return list(images.class_ids)  # the same numbering tells classes with equal names apart
    return _match_by_name(names, known)


def _get_class_ids(reference: ImageSource, known: Sequence[str]) -> dict[int, int]:
    """Return a dict from class id to the reference's class."""
    if (ids := getattr(reference, "class_ids", None)) is not None:
        return {c: position for position, c in enumerate(ids)}
    if isinstance(reference, ImageFiles) and are_numbers(known) and [*map(int, known)] != [*range(len(known))]:
        raise UserError(
            f"The class folders of the reference are called by numbers ({_abbreviate(known)}) that are not 0 to "
            f"{len(known) - 1}, so it is not clear which class ids of the images they are; save class_names in the "
            ".npz of the images, or give them as class folders too."
        )
    return {c: c for c in range(len(known))}


def _match_by_id(ids: Sequence[int], places: Mapping[int, int]) -> list[int]:
    for c in ids:
        if c not in places:
            raise UserError(
                f"The images have the class id {c}, but the reference's are {min(places)} to {max(places)}"
                f"{'' if len(places) > max(places) - min(places) else ' with gaps'}; number the classes as there, or name them "
                f"(class folders, or class_names in an .npz)."
            )
    return [places[c] for c in ids]


def _match_by_name(names: Sequence[str], known: Sequence[str]) -> list[int]:
    numbers = are_numbers(names) and are_numbers(known)
    places: dict[str | int, list[int]] = {}
    for c, name in enumerate(known):
        places.setdefault(int(name) if numbers else name, []).append(c)
    classes = []
    for name in names:
        candidates = places.get(int(name) if numbers else name, ())
        if not candidates:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UserError(
                f"The images have a class {name!r}, which is none of the {len(known)} of the reference (the nearest is "
                f"{nearest!r}); name the classes as there, or leave the images' out (a flat folder, an .npz without labels) "
                "to compare everything as one class."
            )
        if len(candidates) > 1:
            raise UserError(
                f"The reference has {len(candidates)} classes called {name!r}, which cannot be told apart by name; give the "
                "images as an .npz with labels, numbered as the reference's classes."
            )
        classes.append(candidates[0])
    return classes


def _abbreviate(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
