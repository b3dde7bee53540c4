"""``--mode=sample --directions``: images moved along SeFa's directions in W, one sheet a direction."""

from pathlib import Path

import numpy as np

from noisytwins_jax.data.aspect import Aspect, restore_aspect
from noisytwins_jax.generation.projection import mean_w
from noisytwins_jax.generation.row_sheets import ROWS, write_row_sheet
from noisytwins_jax.generation.sefa import directions
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import replacing
from noisytwins_jax.utils.progress_bar import images_bar

_STEPS = np.arange(-4, 5)  # in units of the root mean square deviation of a coordinate of w within its class


def write_directions(
    trained: TrainedGenerator,
    labels: np.ndarray,
    indices: np.ndarray,
    seed: int,
    cut: Truncation | None,
    count: int,
    folder: Path,
    noise_mode: str | None = None,
    aspect: Aspect | None = None,
) -> Path:
    """Write a sheet for each of SeFa's first directions: a row for each image, moved along the direction.

    The folder also gets ``directions.npz``: ``directions`` ``[count, w_dim]``, ``strengths`` ``[count]`` of
    `sefa.directions`, ``w`` ``[n, w_dim]`` of the images in the middle, untruncated in W, their ``labels`` ``[n]``, and the
    lengths of the ``steps`` ``[n, 9]``.

    Args:
      trained: a StyleGAN2.
      labels: class of each image ``[n]``, at most `ROWS`.
      indices: sample index of each image ``[n]``.
      seed: of the latents.
      cut: truncation; in W it acts on what was moved.
      count: number of directions.
      folder: where to write.
      noise_mode: per-pixel noise; the stored one by default, so that the step is the only change.
      aspect: aspect ratio in which the images are shown; None for squares.

    Returns:
      The folder.

    Raises:
      UserError: the generator is no StyleGAN2 or has two kinds of w (UTLO), W has fewer directions, or there are too many
        images to look at.
    """
    generator = trained.stylegan2_generator("--directions")
    if generator.low_resolution:
        raise UserError(
            "The low layers of this generator (UTLO) have a w of their own, along which --directions cannot move."
        )
    if len(labels) > ROWS:
        raise UserError(
            f"{len(labels)} images moved along each direction are too much to look at; give at most {ROWS} by --classes and "
            "--samples_per_class."
        )
    found, strengths = directions(trained.variables, count=count)
    psi = cut.strength if cut and cut.kind == "psi" else None
    in_z = cut if cut and cut.kind != "psi" else None
    w = trained.sampler(in_z, seed, noise_mode, len(labels))(labels, indices)[1]
    spreads = {label: mean_w(trained, label, seed=seed)[1] for label in set(labels.tolist())}
    unit = np.array([spreads[label] for label in labels.tolist()]) / np.sqrt(w.shape[1])
    steps = unit[:, None] * _STEPS
    folder.mkdir(parents=True, exist_ok=True)
    names = [trained.class_names[label] for label in labels]
    with images_bar("Moving along directions", count * steps.size) as bar:
        for number, direction in enumerate(found, 1):
            moved = (w[:, None] + steps[..., None] * direction).reshape(-1, w.shape[1])
            images = restore_aspect(trained.synthesize(moved, psi, noise_mode or "const", seed), aspect)
            images = images.reshape(*steps.shape, *images.shape[1:])
            title = f"Direction {number} of {len(found)}"
            caption = (
                f"SeFa's direction in W, of strength {strengths[number - 1]:.2f}. The sample is in the middle; from column to "
                "column w moves by the standard deviation of a coordinate of w within the class."
                + (f" Truncated: ψ = {psi:g}." if psi is not None else "")
            )
            write_row_sheet(folder / f"direction-{number}.png", names, [(title, images)], caption)
            bar.update(steps.size)
    with replacing(folder / "directions.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, directions=found, strengths=strengths, w=w, labels=labels, steps=steps)
    return folder
