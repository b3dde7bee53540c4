"""iNaturalist 2019, a naturally long-tailed data set of 1010 species."""

import json
from pathlib import Path
from typing import Any

from noisytwins_jax.data.prepare.files import list_files, read_file
from noisytwins_jax.data.prepare.image_lists import find_items
from noisytwins_jax.data.prepare.listing import Listing, Problems
from noisytwins_jax.utils.errors import UserError, first_line

_IMAGES = "train_val2019"
_HOMEPAGE = "https://github.com/visipedia/inat_comp/tree/master/2019"


def inat19(source: Path, unpack_in: Path, annotations: Path | None = None) -> Listing:
    """List iNaturalist 2019: 265,213 training images of 1010 species; the reference is its validation set, 3 each.

    Args:
      source: train_val2019 as .tar.gz, .tar, .zip or folder, or a folder that holds one of these. The top folder of
        an archive may be missing or repeated.
      unpack_in: folder in which a compressed archive is unpacked.
      annotations: folder of train2019.json and val2019.json; by default the source itself or its parent folder.

    Returns:
      The listing: items in the order of ``images`` in the files, named by their ``file_name``. Labels are the category
      ids, renumbered in order from 0 if necessary.

    Raises:
      UserError: images or annotations are missing, damaged, or do not belong together.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"There is no {source}; give {_IMAGES}.tar.gz or the folder {_IMAGES} that is in it.")
    paths = [_annotation_file(source, annotations, name) for name in ("train2019.json", "val2019.json")]
    train, reference = map(_read_json, paths)
    problems = Problems()

    categories = {c["id"]: str(c.get("name", c["id"])) for c in train["categories"]}
    labels = {category: label for label, category in enumerate(sorted(categories))}
    files = {_below_top(path): location for path, location in list_files(_image_source(source), unpack_in).items()}
    splits = {}
    for split, path, content in (("train", paths[0], train), ("reference", paths[1], reference)):
        entries = _entries(path, content, labels, problems)
        if not entries:
            raise UserError(f"{path} has no image of a known category; get the public file again ({_HOMEPAGE}).")
        splits[split] = find_items(
            entries, lambda name: files.get(_below_top(name)), problems, listed_in=path, source=source
        )
    with_images = {item.label for item in splits["train"]}
    for category, label in labels.items():
        if label not in with_images:
            problems.add("categories without training images", f"{paths[0]}: {category} ({categories[category]})")
    return Listing(
        class_names=[categories[category] for category in labels],
        splits=splits,
        read=read_file,
        description=(
            "iNaturalist 2019: photographs of 1010 species, naturally long-tailed; the reference is its validation set, "
            "three images of each species."
        ),
        homepage=_HOMEPAGE,
        citation=(
            "@inproceedings{vanhorn2018inaturalist,\n"
            "  title={The iNaturalist Species Classification and Detection Dataset},\n"
            "  author={Van Horn, Grant and Mac Aodha, Oisin and Song, Yang and Cui, Yin and Sun, Chen and "
            "Shepard, Alex and Adam, Hartwig and Perona, Pietro and Belongie, Serge},\n"
            "  booktitle={IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},\n"
            "  year={2018}\n"
            "}"
        ),
        published_counts={"train": 265213, "reference": 3030},
        problems=problems,
    )


def _image_source(source: Path) -> Path:
    """Return the folder or archive of the images within a folder, or the source itself."""
    names = (_IMAGES, f"{_IMAGES}.tar.gz", f"{_IMAGES}.tar", f"{_IMAGES}.zip")
    return next((source / name for name in names if (source / name).exists()), source)


def _annotation_file(source: Path, annotations: Path | None, name: str) -> Path:
    """Find a file of annotations."""
    folders = [Path(annotations)] if annotations else [source, source.parent]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"There is no {name} in {' or '.join(map(str, folders))}; get the public file ({_HOMEPAGE}), and put it there or "
        "say which folder has it."
    )


def _read_json(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read annotations, and check the entries that are used."""
    needed: dict[str, dict[str, type]] = {
        "images": {"id": int, "file_name": str},
        "annotations": {"image_id": int, "category_id": int},
        "categories": {"id": int},
    }
    try:
        content = json.loads(path.read_bytes())
        for part, keys in needed.items():
            for entry in content[part]:
                for key, kind in keys.items():
                    if not isinstance(entry[key], kind):
                        raise TypeError(f"{key} of one of the {part} is {entry[key]!r}")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(
            f"{path} does not hold annotations in the format of COCO ({reason}): get the public file again ({_HOMEPAGE})."
        ) from error


def _entries(
    path: Path, content: dict[str, list[dict[str, Any]]], labels: dict[int, int], problems: Problems
) -> list[tuple[str, int]]:
    """Return file names and labels of the images, in order; inconsistent entries are left out."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    categories: dict[int, int] = {}
    for annotation in content["annotations"]:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in names:
            problems.add("annotations of images that do not exist", f"{path}: image {image}")
        elif categories.setdefault(image, category) != category:
            problems.add("annotations that give an image another category", f"{path}: {names[image]}: {category}")
    entries, seen = [], set()
    for image in content["images"]:
        name = image["file_name"]
        category = categories.get(image["id"])
        if name in seen or names[image["id"]] != name:
            problems.add("images whose id or name comes twice", f"{path}: {name}")
            continue
        seen.add(name)
        if category is None:
            problems.add("images without an annotation", f"{path}: {name}")
        elif category not in labels:
            problems.add("images of unknown categories", f"{path}: {name}: {category}")
        else:
            entries.append((name, labels[category]))
    return entries


def _below_top(path: str) -> str:
    """Return a path without the leading folders of all images."""
    parts = path.split("/")
    while parts[0] == _IMAGES:
        parts = parts[1:]
    return "/".join(parts)
