"""Data sets with a folder for each class: the user's own, AnimalFace and ImageNet Carnivores."""

import dataclasses
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from noisytwins_jax.data.long_tail import long_tail_counts
from noisytwins_jax.data.prepare.files import Location, is_image, is_visible, list_files, read_file
from noisytwins_jax.data.prepare.image_lists import class_folders, find_items, read_list
from noisytwins_jax.data.prepare.labels_file import LABELS_FILE, LabelledFiles, find_labelled
from noisytwins_jax.data.prepare.listing import Item, Listing, Problems
from noisytwins_jax.data.source import seeded_generator
from noisytwins_jax.utils.errors import UserError

_IGNORED = ("thumbs.db", "desktop.ini", ".txt", ".json", ".csv", ".md")  # suffixes of file names, in lower case
_REFERENCES = ("val", "valid", "validation", "test")
_LAYOUT = "give a folder or archive with a folder of images for each class, or with such folders in train and val"

_Classes = dict[str, list[tuple[str, Location]]]  # names and locations of each class's images, sorted


@dataclasses.dataclass(frozen=True)
class _Tree:
    """The files of a source, or of a folder in it.

    Attributes:
      name: name for messages.
      files: locations by path.
      folder: the folder of the files; None in an archive.
      prefix: prefix of item names before the path.
    """

    name: str
    files: dict[str, Location]
    folder: Path | None
    prefix: str = ""

    def tops(self) -> set[str]:
        """Return the names of the top-level folders that contain files."""
        return {path.split("/")[0] for path in self.files if "/" in path}

    def below(self, top: str, prefix: str) -> "_Tree":
        """Return the content of a top-level folder."""
        files = {p.removeprefix(f"{top}/"): location for p, location in self.files.items() if p.startswith(f"{top}/")}
        return _Tree(f"{self.name}/{top}", files, self.folder / top if self.folder else None, prefix)


def image_folder(
    source: Path,
    unpack_in: Path,
    imbalance_factor: float = 1.0,
    largest: int | None = None,
    seed: int = 0,
    train_list: Path | None = None,
    reference_list: Path | None = None,
    labels_json: str | None = None,
) -> Listing:
    """List images in a folder per class, or in any folders with a list of images and class ids.

    A data set of StyleGAN2-ADA, StyleGAN3 or EDM, with a ``dataset.json`` of labels (see `labels_file`), has a class for each
    class id, called by its number; without labels, its images are one class, "all".

    Without lists, the top-level folders are the classes, sorted by name, and all images below a folder belong to its
    class, sorted by path. If there are top-level folders ``train`` and ``val``, ``valid``, ``validation`` or ``test``
    (the first of these), they hold the classes of the training and the reference images, and other folders are ignored.
    A single folder around everything in an archive is skipped. Text files (.txt, .json, .csv, .md) are ignored.

    Args:
      source: a folder or an archive.
      unpack_in: folder in which a compressed tar is unpacked.
      imbalance_factor: rarest over most frequent class of the training images, in (0, 1]. Below 1, the classes, sorted
        by size (ties in class order), are reduced to ``long_tail_counts`` images where they have more. The images of
        a smaller `imbalance_factor` or `largest` are among those of a larger one.
      largest: training images of the largest class; by default all.
      seed: seed of the choice of images, at least 0.
      train_list: text with a line ``<path> <class id>`` for each training image, the path relative to the source.
      reference_list: the same for the reference images; only with `train_list`.
      labels_json: name of a file in the source to read instead of ``dataset.json``.

    Returns:
      The listing. With lists, items are in the lists' order, and a class is named after the folder of its images if
      they are all in one, else ``class <id>``.

    Raises:
      UserError: the source has another layout or no image, or an argument is out of range.
    """
    source, problems = Path(source), Problems()
    if train_list is not None and labels_json is not None:
        raise UserError(
            f"A list of training images ({train_list}) and {labels_json} both give classes; give one of them."
        )
    if train_list is not None:
        paths = {"train": Path(train_list)} | ({"reference": Path(reference_list)} if reference_list else {})
        class_names, splits = _from_lists(_tree(source, unpack_in), paths, problems)
    elif reference_list is not None:
        raise UserError(f"A list of reference images ({reference_list}) needs a list of training images; give both.")
    else:
        tree = _tree(source, unpack_in)
        if labelled := find_labelled(tree.files, tree.name, problems, labels_json):
            class_names, splits = _from_labels(labelled, problems, labels_json or LABELS_FILE)
        else:
            class_names, splits = _from_folders(_strip_root(tree), problems)
    if imbalance_factor != 1 or largest is not None:
        splits["train"] = _long_tailed(splits["train"], imbalance_factor, largest, seed)
    return Listing(
        class_names=class_names,
        splits=splits,
        read=read_file,
        description=f"Images of {len(class_names)} classes from {source.name}.",
        problems=problems,
    )


def animal_face(source: Path, unpack_in: Path) -> Listing:
    """List AnimalFace: faces of 20 kinds of animals; there is no reference split.

    Args:
      source: folder or archive with a folder for each class; the folder ``Natural``, which holds no faces, is left out.
      unpack_in: folder in which a compressed tar is unpacked.

    Raises:
      UserError: the source has another layout or no image.
    """
    return dataclasses.replace(
        _twenty_classes(source, unpack_in, without=("natural",)),
        description="AnimalFace: faces of 20 kinds of animals, without the natural scenes.",
        homepage="https://vcla.stat.ucla.edu/people/zhangzhang-si/HiT/exp5.htm",
        citation=(
            "@article{si2012learning,\n"
            "  title={Learning Hybrid Image Templates ({HIT}) by Information Projection},\n"
            "  author={Si, Zhangzhang and Zhu, Song-Chun},\n"
            "  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},\n"
            "  year={2012}\n"
            "}"
        ),
    )


def imagenet_carnivore(source: Path, unpack_in: Path) -> Listing:
    """List ImageNet Carnivores: 100 images of each of 20 classes of ImageNet; there is no reference split.

    Args:
      source: ImageNet_Carnivores_20_100.zip or its content: a folder for each class, perhaps in one more folder.
      unpack_in: folder in which a compressed tar is unpacked.

    Raises:
      UserError: the source has another layout or no image.
    """
    return dataclasses.replace(
        _twenty_classes(source, unpack_in),
        description="ImageNet Carnivores: 100 images of each of 20 classes of carnivores from ImageNet.",
        homepage="https://github.com/mshahbazi72/transitional-cGAN",
        citation=(
            "@inproceedings{shahbazi2022collapse,\n"
            "  title={Collapse by Conditioning: Training Class-conditional {GAN}s with Limited Data},\n"
            "  author={Shahbazi, Mohamad and Danelljan, Martin and Paudel, Danda Pani and Van Gool, Luc},\n"
            "  booktitle={International Conference on Learning Representations (ICLR)},\n"
            "  year={2022}\n"
            "}"
        ),
        published_counts={"train": 2000},
    )


def _twenty_classes(source: Path, unpack_in: Path, without: Collection[str] = ()) -> Listing:
    """List a training split of 20 class folders, perhaps in one more folder."""
    problems = Problems()
    classes = _classes(_strip_root(_tree(Path(source), unpack_in), folders_too=True), problems, without)
    if len(classes) != 20:
        problems.add("unexpected numbers of classes", f"{source}: {len(classes)} instead of 20")
    names = list(classes)
    return Listing(names, {"train": _items(classes, names)}, read_file, description="", problems=problems)


def _from_folders(tree: _Tree, problems: Problems) -> tuple[list[str], dict[str, list[Item]]]:
    """Return class names and splits of a source whose folders are the classes."""
    tops = tree.tops()
    other = next((name for name in _REFERENCES if name in tops), None)
    if "train" not in tops or other is None:
        classes = _classes(tree, problems)
        return list(classes), {"train": _items(classes, list(classes))}

    train, reference = (_classes(tree.below(top, f"{top}/"), problems) for top in ("train", other))
    for name in sorted(train.keys() ^ reference.keys()):
        only = "train" if name in train else other
        problems.add("classes that only one split has", f"{tree.name}: {name}, only in {only}")
    names = list(train)
    return names, {"train": _items(train, names), "reference": _items(reference, names)}


def _from_lists(tree: _Tree, lists: dict[str, Path], problems: Problems) -> tuple[list[str], dict[str, list[Item]]]:
    """Return class names and splits of the images in the lists, one list per split."""
    entries = {split: read_list(path, problems) for split, path in lists.items()}
    files = (
        tree.files | _strip_root(tree, levels=1).files
    )  # with and without one folder around everything in an archive
    splits = {
        split: find_items(entries[split], files.get, problems, listed_in=path, source=Path(tree.name))
        for split, path in lists.items()
    }
    all_entries = [entry for split_entries in entries.values() for entry in split_entries]
    folders = {label: names[0] for label, names in class_folders(all_entries).items() if len(names) == 1}
    shared = {name for name, count in Counter(folders.values()).items() if count > 1}
    labels = range(max(label for _, label in all_entries) + 1)
    names = [folders[c] if c in folders and folders[c] not in shared else f"class {c}" for c in labels]
    return names, splits


def _from_labels(
    labelled: LabelledFiles, problems: Problems, labels_file: str
) -> tuple[list[str], dict[str, list[Item]]]:
    """Return class names and the training split of images with labels in a file; ids without images are problems."""
    if labelled.labels is None:
        return ["all"], {"train": [Item(name, 0, location) for name, location in labelled.files.items()]}
    ids = sorted(set(labelled.labels.values()))
    for c in sorted(set(range(max(ids, default=0))) - set(ids)):
        problems.add("classes without images", f"{labels_file}: class id {c}")
    places = {c: label for label, c in enumerate(ids)}
    items = [Item(name, places[labelled.labels[name]], location) for name, location in labelled.files.items()]
    return [str(c) for c in ids], {"train": items}


def _long_tailed(items: list[Item], imbalance_factor: float, largest: int | None, seed: int) -> list[Item]:
    """Reduce the classes to a long tail; the remaining items stay in order."""
    indices: dict[int, list[int]] = {}  # by class
    for index, item in enumerate(items):
        indices.setdefault(item.label, []).append(index)
    by_size = sorted(indices, key=lambda label: (-len(indices[label]), label))
    if largest is None:
        largest = len(indices[by_size[0]])
    counts = dict(zip(by_size, long_tail_counts(largest, len(by_size), imbalance_factor).tolist(), strict=True))
    generator = seeded_generator(seed)
    selected = [i for c in sorted(indices) for i in generator.permutation(indices[c])[: counts[c]].tolist()]
    return [items[index] for index in sorted(selected)]


def _tree(source: Path, unpack_in: Path) -> _Tree:
    """List all files of a source."""
    return _Tree(str(source), list_files(source, unpack_in), source if source.is_dir() else None)


def _strip_root(tree: _Tree, levels: int = 2, folders_too: bool = False) -> _Tree:
    """Skip a single folder around all images of an archive or, with `folders_too`, of a folder.

    All images must be at least `levels` folders deep. Item names omit the skipped folder.
    """
    images = [path for path in tree.files if is_image(path)]
    tops = {path.split("/")[0] for path in images}
    deep_enough = all(path.count("/") >= levels for path in images)
    if len(tops) == 1 and deep_enough and (folders_too or tree.folder is None):
        return tree.below(tops.pop(), "")
    return tree


def _classes(tree: _Tree, problems: Problems, without: Collection[str] = ()) -> _Classes:
    """Return the images of each class, a top-level folder not in `without` (lower case), sorted by name."""
    folders = tree.tops()
    if tree.folder is not None:  # archives do not list empty folders
        folders |= {path.name for path in tree.folder.iterdir() if path.is_dir() and is_visible(path.name)}
    classes: _Classes = {name: [] for name in sorted(folders) if name.lower() not in without}
    for path, location in tree.files.items():
        folder = path.split("/")[0] if "/" in path else None
        if folder is not None and folder not in classes:
            continue
        if not is_image(path):
            if not path.lower().endswith(_IGNORED):
                problems.add("files that are no images", f"{tree.name}/{path}")
        elif folder is None:
            problems.add("images outside the class folders", f"{tree.name}/{path}")
        else:
            classes[folder].append((tree.prefix + path, location))

    filled = {name: images for name, images in classes.items() if images}
    if not filled:
        content = "images, but none in a folder of its class" if any(map(is_image, tree.files)) else "no image"
        raise UserError(f"{tree.name} has {content}; {_LAYOUT}.")
    if len(filled) == 1:
        (name,) = filled
        inner = {path.split("/")[1] for path in tree.files if path.startswith(f"{name}/") and path.count("/") >= 2}
        if inner:
            raise UserError(
                f"{tree.name} has images only in its folder {name}, which has {len(inner)} folders in it, so this looks "
                f"like one level too many; {_LAYOUT}."
            )
    for name in sorted(classes.keys() - filled.keys()):
        problems.add("classes without images", f"{tree.name}/{name}")
    return filled


def _items(classes: _Classes, names: list[str]) -> list[Item]:
    """Build the items of the named classes, class by class; a class's label is its index among the names."""
    return [Item(name, label, location) for label, c in enumerate(names) for name, location in classes.get(c, [])]
