"""ImageNet-LT: the published long-tailed subset of ILSVRC 2012."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from noisytwins_jax.data.prepare.files import Place, list_files, list_nested_tar, read_file
from noisytwins_jax.data.prepare.listing import Item, Listing, Problems, Reader
from noisytwins_jax.data.prepare.lists import class_folders, find_items, read_list
from noisytwins_jax.errors import UserError

_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
LISTS = ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt")
_HOMEPAGE = "https://liuziwei7.github.io/projects/LongTail.html"


def imagenet_lt(source: Path, unpack_in: Path, lists: Path | None = None) -> Listing:
    """ImageNet-LT: 115,846 training images of 1000 classes, 1280 to 5 a class, and 20 reference images a class.

    The lists name the images and their classes; the reference is the published validation list, whose images are from
    ILSVRC's training images as well. ILSVRC2012_img_train.tar is read where it is.

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
      UserError: source or lists are missing, damaged, or do not belong together.
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
    """ImageNet-LT of its items; see `imagenet_lt`."""
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


def _finder(source: Path, folder: Path, unpack_in: Path) -> Callable[[str], Place | None]:
    """Gives the place of an image of a list; looks at the training or validation images when one is asked for."""

    @functools.cache
    def train() -> dict[str, Place]:
        """By class folder and file name."""
        files = _train_files(source, unpack_in)
        return {"/".join(path.split("/")[-2:]): place for path, place in files.items()}

    @functools.cache
    def val() -> dict[str, Place]:
        """By file name."""
        where = _first(folder, _VAL_TAR, "val", "ILSVRC2012_img_val")
        if where is None:
            raise UserError(
                f"The lists name images of val, but {folder} holds neither {_VAL_TAR} nor a folder val; add one of them."
            )
        return {path.rsplit("/", 1)[-1]: place for path, place in list_files(where, unpack_in).items()}

    def find(name: str) -> Place | None:
        parts = name.split("/")
        return val().get(parts[-1]) if parts[0] == "val" else train().get("/".join(parts[-2:]))

    return find


def _train_files(source: Path, unpack_in: Path) -> dict[str, Place]:
    """The training images; their paths end with class folder and file name."""
    where = _first(source, _TRAIN_TAR, "train", "ILSVRC2012_img_train") or source
    if where.is_dir() and where == source and not any(source.glob("n[0-9]*/")):
        raise UserError(
            f"{source} holds no training images of ILSVRC 2012; it must hold {_TRAIN_TAR}, a folder train, or the "
            "folders n01440764, ... of the classes."
        )
    if where.is_file() and where.suffix == ".tar":
        files = list_files(where, unpack_in)  # of the outer tar alone: a thousand headers
        if any(path.endswith(".tar") for path in files):
            return list_nested_tar(where)
        return files
    return list_files(where, unpack_in)


def _first(folder: Path, *names: str) -> Path | None:
    """The first of these that the folder has."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def _class_names(entries: list[tuple[str, int]], problems: Problems) -> list[str]:
    """The WordNet id of each class, from 0 to the largest class id."""
    in_class = [(name, label) for name, label in entries if not name.startswith("val/")]
    folders = class_folders(in_class)
    for label, names in sorted(folders.items()):
        if len(names) > 1:
            problems.add("classes whose images are in several folders", f"class {label}: {', '.join(sorted(names))}")
    count = max(label for _, label in entries) + 1
    return [folders[c][0] if c in folders else f"class {c}" for c in range(count)]
