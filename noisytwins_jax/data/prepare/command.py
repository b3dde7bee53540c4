"""``python -m noisytwins_jax.data.prepare <dataset>``: prepare a data set once for all runs that use it.

Reads images in place (folders, tar and zip archives), crops and resizes them as published, and writes shards of raw
pixels that training reads at full speed and that TFDS can load. Public files that need no registration are downloaded
unless ``--source`` is given. The same command resumes an interrupted download or preparation. It ends with a summary of the
classes from head to tail, as text and as a figure.
"""

import argparse
import importlib.util
import inspect
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from noisytwins_jax.data.prepare import finish, shards, tfds_source
from noisytwins_jax.data.prepare.cifar import ORDERS, cifar10_lt, cifar100_lt
from noisytwins_jax.data.prepare.class_summary import CLASS_COUNTS_FILE, describe_classes, draw_class_counts
from noisytwins_jax.data.prepare.embedded import digits_lt, petals
from noisytwins_jax.data.prepare.folders import animal_face, image_folder, imagenet_carnivore
from noisytwins_jax.data.prepare.idx import PROFILES, fashion_mnist_lt, mnist_lt
from noisytwins_jax.data.prepare.imagenet import imagenet, imagenet_lt
from noisytwins_jax.data.prepare.inat import inat19
from noisytwins_jax.data.prepare.listing import Listing, Problems
from noisytwins_jax.data.prepare.public_files import PUBLIC_SETS, get_source
from noisytwins_jax.data.prepare.utlo_sets import animal_faces_lt, flowers_lt
from noisytwins_jax.data.prepared import INFO_FILE, VERSION
from noisytwins_jax.data.preprocessing import PUBLISHED, Preprocessing
from noisytwins_jax.data.recipe import recipe_table, recommend
from noisytwins_jax.data.source import check_resolution
from noisytwins_jax.utils.errors import UserError, did_you_mean
from noisytwins_jax.utils.retry import is_full

PROBLEMS_FILE = "problems.txt"
PLAN_FILE = "plan.txt"


class Preparer(NamedTuple):
    """The functions and defaults that prepare a data set."""

    list_images: Callable[..., Listing]
    resolution: int = 64
    preprocessing: str = PUBLISHED
    channels: int = 3
    thresholds: tuple[int, int] = (20, 100)
    list_tfds: Callable[..., Listing] | None = None  # for --source=tfds:…


PREPARERS = {
    "cifar10_lt": Preparer(cifar10_lt, resolution=32, thresholds=(200, 1000), list_tfds=tfds_source.cifar10_lt),
    "cifar100_lt": Preparer(cifar100_lt, resolution=32),
    "flowers_lt": Preparer(flowers_lt, resolution=128, thresholds=(27, 105)),
    "animal_faces_lt": Preparer(animal_faces_lt, thresholds=(75, 165)),
    "fashion_mnist_lt": Preparer(fashion_mnist_lt, resolution=32, channels=1, thresholds=(200, 1000)),
    "mnist_lt": Preparer(mnist_lt, resolution=32, channels=1, thresholds=(200, 1000)),
    # Resolution, crop and filter of BigGAN.
    "imagenet": Preparer(imagenet, resolution=128, preprocessing="center-box", list_tfds=tfds_source.imagenet),
    "imagenet_lt": Preparer(imagenet_lt, list_tfds=tfds_source.imagenet_lt),
    "inat19": Preparer(inat19),
    "animal_face": Preparer(animal_face),
    "imagenet_carnivore": Preparer(imagenet_carnivore),
    "image_folder": Preparer(image_folder, preprocessing="center-lanczos-white-upright"),
    "petals": Preparer(petals),
    "digits_lt": Preparer(digits_lt, resolution=8, channels=1),
}
# Options that only some listings have, with the type of their values and their help.
LISTING_OPTIONS: dict[str, tuple[type, str]] = {
    "imbalance_factor": (float, "rarest over most frequent class, in (0, 1]"),
    "profile": (str, f"how classes get rarer: {' or '.join(PROFILES)}"),
    "order": (str, f"which classes are frequent, {' or '.join(ORDERS)}: the first ones, or the last ones as in UTLO"),
    "largest": (int, "training images of the most frequent class"),
    "num_classes": (int, "number of classes"),
    "reference_per_class": (int, "reference images of each class"),
    "classifier_per_class": (int, "images of each class for training the metrics' networks"),
    "seed": (int, "seed of the choice of images, or of rendering them"),
    "lists": (Path, "folder of ImageNet_LT_train.txt and ImageNet_LT_val.txt; by default beside the images"),
    "annotations": (Path, "folder of train2019.json and val2019.json; by default beside the images"),
    "train_list": (Path, "file of lines '<path> <class id>', instead of a folder per class"),
    "reference_list": (Path, "the same for reference images"),
    "labels_json": (str, "name of the file of labels in a data set of StyleGAN2-ADA, StyleGAN3 or EDM (dataset.json)"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; a user's error ends it with one message and status 2."""
    try:
        print(prepare(parse_arguments(argv)))
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("\nStopped; run the same command to resume.", file=sys.stderr)
        sys.exit(130)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and check it as far as possible without reading files."""
    parser = _Parser(prog="python -m noisytwins_jax.data.prepare", description=__doc__.partition("\n\n")[2])
    parser.add_argument("dataset", metavar="dataset", help=", ".join(PREPARERS))
    parser.add_argument(
        "--source",
        type=Path,
        help="archive or folder of the public download, or of your images; of "
        f"{', '.join(PUBLIC_SETS)} it is downloaded into <data_dir>/downloads by default",
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="directory of prepared data (data)")
    parser.add_argument("--resolution", type=int, help="pixels, a power of two; by default that of the configurations")
    parser.add_argument("--name", help="name of the prepared data set; by default the data set's own")
    parser.add_argument(
        "--preprocessing", help="hyphen-separated: center, stretch or pad, a filter, edge, white, upright"
    )
    parser.add_argument("--channels", type=int, choices=(1, 3), help="3 for colour, 1 for grey")
    parser.add_argument("--thresholds", help="low,high: classes with fewer images are tail, with more are head")
    parser.add_argument(
        "--on_error", choices=("stop", "skip"), default="stop", help="on errors in the source: stop, or leave them out"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one per core)")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that was prepared differently")
    for name, (kind, text) in LISTING_OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    arguments = parser.parse_args(argv)
    if arguments.dataset not in PREPARERS:
        raise UserError(
            f"There is no data set {arguments.dataset!r}; {did_you_mean(arguments.dataset, PREPARERS)} (For your own "
            "images, in a folder per class, give image_folder and --name.)"
        )
    if arguments.jobs < 1:
        raise UserError(f"--jobs={arguments.jobs} is below 1.")
    return arguments


def prepare(arguments: argparse.Namespace) -> str:
    """Prepare the data set of the command line.

    Returns:
      A description of the data set.

    Raises:
      UserError: the preparation failed and is incomplete; the same command resumes from the complete shards.
    """
    dataset, preparer = arguments.dataset, PREPARERS[arguments.dataset]
    name = arguments.name or dataset
    if not name.isidentifier():
        raise UserError(f"--name={name} is no name of a data set: use letters, digits and _, and no digit first.")
    format = shards.Format(
        preparer.resolution if arguments.resolution is None else arguments.resolution,
        arguments.channels or preparer.channels,
        Preprocessing.parse(arguments.preprocessing or preparer.preprocessing),
    )
    check_resolution(format.resolution)
    thresholds = _thresholds(arguments.thresholds) or preparer.thresholds
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise UserError(
            "Preparing data needs tensorflow-datasets (but no TensorFlow); install it with: pip install "
            "tensorflow-datasets."
        )
    target = arguments.data_dir.expanduser().absolute() / name / f"{format.resolution}px" / VERSION
    working = target.with_name(f"{VERSION}.incomplete")
    try:
        working.mkdir(parents=True, exist_ok=True)
        listing, options = _list_images(arguments, preparer, format, working / "unpacked")
        plan = shards.plan_fingerprint(listing, format)
        if (target / INFO_FILE).exists():
            if _is_same(target, plan, thresholds):
                shutil.rmtree(working)
                return f"{target} exists already, prepared in the same way."
            if not arguments.overwrite:
                shutil.rmtree(working)
                raise UserError(
                    f"{target} was prepared differently (see its {INFO_FILE}); give another --name, or --overwrite to "
                    "replace it."
                )
        info = _write(arguments, listing, format, working, name, plan, options, thresholds)
        draw_class_counts(working / CLASS_COUNTS_FILE, name, info["splits"]["train"]["class_counts"], thresholds)
        shutil.rmtree(working / "unpacked", ignore_errors=True)
        for metadata in working.glob("*.array_record-*.json"):
            metadata.unlink()
        if target.exists():
            shutil.rmtree(target)
        working.rename(target)
    except OSError as error:
        if not is_full(error):
            raise UserError(
                f"{error.filename or working}: {error.strerror or error}; fix this and run the same command."
            ) from error
        raise UserError(f"There is no space left in {working}; free some and run the same command to resume.") from None
    settings = recipe_table(recommend(info["splits"]["train"]["class_counts"], format.resolution))
    return (
        f"{describe_classes(info)}\nSettings to begin with (configs/image_folder.py takes them by itself):\n{settings}\n"
        f"Prepared in {target}; its class counts are plotted in {CLASS_COUNTS_FILE} there."
    )


def _is_same(target: Path, plan: str, thresholds: tuple[int, int]) -> bool:
    """Return whether a prepared data set has this plan and these thresholds."""
    try:
        info = json.loads((target / INFO_FILE).read_text())
        return (target / PLAN_FILE).read_text() == plan and info["group_thresholds"] == list(thresholds)
    except (OSError, ValueError, KeyError):  # incomplete or damaged
        return False


def _list_images(
    arguments: argparse.Namespace, preparer: Preparer, format: shards.Format, unpack_in: Path
) -> tuple[Listing, dict[str, Any]]:
    """List the images of the command line's data set; return the listing and its options."""
    from_tfds = tfds_source.is_tfds(arguments.source)
    if from_tfds and preparer.list_tfds is None:
        raise UserError(f"{arguments.dataset} is no data set of TFDS; give --source=<folder or archive> of the images.")
    list_images = preparer.list_tfds if from_tfds else preparer.list_images
    parameters = inspect.signature(list_images).parameters
    given = {key: getattr(arguments, key) for key in LISTING_OPTIONS if getattr(arguments, key) is not None}
    if unknown := [key for key in given if key not in parameters]:
        own = [f"--{key}" for key in LISTING_OPTIONS if key in parameters]
        raise UserError(f"{arguments.dataset} takes no --{unknown[0]}; its own options: {', '.join(own) or 'none'}.")
    options = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    if "source" in parameters:
        if arguments.source is not None:
            given |= {"source": str(arguments.source) if from_tfds else arguments.source.expanduser()}
        elif arguments.dataset in PUBLIC_SETS:
            downloads = arguments.data_dir.expanduser() / "downloads"
            given["source"] = get_source(PUBLIC_SETS[arguments.dataset], downloads)
        else:
            raise UserError(f"{arguments.dataset} needs --source=<folder or archive> of the images.")
        given |= {"unpack_in": unpack_in} if "unpack_in" in parameters else {}
    elif arguments.source is not None:
        raise UserError(f"{arguments.dataset} needs no source files and takes no --source; leave it out.")
    if "resolution" in parameters:
        given["resolution"] = format.resolution
    print(f"Listing the images of {arguments.dataset}.", flush=True)
    listing = list_images(**given)
    for split, count in listing.published_counts.items():
        if split in listing.splits and len(listing.splits[split]) != count:
            print(f"Note: {len(listing.splits[split])} {split} images were found; {count} were published.")
    return listing, options


def _write(
    arguments: argparse.Namespace,
    listing: Listing,
    format: shards.Format,
    working: Path,
    name: str,
    plan: str,
    options: dict[str, Any],
    thresholds: tuple[int, int],
) -> dict[str, Any]:
    """Write the data set into its working directory, see `prepare`; return the content of `INFO_FILE`."""
    skip = arguments.on_error == "skip"
    _check_problems(listing.problems, working, skip)
    if not listing.splits["train"]:
        raise UserError(f"{arguments.source} holds no training images; check that it is the right folder or archive.")
    if not (working / PLAN_FILE).exists() or (working / PLAN_FILE).read_text() != plan:
        for path in working.glob("*.array_record-*"):  # of another plan
            path.unlink()
        (working / PLAN_FILE).write_text(plan)
    planned = shards.plan_shards(listing, format, working, name)
    start, missing = time.perf_counter(), [shard for shard in planned if _is_missing(shard, skip)]
    if len(missing) < len(planned):
        print(f"Resuming: {len(planned) - len(missing)} of {len(planned)} shards are complete.", flush=True)
    if missing:
        shards.write_shards(missing, arguments.jobs, f"Preparing {name}")
        seconds, count = time.perf_counter() - start, sum(len(shard.items) for shard in missing)
        print(f"{count} images in {seconds:.0f} s, {count / seconds:.0f} per second.", flush=True)
    duplicates = finish.find_duplicates(planned)
    problems = finish.collect_problems(listing, planned)
    if duplicates and listing.published_counts:
        print(f"Note: {len(duplicates)} {shards.DUPLICATES}; they are kept, as published.")
    elif duplicates and skip:
        for shard in planned:
            if shard.split == "train" and any(item.name in duplicates for item in shard.items):
                shards.write_shard(shard, duplicates)
        problems = finish.collect_problems(listing, planned)
    else:
        for name_in_train, name_in_reference in duplicates.items():
            problems.add(shards.DUPLICATES, f"{name_in_train}: as {name_in_reference}")
    _check_problems(problems, working, skip)
    splits = finish.collect_splits(listing, planned, format)
    info = finish.write_data_set(working, listing, planned, splits, problems, format, name, options, thresholds)
    if problems.wrong or problems.converted:
        print(problems.describe())
    return info


def _is_missing(shard: shards.Shard, skip: bool) -> bool:
    """Return whether a shard must be written: it is incomplete, or lacks images whose errors may be fixed by now."""
    metadata = shards.read_metadata(shard)
    return metadata is None or (bool(metadata.wrong) and not skip)


def _check_problems(problems: Problems, working: Path, skip: bool) -> None:
    """Write the errors to `PROBLEMS_FILE`; raise a ``UserError`` if there are any, unless they are to be skipped."""
    if not problems.wrong:
        (working / PROBLEMS_FILE).unlink(missing_ok=True)  # of an earlier run
        return
    (working / PROBLEMS_FILE).write_text(problems.describe(None) + "\n")
    if not skip:
        print(problems.describe(), file=sys.stderr)
        errors = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        raise UserError(
            f"The source has {errors}, listed above and in {working / PROBLEMS_FILE}; fix them and run the same command, "
            "or give --on_error=skip to leave them out."
        )


def _thresholds(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--thresholds={text} is not low,high; give for example --thresholds=20,100.") from None
    if not 0 <= low <= high:
        raise UserError(f"--thresholds={text}: low must be at most high, and neither negative.")
    return low, high


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}; see --help.")


def _fail(message: str) -> NoReturn:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(2)
