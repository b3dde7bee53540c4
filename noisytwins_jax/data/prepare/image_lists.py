"""Published lists of images, with a line ``<path> <class id>`` per image."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from noisytwins_jax.data.prepare.files import Location
from noisytwins_jax.data.prepare.listing import Item, Problems
from noisytwins_jax.utils.errors import UserError, first_line

_MAX_CLASSES = 1_000_000  # a larger class id must be an error


def read_list(path: Path, problems: Problems) -> list[tuple[str, int]]:
    """Read a list of images; spaces or tabs separate path and class id, and a path may contain spaces.

    Args:
      path: UTF-8 text with a line ``<path> <class id>`` per image; empty lines are ignored.
      problems: collects malformed lines and repeated paths; both are left out.

    Returns:
      Paths, without a leading ``./``, and class ids of at least 0, in the order of the list.

    Raises:
      UserError: the list is missing or empty.
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
    """Build the items of a list of images.

    Args:
      entries: paths and class ids.
      find: returns the location of a path, or None.
      problems: collects the missing images, which are left out.
      listed_in: path of the list, for messages.
      source: the images' folder or archive, for messages.

    Raises:
      UserError: none of the images exists.
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
    """Return the names of the immediate parent folders of each class's images, the most frequent first."""
    folders: dict[int, Counter[str]] = {}
    for name, label in entries:
        parts = name.split("/")
        if len(parts) > 1:
            folders.setdefault(label, Counter())[parts[-2]] += 1
    return {label: [folder for folder, _ in counts.most_common()] for label, counts in folders.items()}
