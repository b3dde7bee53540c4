"""Published lists of images, a line ``<path> <class id>`` an image, and what is made of them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from noisytwins_jax.data.prepare.files import Location
from noisytwins_jax.data.prepare.listing import Item, Problems
from noisytwins_jax.utils.errors import UserError, first_line

_MAX_CLASSES = 1_000_000  # a larger class id is a slip


def read_list(path: Path, problems: Problems) -> list[tuple[str, int]]:
    """Reads a list of images; spaces or tabs separate path and class id, and a path may contain spaces.

    Args:
      path: UTF-8 text, a line ``<path> <class id>`` an image; empty lines do not count.
      problems: takes lines of another form, and paths that come again; both are left out.

    Returns:
      Paths, without ``./`` in front, and class ids of at least 0, in the order of the list.

    Raises:
      UserError: there is no such list, or nothing in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(
            f"The list {path} cannot be read ({first_line(error)}); it is a text file with a line '<path> <class id>' "
            "for each image."
        ) from error
    labels: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line:
            continue
        name, label = (["", *line.rsplit(maxsplit=1)])[-2:]
        name = name.removeprefix("./")
        if not name or not (label.isascii() and label.isdigit() and len(label) <= 9 and int(label) < _MAX_CLASSES):
            problems.add("list lines that are not '<path> <class id>'", f"{path}:{number}: {line}")
        elif name in labels:
            problems.add("paths that a list has twice", f"{path}:{number}: {line}")
        else:
            labels[name] = int(label)
    if not labels:
        raise UserError(f"The list {path} names no image; it needs a line '<path> <class id>' for each image.")
    return list(labels.items())


def find_items(
    entries: Sequence[tuple[str, int]],
    find: Callable[[str], Location | None],
    problems: Problems,
    *,
    listed_in: Path,
    source: Path,
) -> list[Item]:
    """Items of the images of a list.

    Args:
      entries: paths and class ids.
      find: gives the place of a path, or None.
      problems: takes the images that are missing; they are left out.
      listed_in: the list, for messages.
      source: where images are looked for, for messages.

    Raises:
      UserError: none of the images is there.
    """
    locations = [find(name) for name, _ in entries]
    if not any(location is not None for location in locations):
        raise UserError(
            f"None of the {len(entries)} images of {listed_in} is in {source}, the first one being {entries[0][0]}; "
            "give the source that holds them."
        )
    items = []
    for (name, label), location in zip(entries, locations, strict=True):
        if location is None:
            problems.add("listed images that are missing", f"{listed_in}: {name}")
        else:
            items.append(Item(name, label, location))
    return items


def class_folders(entries: Iterable[tuple[str, int]]) -> dict[int, list[str]]:
    """Names of the folders in which the images of each class lie directly, the most frequent one first."""
    folders: dict[int, Counter[str]] = {}
    for name, label in entries:
        parts = name.split("/")
        if len(parts) > 1:
            folders.setdefault(label, Counter())[parts[-2]] += 1
    return {label: [folder for folder, _ in counts.most_common()] for label, counts in folders.items()}
