"""Data sets of StyleGAN2-ADA, StyleGAN3 and EDM: a zip or folder of images, with their class ids in ``dataset.json``.

The file holds ``{"labels": [["00000/img00000000.png", 6], …]}``, or ``{"labels": null}`` for images without classes.
Names are relative to its folder.
"""

import json
import re
from typing import NamedTuple

from noisytwins_jax.data.prepare.files import Location, is_image, read_location
from noisytwins_jax.data.prepare.listing import Problems
from noisytwins_jax.utils.errors import UserError, first_line

LABELS_FILE = "dataset.json"
_MAX_CLASSES = 1_000_000  # a larger class id must be an error
_LAYOUT = 'its content is to be {"labels": [[<image>, <class id>], ...]} with class ids from 0, or {"labels": null}'
_NVIDIA_NAME = re.compile(r"(\d{5})/img\1\d{3}\.png")  # these folders are no classes


class LabelledFiles(NamedTuple):
    """The images of such a data set.

    Attributes:
      files: location by name relative to the folder of the labels, sorted by name.
      labels: class id from 0 by name, for each of `files`; None for images without classes.
    """

    files: dict[str, Location]
    labels: dict[str, int] | None


def find_labelled(
    files: dict[str, Location], source: str, problems: Problems, labels_file: str | None = None
) -> LabelledFiles | None:
    """Return the images of a data set of this format; None if `files` are of another one.

    Args:
      files: all files of the source, by path.
      source: its name for messages.
      problems: collects images without a label or with two, which are left out, and labels without an image.
      labels_file: name of the file of labels; by default `LABELS_FILE`, where it has labels.

    Raises:
      UserError: the file of labels is missing or malformed, its labels are vectors, or no image has one.
    """
    name = labels_file or LABELS_FILE
    files = {path.replace("\\", "/"): location for path, location in files.items()}
    images = sorted(filter(is_image, files))
    folders = [path.removesuffix(name) for path in files if f"/{path}".endswith(f"/{name}")]
    folder = next((f for f in folders if all(image.startswith(f) for image in images)), None)
    if folder is None and labels_file is not None:
        raise UserError(f"{source} has no file {labels_file} beside its images; give the name of its file of labels.")
    if not images:
        return None
    if folder is None:
        unlabelled = all(map(_NVIDIA_NAME.fullmatch, images))
        return LabelledFiles({path: files[path] for path in images}, None) if unlabelled else None
    found = {path.removeprefix(folder): files[path] for path in images}
    where = f"{source}/{folder}{name}"
    content = _read_json(files[folder + name], where)
    if not isinstance(content, dict) or "labels" not in content:
        if labels_file is None:  # a file of something else
            return None
        raise UserError(f'{where} has no "labels"; {_LAYOUT}.')
    if content["labels"] is None:
        return LabelledFiles(found, None)
    labels = _parse_labels(content["labels"], where)
    if not labels.keys() & found.keys():
        raise UserError(
            f"{where} labels none of the {len(found)} images beside it: it names {next(iter(labels))}, and the first image "
            f"is {next(iter(found))}; names are relative to the folder of the file."
        )
    kept = {}
    for path in found:
        ids = labels.get(path, set())
        if len(ids) == 1:
            kept[path] = ids.pop()
        elif ids:
            problems.add(f"images with two labels in {name}", f"{path}: {' and '.join(map(str, sorted(ids)))}")
        else:
            problems.add(f"images without a label in {name}", path)
    for path in sorted(labels.keys() - found.keys()):
        problems.add(f"labels in {name} of images that are not there", path)
    return LabelledFiles({path: found[path] for path in kept}, kept)


def _read_json(location: Location, where: str) -> object:
    try:
        return json.loads(read_location(location))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{where} cannot be read as JSON ({first_line(error)}); write it again, or remove it."
        ) from None


def _parse_labels(entries: object, where: str) -> dict[str, set[int]]:
    """Return all class ids that each name is given."""
    labels: dict[str, set[int]] = {}
    for entry in entries if isinstance(entries, list) and entries else [entries]:
        match entry:
            case [str(path), list()]:
                raise UserError(
                    f"{where} labels images with vectors (the first one is {path}), and networks here take one class id for each "
                    "image: write whole numbers instead."
                )
            case [str(path), int(label)] if label in range(_MAX_CLASSES) and not isinstance(label, bool):
                labels.setdefault(path.replace("\\", "/").removeprefix("./"), set()).add(label)
            case _:
                raise UserError(f"{where} has the entry {json.dumps(entry)[:100]}; {_LAYOUT}.")
    return labels
