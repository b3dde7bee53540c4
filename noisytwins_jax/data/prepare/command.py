"""``python -m noisytwins_jax.data.prepare <dataset>``: a data set, prepared once for every run that uses it.

Reads pictures where they are (folders, tar and zip archives), crops and resizes them as published, and writes shards of
raw pixels that training reads at full speed and TFDS as a data set of its own. The same command goes on where it was
stopped. It ends with the classes from head to tail, in words and as a picture.
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
from noisytwins_jax.data.prepare.cifar import cifar10_lt
from noisytwins_jax.data.prepare.class_summary import CLASS_COUNTS_FILE, describe_classes, draw_class_counts
from noisytwins_jax.data.prepare.embedded import digits_lt, petals
from noisytwins_jax.data.prepare.folders import animal_face, image_folder, imagenet_carnivore
from noisytwins_jax.data.prepare.imagenet import imagenet, imagenet_lt
from noisytwins_jax.data.prepare.inat import inat19
from noisytwins_jax.data.prepare.listing import Listing, Problems
from noisytwins_jax.data.prepared import INFO_FILE, VERSION
from noisytwins_jax.data.preprocessing import PUBLISHED, Preprocessing
from noisytwins_jax.data.source import check_resolution
from noisytwins_jax.utils.errors import UserError, did_you_mean
from noisytwins_jax.utils.retry import is_full

PROBLEMS_FILE = "problems.txt"
PLAN_FILE = "plan.txt"


class Preparer(NamedTuple):
    """How a data set of a name is prepared."""

    list_images: Callable[..., Listing]
    resolution: int = 64
    preprocessing: str = PUBLISHED
    channels: int = 3
    thresholds: tuple[int, int] = (20, 100)
    list_tfds: Callable[..., Listing] | None = None  # for a source of TFDS


PREPARERS = {
    "cifar10_lt": Preparer(cifar10_lt, resolution=32, thresholds=(200, 1000), list_tfds=tfds_source.cifar10_lt),
    # BigGAN's resolution, crop and filter.
    "imagenet": Preparer(imagenet, resolution=128, preprocessing="center-box", list_tfds=tfds_source.imagenet),
    "imagenet_lt": Preparer(imagenet_lt, list_tfds=tfds_source.imagenet_lt),
    "inat19": Preparer(inat19),
    "animal_face": Preparer(animal_face),
    "imagenet_carnivore": Preparer(imagenet_carnivore),
    "image_folder": Preparer(image_folder, preprocessing="center-lanczos-white-upright"),
    "petals": Preparer(petals),
    "digits_lt": Preparer(digits_lt, resolution=8, channels=1),
}
# Options that only some listings take, by the type of their values.
LISTING_OPTIONS: dict[str, tuple[type, str]] = {
    "imbalance_factor": (float, "rarest over most frequent class, in (0, 1]"),
    "largest": (int, "training images of the most frequent class"),
    "num_classes": (int, "number of classes"),
    "reference_per_class": (int, "reference images of each class"),
    "classifier_per_class": (int, "images of each class for the networks that measure"),
    "seed": (int, "of the choice of images, or of drawing them"),
    "lists": (Path, "folder of ImageNet_LT_train.txt and ImageNet_LT_val.txt; by default beside the images"),
    "annotations": (Path, "folder of train2019.json and val2019.json; by default beside the images"),
    "train_list": (Path, "file of lines '<path> <class id>', in place of a folder a class"),
    "reference_list": (Path, "the same for reference images"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command; mistakes end with one sentence and status 2."""
    try:
        print(prepare(parse_arguments(argv)))
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on.", file=sys.stderr)
        sys.exit(130)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as it can be without looking at files."""
    parser = _Parser(prog="python -m noisytwins_jax.data.prepare", description=__doc__.partition("\n\n")[2])
    parser.add_argument("dataset", metavar="dataset", help=", ".join(PREPARERS))
    parser.add_argument("--source", type=Path, help="archive or folder of the public download, or of your images")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where prepared data go (data)")
    parser.add_argument("--resolution", type=int, help="pixels, a power of two; by default that of the configurations")
    parser.add_argument("--name", help="of the prepared data set; by default the data set's own")
    parser.add_argument("--preprocessing", help="center or stretch, a filter, white, upright, with hyphens between")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="3 for colour, 1 for grey")
    parser.add_argument("--thresholds", help="low,high: classes with fewer images are tail, with more are head")
    parser.add_argument(
        "--on_error", choices=("stop", "skip"), default="stop", help="what is wrong: stop, or leave out"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that was prepared otherwise")
    for name, (kind, text) in LISTING_OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    arguments = parser.parse_args(argv)
    if arguments.dataset not in PREPARERS:
        raise UserError(
            f"There is no data set {arguments.dataset!r}; {did_you_mean(arguments.dataset, PREPARERS)} (For your own "
            "pictures, a folder a class, give image_folder and --name.)"
        )
    if arguments.jobs < 1:
        raise UserError(f"--jobs={arguments.jobs} is below 1.")
    return arguments


def prepare(arguments: argparse.Namespace) -> str:
    """Prepares what the command line asks for.

    Returns:
      A description of the data set, for people.

    Raises:
      UserError: something is wrong and nothing is taken for whole: what is done stays for the same command to go on.
    """
    dataset, preparer = arguments.dataset, PREPARERS[arguments.dataset]
    name = arguments.name or dataset
    if not name.isidentifier():
        raise UserError(f"--name={name} is no name of a data set: letters, digits and _, and no digit first.")
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
                return f"{target} is there already, prepared in the same way."
            if not arguments.overwrite:
                shutil.rmtree(working)
                raise UserError(
                    f"{target} was prepared otherwise (see its {INFO_FILE}); give another --name, or --overwrite to "
                    "replace it."
                )
        info = _write(arguments, listing, format, working, name, plan, options, thresholds)
        draw_class_counts(working / CLASS_COUNTS_FILE, name, info["splits"]["train"]["class_counts"], thresholds)
        shutil.rmtree(working / "unpacked", ignore_errors=True)
        for notes in working.glob("*.array_record-*.json"):
            notes.unlink()
        if target.exists():
            shutil.rmtree(target)
        working.rename(target)
    except OSError as error:
        if not is_full(error):
            raise UserError(
                f"{error.filename or working}: {error.strerror or error}; see to it and run the same command."
            ) from error
        raise UserError(f"There is no space left in {working}; free some and run the same command to go on.") from None
    return f"{describe_classes(info)}\nPrepared in {target}; the picture of its classes is {CLASS_COUNTS_FILE} there."


def _is_same(target: Path, plan: str, thresholds: tuple[int, int]) -> bool:
    """Whether a prepared data set is just what is asked for."""
    try:
        info = json.loads((target / INFO_FILE).read_text())
        return (target / PLAN_FILE).read_text() == plan and info["group_thresholds"] == list(thresholds)
    except (OSError, ValueError, KeyError):  # incomplete or damaged
        return False


def _list_images(
    arguments: argparse.Namespace, preparer: Preparer, format: shards.Format, unpack_in: Path
) -> tuple[Listing, dict[str, Any]]:
    """The listing, and the options that it was asked for with."""
    from_tfds = tfds_source.is_tfds(arguments.source)
    if from_tfds and preparer.list_tfds is None:
        raise UserError(f"{arguments.dataset} is no data set of TFDS; give --source=<folder or archive> of the images.")
    list_images = preparer.list_tfds if from_tfds else preparer.list_images
    takes = inspect.signature(list_images).parameters
    given = {key: getattr(arguments, key) for key in LISTING_OPTIONS if getattr(arguments, key) is not None}
    if unknown := [key for key in given if key not in takes]:
        own = [f"--{key}" for key in LISTING_OPTIONS if key in takes]
        raise UserError(f"{arguments.dataset} takes no --{unknown[0]}; its own options: {', '.join(own) or 'none'}.")
    options = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    if "source" in takes:
        if arguments.source is None:
            raise UserError(f"{arguments.dataset} needs --source=<folder or archive> of the images.")
        given |= {"source": str(arguments.source) if from_tfds else arguments.source.expanduser()}
        given |= {"unpack_in": unpack_in} if "unpack_in" in takes else {}
    elif arguments.source is not None:
        raise UserError(f"{arguments.dataset} is made here and takes no --source; leave it out.")
    if "resolution" in takes:
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
    """Everything but the last renaming; see `prepare`."""
    skip = arguments.on_error == "skip"
    _stop_for(listing.problems, working, skip)
    if not listing.splits["train"]:
        raise UserError(f"{arguments.source} holds no training images; see whether it is the right folder or archive.")
    if not (working / PLAN_FILE).exists() or (working / PLAN_FILE).read_text() != plan:
        for path in working.glob("*.array_record-*"):  # of another plan
            path.unlink()
        (working / PLAN_FILE).write_text(plan)
    planned = shards.plan_shards(listing, format, working, name)
    begun, missing = time.perf_counter(), [shard for shard in planned if _to_do(shard, skip)]
    if len(missing) < len(planned):
        print(f"Going on: {len(planned) - len(missing)} of {len(planned)} shards are there.", flush=True)
    if missing:
        shards.write_shards(missing, arguments.jobs, f"Preparing {name}")
        seconds, count = time.perf_counter() - begun, sum(len(shard.items) for shard in missing)
        print(f"{count} images in {seconds:.0f} s, {count / seconds:.0f} a second.", flush=True)
    duplicates = finish.find_duplicates(planned)
    problems = finish.collect_problems(listing, planned)
    if duplicates and listing.published_counts:
        print(f"Note: {len(duplicates)} {shards.DUPLICATES}; they stay, as published.")
    elif duplicates and skip:
        for shard in planned:
            if shard.split == "train" and any(item.name in duplicates for item in shard.items):
                shards.write_shard(shard, duplicates)
        problems = finish.collect_problems(listing, planned)
    else:
        for name_in_train, name_in_reference in duplicates.items():
            problems.add(shards.DUPLICATES, f"{name_in_train}: as {name_in_reference}")
    _stop_for(problems, working, skip)
    splits = finish.collect_splits(listing, planned, format)
    info = finish.write_data_set(working, listing, planned, splits, problems, format, name, options, thresholds)
    if problems.wrong or problems.converted:
        print(problems.describe())
    return info


def _to_do(shard: shards.Shard, skip: bool) -> bool:
    """Whether a shard is to be written: it is not there, or has lost images to mistakes that may be mended by now."""
    notes = shards.read_metadata(shard)
    return notes is None or (bool(notes.wrong) and not skip)


def _stop_for(problems: Problems, working: Path, skip: bool) -> None:
    """Ends with a listing of what is wrong, unless that is to be left out."""
    if not problems.wrong:
        (working / PROBLEMS_FILE).unlink(missing_ok=True)  # of an earlier run
        return
    (working / PROBLEMS_FILE).write_text(problems.describe(None) + "\n")
    if not skip:
        print(problems.describe(), file=sys.stderr)
        things = "1 thing is" if len(problems) == 1 else f"{len(problems)} things are"
        raise UserError(
            f"{things} wrong with the source, listed above and in {working / PROBLEMS_FILE}; mend them and run the same "
            "command, or give --on_error=skip to leave them out."
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
