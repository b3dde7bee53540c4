"""``--mode=sample``: images from a trained run, or from a directory written by ``noisytwins_jax.convert``."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.aspect import Aspect, restore_aspect
from noisytwins_jax.generation.animation import loop_ends, save_animation
from noisytwins_jax.generation.direction_sheets import write_directions
from noisytwins_jax.generation.sampler import Sampler
from noisytwins_jax.generation.sheets import image_grid
from noisytwins_jax.generation.style_mixing import mixing_images
from noisytwins_jax.generation.trained_generator import TrainedGenerator, load
from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.training.restore import check_has_checkpoint, check_run_consistency
from noisytwins_jax.training.workdir import open_workdir
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import handle_disk_full
from noisytwins_jax.utils.multihost import broadcast_from_primary, distributed_map, raise_on_all_processes
from noisytwins_jax.utils.progress_bar import images_bar

FORMATS = ("grid", "npz", "files")
_CHUNK = 1024  # images between updates of the progress bar
_LARGEST_GRID = 10_000  # images
_LARGEST_MIX = 24  # rows and columns


def sample(
    config: RunConfig | None,
    workdir: str | Path,
    which: str = "latest",
    classes: Sequence[int | str] | None = None,
    per_class: int = 16,
    truncation: str = "",
    seed: int = 0,
    noise_mode: str | None = None,
    formats: Sequence[str] = ("grid", "npz"),
    frames: int = 0,
    mix_layers: str = "",
    style_seed: int | None = None,
    square: bool = False,
    directions: int = 0,
) -> Path:
    """Generate images, one row per class, and write them to ``<workdir>/samples``; several processes share the work.

    The training images are not needed.

    Args:
      config: the configuration the run was trained with; None for that in the workdir.
      workdir: the run.
      which: ``"latest"``, ``"best"`` or a step.
      classes: class ids or names; all by default.
      per_class: images per class.
      truncation: a strength, or a kind and a strength as ``threshold:0.5`` (see `latents`); empty for none. Without a
        kind it is ψ in W, or for BigGAN the threshold of z.
      seed: of the latents. Image j of a class has the same latents whatever the other classes.
      noise_mode: StyleGAN2's per-pixel noise, ``random``, ``const`` or ``none``; None for that of the configuration.
      formats: of `FORMATS`. ``grid``: one picture. ``npz``: ``images`` uint8 ``[n, H, W, C]``, ``labels`` ``[n]`` and the
        ``class_names`` of all classes, as ``--mode=evaluate --images`` and other programs take them, always square.
        ``files``: one PNG per image, one folder per class.
      frames: above 0, an animation instead, with this number of frames from each image to the next and from the last to
        the first.
      mix_layers: as ``4-7``, a picture of style mixing instead (StyleGAN2): rows are images, in which each column replaces
        these layers by those of another image.
      style_seed: of the half of the latents that the class's style takes (Content–Style); None for `seed`.
      square: keep the squares of a run whose pictures were padded or stretched; by default their padding is cropped, or
        they are stretched back.
      directions: above 0, sheets of that many of SeFa's directions instead (StyleGAN2); see `write_directions`.

    Returns:
      The path of the picture if there is one, otherwise of the arrays or the folder.

    Raises:
      UserError: the checkpoint or class does not exist, or an argument is out of range.
    """
    _check(formats, frames, mix_layers, style_seed, directions)
    arguments = {
        "classes": classes,
        "samples_per_class": per_class,
        "truncation": truncation,
        "seed": seed,
        "checkpoint": which,
        "noise_mode": noise_mode,
        "frames": frames,
        "mix_layers": mix_layers,
        "style_seed": style_seed,
        "square": square,
        "directions": directions,
    }
    check_has_checkpoint(workdir, which)
    with raise_on_all_processes():
        workdir = Path(workdir).absolute() if config is None else open_workdir(workdir, config)
    trained = load(workdir, which, config)
    check_run_consistency(trained.config, arguments)
    labels, indices = trained.labels_and_indices(classes, per_class)
    cut, aspect = trained.truncation(None, truncation), None if square else trained.aspect
    name = f"{cut.kind}{cut.strength:g}" if cut else "untruncated"
    stem = f"step{trained.step}-{name}-seed{seed}" + (f"-style{style_seed}" if style_seed is not None else "")
    stem += f"-noise_{noise_mode}" if noise_mode else ""
    stem += "-square" if aspect != trained.aspect else ""
    target = workdir / "samples" / stem
    with handle_disk_full(workdir):
        broadcast_from_primary(lambda: target.parent.mkdir(exist_ok=True))
        if mix_layers:
            return _write_mix(trained, labels, indices, seed, cut, mix_layers, target, noise_mode, aspect)
        if directions:
            folder = target.with_name(f"{target.name}-directions")
            return broadcast_from_primary(
                lambda: write_directions(trained, labels, indices, seed, cut, directions, folder, noise_mode, aspect)
            )
        sampler = trained.sampler(cut, seed, noise_mode, len(labels), style_seed)
        if frames:
            return _write_animation(sampler, labels, indices, frames, target, aspect)
        images = _generate(sampler, labels, indices)
        return broadcast_from_primary(
            lambda: _write(images, labels, trained.class_names, per_class, formats, target, aspect)
        )


def _generate(sampler: Sampler, labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Generate images uint8 ``[n, H, W, C]`` with a progress bar; all processes share the work."""

    def compute(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = []
        with images_bar("Sampling", len(rows) * jax.process_count()) as bar:
            for start in range(0, len(rows), _CHUNK):
                chunk = rows[start : start + _CHUNK]
                parts.append(sampler(labels[chunk], indices[chunk])[0])
                bar.update(len(chunk) * jax.process_count())
        return (np.concatenate(parts),)

    return distributed_map(compute, len(labels))[0]


def _check(formats: Sequence[str], frames: int, mix_layers: str, style_seed: int | None, directions: int) -> None:
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format={name} is none of {', '.join(FORMATS)}; give a comma-separated list of these.")
    if not formats:
        raise UserError(f"--format is empty; give a comma-separated list of {', '.join(FORMATS)}.")
    if frames < 0:
        raise UserError(f"--frames={frames} is below 0; give the frames from one image to the next, for example 24.")
    if frames and mix_layers:
        raise UserError("--frames makes an animation and --mix_layers a picture of mixed styles; give one of them.")
    if directions and (frames or mix_layers):
        raise UserError("--directions makes sheets of its own; leave out --frames and --mix_layers.")
    if style_seed is not None and (frames or mix_layers or directions):
        raise UserError("--style_seed is for pictures of samples; leave out --frames, --mix_layers and --directions.")


def _write(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    per_class: int,
    formats: Sequence[str],
    target: Path,
    aspect: Aspect | None,
) -> Path:
    written = []
    if "grid" in formats:
        if len(images) > _LARGEST_GRID:
            raise UserError(
                f"A grid of {len(images)} images is too large to look at; give --format=npz or files, or fewer classes or "
                "--samples_per_class."
            )
        written.append(target.with_name(f"{target.name}.png"))
        image_grid(restore_aspect(images, aspect), columns=per_class).save(written[-1])
    if "npz" in formats:
        written.append(target.with_name(f"{target.name}.npz"))
        names = np.array(class_names, str)  # what the ids mean
        np.savez(written[-1], images=images, labels=labels, class_names=names)
    if "files" in formats:
        written.append(target)
        counts: dict[int, int] = {}
        width = len(str(len(class_names) - 1))
        for image, label in zip(restore_aspect(images, aspect), labels.tolist(), strict=True):
            folder = target / f"{label:0{width}d}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
                folder / f"{counts.setdefault(label, 0):06d}.png"
            )
            counts[label] += 1
    return written[0]


def _write_animation(
    sampler: Sampler, labels: np.ndarray, indices: np.ndarray, frames: int, target: Path, aspect: Aspect | None
) -> Path:
    if len(labels) < 2:
        raise UserError("An animation goes from image to image; give more --classes or --samples_per_class than one.")
    *ends, t = loop_ends(labels, indices, frames)
    (images,) = distributed_map(lambda rows: (sampler.interpolate(ends[0][rows], ends[1][rows], t[rows]),), len(t))
    path = target.with_name(f"{target.name}-{frames}frames.gif")
    return broadcast_from_primary(lambda: save_animation(restore_aspect(images, aspect), path))


def _write_mix(
    trained: TrainedGenerator,
    labels: np.ndarray,
    indices: np.ndarray,
    seed: int,
    cut: Truncation | None,
    layers: str,
    target: Path,
    noise_mode: str | None,
    aspect: Aspect | None,
) -> Path:
    generator = trained.stylegan2_generator("--mix_layers")
    chosen = _layers(layers, generator.num_ws)
    if len(labels) > _LARGEST_MIX:
        raise UserError(
            f"Mixing each of {len(labels)} images with each is too much to look at; give at most {_LARGEST_MIX} by "
            "--classes and --samples_per_class."
        )
    psi = cut.strength if cut and cut.kind == "psi" else None
    in_z = cut if cut and cut.kind != "psi" else None

    def write() -> Path:
        w = trained.sampler(in_z, seed, noise_mode, len(labels))(labels, indices)[1]
        ws = np.repeat(w[:, None], generator.num_ws, axis=1)
        cells = mixing_images(trained, ws, chosen, psi, noise_mode or "const", seed)
        path = target.with_name(f"{target.name}-mixed{layers}.png")
        image_grid(restore_aspect(cells, aspect), columns=len(ws) + 1).save(path)
        return path

    return broadcast_from_primary(write)


def _layers(text: str, num_ws: int) -> list[int]:
    """Parse ``4-7`` or ``4`` as layers, both ends included."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first) < num_ws):
        raise UserError(
            f"--mix_layers={text} are no layers of this generator; give a first and a last one as 4-7, from 0 to {num_ws - 1}."
        )
    return list(range(int(first), int(last or first) + 1))
