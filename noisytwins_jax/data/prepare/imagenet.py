"""ImageNet (ILSVRC 2012), and ImageNet-LT, its published long-tailed subset."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from noisytwins_jax.data.prepare.files import Location, list_files, list_nested_tar, read_file
from noisytwins_jax.data.prepare.image_lists import class_folders, find_items, read_list
from noisytwins_jax.data.prepare.listing import Item, Listing, Problems, Reader
from noisytwins_jax.utils.errors import UserError

_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
LISTS = ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt")
_TRAIN, _VAL = "ILSVRC2012_img_train", "ILSVRC2012_img_val"
_VAL_LIST = "val.txt"
_NOT_TRAINING = {"val", _VAL, "test"}  # possible folders beside those of the classes
_CLASSES = 1000
_WORDNET_ID = re.compile(r"n\d{8}")
_IMAGES = (".jpeg", ".jpg", ".png")  # other files in a class's folder, such as boxes, are ignored
_HOMEPAGE = "https://liuziwei7.github.io/projects/LongTail.html"


def imagenet(source: Path, unpack_in: Path) -> Listing:
    """List ImageNet: 1,281,167 training images of 1000 classes; the reference is ILSVRC's validation set, 50 per class.

    ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar are read in place. Without validation images, or without their
    classes, there is no reference split, and a note is printed.

    Args:
      source: ILSVRC2012_img_train.tar, or a folder that holds it, or one with the folders n01440764, ... of the classes
        in ``train``, in ``ILSVRC2012_img_train`` or directly. Beside it, the validation images: in the same folders of
        classes in ``val`` or ``ILSVRC2012_img_val``; or ILSVRC2012_img_val.tar, or all images in one of these folders,
        and val.txt (Caffe's), with lines ``ILSVRC2012_val_00000001.JPEG 65``.
      unpack_in: folder in which a compressed archive is unpacked.

    Returns:
      The listing, identical for every layout: class ids in the order of the WordNet ids, which are the classes' names;
      items sorted by name, ``train/n01440764/n01440764_10026.JPEG`` and ``val/ILSVRC2012_val_00000001.JPEG``.

    Raises:
      UserError: the source is missing, damaged or has a different number of classes, or val.txt does not match it.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"There is no {source}; give {_TRAIN_TAR}, or a folder that holds it or its images.")
    problems = Problems()
    files = _train_files(source, unpack_in).items()
    train = _in_classes({path: location for path, location in files if not _NOT_TRAINING & {*path.split("/")[:-2]}})
    class_names = sorted({path.split("/")[0] for path in train})
    check_classes(class_names, source)
    labels = {wnid: label for label, wnid in enumerate(class_names)}
    splits = {
        "train": [Item(f"train/{path}", labels[path.split("/")[0]], location) for path, location in train.items()]
    }
    folder = source.parent if source.is_file() or source.name in ("train", _TRAIN) else source
    if reference := _validation_items(folder, labels, unpack_in, problems):
        splits["reference"] = reference
    return imagenet_listing(class_names, splits, read_file, problems)


def imagenet_listing(
    class_names: Sequence[str], splits: dict[str, list[Item]], read: Reader, problems: Problems
) -> Listing:
    """Build the listing of ImageNet from its items, which are sorted here; see `imagenet`."""
    return Listing(
        class_names=class_names,
        splits={split: sorted(items, key=lambda item: item.name) for split, items in splits.items()},
        read=read,
        description=(
            "ImageNet, the classification data of ILSVRC 2012: photographs of 1000 classes"
            + ("; the reference is the validation set, 50 images of each class." if "reference" in splits else ".")
        ),
        homepage="https://image-net.org/challenges/LSVRC/2012",
        citation=(
            "@article{russakovsky2015imagenet,\n"
            "  title={{ImageNet} Large Scale Visual Recognition Challenge},\n"
            "  author={Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and Satheesh, Sanjeev and "
            "Ma, Sean and Huang, Zhiheng and Karpathy, Andrej and Khosla, Aditya and Bernstein, Michael and "
            "Berg, Alexander C. and Fei-Fei, Li},\n"
            "  journal={International Journal of Computer Vision},\n"
            "  volume={115},\n"
            "  number={3},\n"
            "  pages={211--252},\n"
            "  year={2015}\n"
            "}"
        ),
        published_counts={"train": 1281167, "reference": 50000},
        problems=problems,
    )


def check_classes(class_names: Sequence[str], source: object) -> None:
    """Raise a ``UserError`` unless a source has as many classes as ILSVRC, since class ids depend on it."""
    if len(class_names) != _CLASSES:
        raise UserError(
            f"{source} has training images of {len(class_names)} classes instead of ImageNet's {_CLASSES}; complete it, "
            "or prepare it as a data set of its own: image_folder --name=..."
        )


def note_missing_reference(reason: str) -> None:
    """Print why metrics will compare with the training images."""
    print(f"Note: {reason}; metrics will compare with the training images.", flush=True)


def imagenet_lt(source: Path, unpack_in: Path, lists: Path | None = None) -> Listing:
    """List ImageNet-LT: 115,846 training images of 1000 classes, 1280 to 5 per class; 20 reference images per class.

    The lists name the images and their classes; the reference is the published validation list, whose images are also
    ILSVRC training images. ILSVRC2012_img_train.tar is read in place.

    Args:
      source: ILSVRC2012_img_train.tar, or a folder that holds it, or one with the folders n01440764, ... in ``train``,
        in ``ILSVRC2012_img_train`` or directly. Only for lists that name images ``val/...``: beside these,
        ILSVRC2012_img_val.tar, or the images in ``val`` or ``ILSVRC2012_img_val``.
      unpack_in: folder in which a compressed archive is unpacked.
      lists: folder of ImageNet_LT_train.txt and ImageNet_LT_val.txt, with lines
        ``train/n01440764/n01440764_190.JPEG 0``; by default the folder of the source.

    Returns:
      The listing: items in the order of the lists, named by their paths there. A class's name is the WordNet id, the
      folder of its images.

    Raises:
      UserError: the source or a list is missing or damaged, or they do not match.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"There is no {source}; give {_TRAIN_TAR}, or a folder that holds it or its images.")
    folder = source if source.is_dir() else source.parent
    problems = Problems()
    paths = [Path(lists or folder) / name for name in LISTS]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"There is no {path}; get the public list {path.name} of ImageNet-LT ({_HOMEPAGE}), and put it there or "
                "say which folder has it."
            )
    train, reference = (read_list(path, problems) for path in paths)
    find = _finder(source, folder, unpack_in)
    splits = {
        "train": find_items(train, find, problems, listed_in=paths[0], source=source),
        "reference": find_items(reference, find, problems, listed_in=paths[1], source=source),
    }
    return imagenet_lt_listing(_class_names(train + reference, problems), splits, read_file, problems)


def imagenet_lt_listing(
    class_names: Sequence[str], splits: dict[str, list[Item]], read: Reader, problems: Problems
) -> Listing:
    """Build the listing of ImageNet-LT from its items; see `imagenet_lt`."""
    return Listing(
        class_names=class_names,
        splits=splits,
        read=read,
        description=(
            "ImageNet-LT: a long-tailed subset of the training images of ILSVRC 2012 with 1000 classes; the reference "
            "is its balanced validation list."
        ),
        homepage=_HOMEPAGE,
        citation=(
            "@inproceedings{liu2019large,\n"
            "  title={Large-Scale Long-Tailed Recognition in an Open World},\n"
            "  author={Liu, Ziwei and Miao, Zhongqi and Zhan, Xiaohang and Wang, Jiayun and Gong, Boqing and "
            "Yu, Stella X.},\n"
            "  booktitle={IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},\n"
            "  year={2019}\n"
            "}"
        ),
        published_counts={"train": 115846, "reference": 20000},
        problems=problems,
    )


def _in_classes(files: dict[str, Location]) -> dict[str, Location]:
    """Select the images whose folder is a WordNet id, by id and file name: ``n01440764/n01440764_10026.JPEG``."""
    images = {}
    for path, location in files.items():
        wnid, _, file = path.rpartition("/")
        wnid = wnid.rpartition("/")[2]
        if _WORDNET_ID.fullmatch(wnid) and file.lower().endswith(_IMAGES):
            images[f"{wnid}/{file}"] = location
    return images


def _validation_items(folder: Path, labels: dict[str, int], unpack_in: Path, problems: Problems) -> list[Item]:
    """List the validation images in a folder, labelled by WordNet id or list; without either, print a note."""
    where = _first(folder, "val", _VAL, _VAL_TAR)
    if where is None:
        note_missing_reference(f"{folder} holds no validation images (a folder val, or {_VAL_TAR} and {_VAL_LIST})")
        return []
    files = list_files(where, unpack_in)
    if in_classes := _in_classes(files):
        items = []
        for path, location in in_classes.items():
            wnid, file = path.split("/")
            if wnid in labels:
                name = file if file.startswith("ILSVRC2012_val_") else path  # other names may occur in every class
                items.append(Item(f"val/{name}", labels[wnid], location))
            else:
                problems.add("validation images of classes without training images", f"{where}: {path}")
        return items
    list_path = folder / _VAL_LIST
    if not list_path.is_file():
        note_missing_reference(
            f"the classes of the validation images in {where} are not known without folders of classes or a list "
            f"{list_path}"
        )
        return []
    entries = [(f"val/{path.rsplit('/', 1)[-1]}", label) for path, label in read_list(list_path, problems)]
    if (largest := max(label for _, label in entries)) >= len(labels):
        raise UserError(
            f"{list_path} has the class id {largest}, but class ids are 0 to {len(labels) - 1}, in the order of the "
            "WordNet ids; get Caffe's val.txt."
        )
    locations = {f"val/{path.rsplit('/', 1)[-1]}": location for path, location in files.items()}
    return find_items(entries, locations.get, problems, listed_in=list_path, source=where)


def _finder(source: Path, folder: Path, unpack_in: Path) -> Callable[[str], Location | None]:
    """Return a function that finds a listed image; training and validation files are listed on first use."""

    @functools.cache
    def train() -> dict[str, Location]:
        """Return locations by class folder and file name."""
        files = _train_files(source, unpack_in)
        return {"/".join(path.split("/")[-2:]): location for path, location in files.items()}

    @functools.cache
    def val() -> dict[str, Location]:
        """Return locations by file name."""
        where = _first(folder, _VAL_TAR, "val", _VAL)
        if where is None:
            raise UserError(
                f"The lists name images of val, but {folder} holds neither {_VAL_TAR} nor a folder val; add one of them."
            )
        return {path.rsplit("/", 1)[-1]: location for path, location in list_files(where, unpack_in).items()}

    def find(name: str) -> Location | None:
        parts = name.split("/")
        return val().get(parts[-1]) if parts[0] == "val" else train().get("/".join(parts[-2:]))

    return find


def _train_files(source: Path, unpack_in: Path) -> dict[str, Location]:
    """List the training images; their paths end with class folder and file name."""
    where = _first(source, _TRAIN_TAR, "train", _TRAIN) or source
    if where.is_dir() and where == source and not any(source.glob("n[0-9]*/")):
        raise UserError(
            f"{source} holds no training images of ILSVRC 2012; it must hold {_TRAIN_TAR}, a folder train, or the "
            "folders n01440764, ... of the classes."
        )
    if where.is_file() and where.suffix == ".tar":
        files = list_files(where, unpack_in)  # of the outer tar only: a thousand headers
        if any(path.endswith(".tar") for path in files):
            return list_nested_tar(where)
        return files
    return list_files(where, unpack_in)


def _first(folder: Path, *names: str) -> Path | None:
    """Return the first of these paths that exists in the folder, or None."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def _class_names(entries: list[tuple[str, int]], problems: Problems) -> list[str]:
    """Return the WordNet id of each class, from 0 to the largest class id."""
    in_class = [(name, label) for name, label in entries if not name.startswith("val/")]
    folders = class_folders(in_class)
    for label, names in sorted(folders.items()):
        if len(names) > 1:
            problems.add("classes whose images are in several folders", f"class {label}: {', '.join(sorted(names))}")
    count = max(label for _, label in entries) + 1
    return [folders[c][0] if c in folders else f"class {c}" for c in range(count)]
