"""``--mode=sample``: pictures from a trained run."""

from pathlib import Path

import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.diagnostics.sheets import image_grid
from noisytwins_jax.errors import UserError
from noisytwins_jax.latents import Truncation, check_truncation, parse_truncation
from noisytwins_jax.restoring import build_sampler, restore_generator
from noisytwins_jax.together import on_first_process, shared_rows
from noisytwins_jax.workdir import needing_space


def sample(
    config: RunConfig,
    workdir: str | Path,
    which: str = "latest",
    classes: list[int] | None = None,
    per_class: int = 16,
    truncation: str = "",
    seed: int = 0,
) -> Path:
    """Draws a grid, a row a class, and writes it as PNG and as arrays into ``<workdir>/samples``.

    Several processes share the drawing; the first one writes.

    Args:
      config: the configuration the run was trained with.
      workdir: the run.
      which: ``"latest"``, ``"best"`` or a step.
      classes: class ids; all by default.
      per_class: images of each class.
      truncation: a strength, or a kind and a strength as ``threshold:0.5`` (see `latents`); empty for none. Without a
        kind it is ψ in W, or for BigGAN the threshold of z.
      seed: of the latents. Image j of a class has the same latents whatever the other classes.

    Returns:
      The picture's path; beside it an ``.npz`` with ``images`` uint8 ``[n, H, W, C]``, ``labels`` ``[n]`` and the
      ``class_names`` of all classes.

    Raises:
      UserError: no such checkpoint or class, or an argument out of range.
    """
    if classes is not None and not len(classes):
        raise UserError("--classes is empty; give class ids, for example --classes=0,9, or leave it out for all.")
    if per_class < 1:
        raise UserError(f"--samples_per_class={per_class} is below 1; ask for at least one image a class.")
    cut = parse_truncation(truncation, config.truncation_kind)
    if cut is not None:
        check_truncation(*cut, config.latents.kind, config.has_mapping_network)
    if cut == Truncation("psi", 1.0):
        cut = None
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed={seed} must be from 0 to {2**32 - 1}.")
    arguments = {
        "classes": classes,
        "samples_per_class": per_class,
        "truncation": truncation,
        "seed": seed,
        "checkpoint": which,
    }
    splits, workdir, step, variables = restore_generator(config, workdir, which, **arguments)
    num_classes = splits.train.num_classes
    classes = list(range(num_classes)) if classes is None else classes
    unknown = [c for c in classes if not 0 <= c < num_classes]
    if unknown:
        raise UserError(f"There is no class {unknown[0]}; classes are 0 to {num_classes - 1}.")
    labels = np.repeat(classes, per_class)
    indices = labels * 2**20 + np.tile(np.arange(per_class), len(classes))
    sampler = build_sampler(config, variables, splits, seed=seed, truncation=cut)
    images, _ = shared_rows(lambda rows: sampler(labels[rows], indices[rows]), len(labels))

    def write() -> Path:
        directory = workdir / "samples"
        directory.mkdir(exist_ok=True)
        how = f"{cut.kind}{cut.strength:g}" if cut else "untruncated"
        stem = f"step{step}-{how}-seed{seed}"
        picture = directory / f"{stem}.png"
        with needing_space(workdir):
            names = np.array(splits.train.class_names, str)  # what the ids mean
            np.savez(directory / f"{stem}.npz", images=images, labels=labels, class_names=names)
            image_grid(images, columns=per_class).save(picture)
        return picture

    return on_first_process(write)
