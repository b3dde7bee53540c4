"""``--mode=project``: the points of a generator's latent space whose images are closest to given pictures."""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import UnidentifiedImageError

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.aspect import Aspect, restore_aspect
from noisytwins_jax.data.prepare.files import IMAGE_SUFFIXES, is_image, is_visible
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.data.registry import preprocessing_of
from noisytwins_jax.generation.nearest_classes import NEAREST, SAMPLES, nearest_classes
from noisytwins_jax.generation.projection import Projections, check_space, project_images
from noisytwins_jax.generation.row_sheets import ROWS, write_row_sheet
from noisytwins_jax.generation.trained_generator import (
    TrainedGenerator,
    check_seed,
    find_class_ids,
    load,
)
from noisytwins_jax.training.restore import check_has_checkpoint
from noisytwins_jax.training.workdir import open_workdir, read_run
from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.files import handle_disk_full, replacing
from noisytwins_jax.utils.multihost import print_on_primary
from noisytwins_jax.utils.progress_bar import images_bar

_PIXELS = 2**20  # of the images of a batch on one device: 16 of 256 px
_LARGEST_BATCH = 64  # images on one device
_GROUP = 1024  # pictures whose classes are found together


class Picture(NamedTuple):
    """A picture to project.

    Attributes:
      path: of its file.
      image: uint8 ``[H, W, C]``, as the generator's images are.
      result: file of its result.
    """

    path: Path
    image: np.ndarray
    result: Path


def project_pictures(
    config: RunConfig | None,
    workdir: str | Path,
    which: str,
    pictures: str,
    space: str | None = None,
    steps: int = 500,
    classes: Sequence[int | str] | None = None,
    seed: int = 0,
) -> Path:
    """Project pictures, and write what was found to a folder in ``<workdir>/projections``.

    The folder gets a file of arrays for each picture as soon as it is finished, then sheets ``sheet-1.png``, … and
    ``all.npz`` of all pictures. The same command resumes after an interruption: finished pictures are not computed again.

    Args:
      config: the configuration the run was trained with; None for that in the workdir.
      workdir: the run.
      which: ``"latest"``, ``"best"`` or a step.
      pictures: files, and folders that are searched for pictures at any depth, separated by commas.
      space: of `projection.SPACES`; None for ``"w"``, or ``"z"`` where the generator has no W.
      steps: number of steps of Adam.
      classes: ids or names of the classes that pictures may be of, all by default. Of several, each picture is of the one
        whose generated images are nearest; a single one is given.
      seed: of the random numbers.

    Returns:
      The folder.

    Raises:
      UserError: the checkpoint or a class does not exist, the generator does not have the space, there are no pictures, or
        a file is no picture.
    """
    if steps < 1:
        raise UserError(f"--steps={steps} is below 1; give the number of steps of a projection, for example 500.")
    check_seed(seed)
    check_has_checkpoint(workdir, which)
    workdir = Path(workdir).absolute() if config is None else open_workdir(workdir, config)
    config, channels, class_names = read_run(workdir, config)
    space = space or ("w" if config.has_mapping_network else "z")
    check_space(config, space)
    candidates = sorted(set(find_class_ids(classes, class_names)))
    preprocessing = preprocessing_of(config.data)
    paths = find_pictures(pictures)
    images = read_pictures(paths, preprocessing, config.data.resolution, channels)
    trained = load(workdir, which, config)
    given = "all" if len(candidates) == len(class_names) > 1 else "_".join(map(str, candidates))
    given = given if len(given) < 40 else f"{len(candidates)}of{_digest(json.dumps(candidates).encode())}"
    folder = workdir / "projections" / f"step{trained.step}-{space}-classes_{given}-{steps}steps-seed{seed}"
    settings = {
        "space": space,
        "steps": steps,
        "classes": candidates,
        "seed": seed,
        "checkpoint": trained.step,
        "generator": _digest(*(np.asarray(x).tobytes() for x in jax.tree.leaves(trained.variables))),
        "preprocessing": preprocessing.name,
    }
    listed = [
        Picture(path, image, folder / f"{path.stem[:100]}-{_digest(image.tobytes())}.npz")
        for path, image in zip(paths, images, strict=True)
    ]
    with handle_disk_full(workdir):
        folder.mkdir(parents=True, exist_ok=True)
        todo = {p.result: p for p in listed if _read(p.result, settings) is None}
        finished = len(listed) - sum(p.result in todo for p in listed)
        if finished:
            print_on_primary(f"{finished} of {len(listed)} pictures are finished in {folder}.")
        _project(trained, [*todo.values()], candidates, settings)
        _write_all(listed, settings, class_names, folder, trained.aspect)
    return folder


def find_pictures(text: str) -> list[Path]:
    """List the pictures of files and folders that are separated by commas, those of a folder sorted.

    Raises:
      UserError: a path does not exist, or there are no pictures.
    """
    found: list[Path] = []
    for part in [text] if os.path.exists(text) else [part for part in text.split(",") if part]:
        path = Path(part).expanduser()
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if is_image(file.name) and all(map(is_visible, file.relative_to(path).parts)) and file.is_file()
            )
            if not inside:
                raise UserError(f"{path} holds no pictures ({', '.join(IMAGE_SUFFIXES)}); give another folder.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"There is no {path}; give pictures, or folders of them, separated by commas.")
    if not found:
        raise UserError("There are no pictures to project; give files or folders of them: --images=PATH,PATH.")
    return [*dict.fromkeys(found)]


def read_pictures(
    paths: Sequence[Path], preprocessing: Preprocessing, resolution: int, channels: int
) -> list[np.ndarray]:
    """Read pictures as a generator's images are: uint8 ``[resolution, resolution, channels]`` each.

    Raises:
      UserError: a file is no picture.
    """

    def read(path: Path) -> np.ndarray:
        try:
            return preprocessing(path.read_bytes(), resolution, channels)
        except UnidentifiedImageError:
            raise UserError(f"{path} is no picture; leave it out.") from None
        except Exception as error:  # Pillow raises many types
            raise UserError(f"{path} cannot be read as a picture ({first_line(error)}); leave it out.") from None

    with ThreadPoolExecutor() as pool:
        return [*pool.map(read, paths)]


def _project(trained: TrainedGenerator, todo: list[Picture], classes: list[int], settings: dict) -> None:
    """Find the classes of pictures, project them in batches, and write the result of each."""
    resolution, space, steps, seed = (
        trained.config.data.resolution,
        settings["space"],
        settings["steps"],
        settings["seed"],
    )
    batch = max(1, min(_LARGEST_BATCH, _PIXELS // resolution**2)) * jax.local_device_count()
    for start in range(0, len(todo), _GROUP):
        group = todo[start : start + _GROUP]
        images = np.stack([picture.image for picture in group])
        distances = np.zeros((len(group), 1), np.float32)
        if len(classes) > 1:
            with images_bar("Finding classes", len(classes) * SAMPLES) as bar:
                distances = nearest_classes(trained, images, classes, seed, bar.update)
        labels = [classes[i] for i in distances.argmin(axis=1)]
        # In units of a step of a picture.
        with images_bar("Projecting", len(group) * steps, "step") as bar:
            for rows in (range(i, min(i + batch, len(group))) for i in range(0, len(group), batch)):

                def report(done: int, _: np.ndarray, first: int = rows.start, count: int = len(rows)) -> None:
                    bar.update(first * steps + done * count - bar.n)

                found = project_images(
                    trained, images[rows], [labels[i] for i in rows], space, steps, seed=seed, report=report
                )
                for number, i in enumerate(rows):
                    _write(group[i], found, number, labels[i], distances[i], settings)


def _write(
    picture: Picture, found: Projections, number: int, label: int, class_distances: np.ndarray, settings: dict
) -> None:
    _save(
        picture.result,
        {
            _array(settings): found.points[number],
            "label": label,
            "distance": found.way_distances[number, -1],
            "image": found.way_images[number, -1],
            "picture": picture.image,
            "losses": found.losses[number],
            "way_steps": found.way_steps,
            "way_images": found.way_images[number],
            "way_distances": found.way_distances[number],
            "class_distances": class_distances,
            "settings": json.dumps(settings),
        },
    )


def _write_all(
    listed: list[Picture], settings: dict, class_names: Sequence[str], folder: Path, aspect: Aspect | None
) -> None:
    """Write the sheets and arrays of all pictures, and print class and distance of each."""
    name, found, kept = _array(settings), len(settings["classes"]) > 1, []
    for number, start in enumerate(range(0, len(listed), ROWS), 1):
        pictures = listed[start : start + ROWS]
        results = [_read(picture.result, settings) for picture in pictures]
        rows, texts = [], []
        for picture, result in zip(pictures, results, strict=True):
            label, distance = class_names[int(result["label"])], float(result["distance"])
            rows.append(f"{picture.path.name} · {label}")
            way = zip(result["way_steps"].tolist(), result["way_distances"].tolist(), strict=True)
            texts.append(["", *(f"step {step}\n{value:.2g}" for step, value in way)])
            next_one = _describe_choice(result, settings["classes"], class_names) if found else ""
            print_on_primary(f"{picture.path}: class {label}{next_one}, distance {distance:.2g}")
        ways = np.stack([restore_aspect(result["way_images"], aspect) for result in results])
        sides = [
            ("Picture", restore_aspect(np.stack([result["picture"] for result in results]), aspect)[:, None]),
            ("On the way", ways[:, :-1]),
            ("Result", ways[:, -1:]),
        ]
        how = f"found: the one whose generated images are nearest ({NEAREST} of {SAMPLES})" if found else "given"
        caption = (
            f"Projection into {settings['space'].upper()} in {settings['steps']} steps. Below an image: steps done, and the "
            f"mean square difference of pixels over sizes (1 is half of black to white). Classes are {how}."
        )
        write_row_sheet(folder / f"sheet-{number}.png", rows, sides, caption, texts)
        kept += [{key: result[key] for key in (name, "label", "distance", "image")} for result in results]
    arrays = {f"{key}s" if key != name else key: np.stack([result[key] for result in kept]) for key in kept[0]}
    files = np.array([str(picture.path) for picture in listed])
    names = np.array(class_names, str)
    _save(
        folder / "all.npz",
        {**arrays, "files": files, "class_names": names, "seed": settings["seed"], "settings": json.dumps(settings)},
    )


def _describe_choice(result: Mapping[str, np.ndarray], classes: Sequence[int], class_names: Sequence[str]) -> str:
    """Describe how clear a found class is by the one after it."""
    first, second = np.argsort(result["class_distances"])[:2]
    distances = result["class_distances"]
    return f" (found at {distances[first]:.3f}; then {class_names[classes[second]]} at {distances[second]:.3f})"


def _array(settings: Mapping) -> str:
    """Return the name of the array of points."""
    return "z" if settings["space"] == "z" else "w"


def _save(path: Path, arrays: Mapping[str, object]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _read(path: Path, settings: dict) -> dict[str, np.ndarray] | None:
    """Read a picture's result; None if there is none, or of another generator or of other settings."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # missing or damaged
        return None
    return arrays if json.loads(str(arrays["settings"])) == settings else None


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:8]
