"""Writing of evaluation results to the workdir: ``evaluation.json``, image sheets, ``w.npz`` and the report.

With several processes, all of them call `write_results`, and the primary writes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.config.recipe import followed_settings
from noisytwins_jax.data.recipe import recipe_table
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.evaluation.evaluation_hook import to_scalars
from noisytwins_jax.evaluation.report.curves import rows_head_to_tail, training_curves
from noisytwins_jax.evaluation.report.factor_figure import factor_figure
from noisytwins_jax.evaluation.report.glossary import HEADLINES
from noisytwins_jax.evaluation.report.report import write_report
from noisytwins_jax.evaluation.report.singular_values_figure import singular_values_figure
from noisytwins_jax.evaluation.report.w_projection import w_projection_figure
from noisytwins_jax.evaluation.run_evaluation import RESUME_FOLDER, evaluate_variables
from noisytwins_jax.evaluation.sheets import (
    NEAREST_FILE,
    SHEET_FILE,
    make_latent_sheets,
    make_nearest_sheet,
    make_sheet,
    sample_w,
)
from noisytwins_jax.evaluation.table import format_table
from noisytwins_jax.metrics.resumable_chunks import ResumableCache
from noisytwins_jax.training.fault_tolerance.collapse_log import read_collapses
from noisytwins_jax.utils.files import write_atomically
from noisytwins_jax.utils.logging import read_metrics
from noisytwins_jax.utils.multihost import broadcast_from_primary, local_copy, print_on_primary
from noisytwins_jax.utils.wandb_log import WandbLog

EVALUATION_FILE, REPORT_FILE, W_FILE = "evaluation.json", "report.html", "w.npz"
NEAREST_CAPTION = (
    "Nearest training images. Left: generated images, not selected; right of each, its nearest training images, with "
    "their distances."
)
SINGULAR_VALUES_CAPTION = (
    "Singular values of every weight. The largest, and its ratio to the second (BigGAN, Fig. 3); sudden growth in the "
    "generator precedes collapse."
)
INTERPOLATIONS_CAPTION = (
    "Interpolations. Linear between two z, between two classes (their embeddings, or w), and both at once (BigGAN, Fig. 8 "
    "and 9); not selected. Row by row, the three kinds begin with the same image. Sudden jumps are a sign of memorised "
    "images."
)
TRUNCATION_CAPTION = (
    "Truncation. The same z in every row, truncated more and more (BigGAN, Fig. 2); not selected. Quality should rise as "
    "variety falls; saturated images mean that the generator is not amenable to truncation."
)
W_CAPTION = "Latent space W. Each dot is the w of one (z, class); a collapsed class is a point or a thin line."


def write_results(
    config: RunConfig,
    variables: dict,
    step: int,
    splits: DataSplits,
    workdir: Path,
    result: dict[str, Any] | None = None,
    wandb: WandbLog | None = None,
) -> Path:
    """Evaluate, unless `result` is given, and write numbers, sheets and report, and to `wandb`; return the report's path."""
    variables = local_copy(variables)
    result = result or evaluate_variables(config, variables, splits, workdir)
    result["protocol"]["step"] = step
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    broadcast_from_primary(lambda: write_atomically(workdir / EVALUATION_FILE, text))
    ResumableCache(workdir / RESUME_FOLDER).remove_finished()
    print_on_primary(format_table({config.name: result}))
    sheet = make_sheet(config, variables, splits, workdir / SHEET_FILE)
    nearest = make_nearest_sheet(config, variables, splits, result, workdir / NEAREST_FILE)
    latent = make_latent_sheets(config, variables, splits, workdir)
    w, labels = sample_w(config, variables, splits)
    if wandb is not None:
        _log_results(wandb, step, result, {"samples": sheet, "nearest": nearest})
    return broadcast_from_primary(
        lambda: _write_report(config, step, splits, workdir, result, sheet, nearest, latent, w, labels)
    )


def _log_results(wandb: WandbLog, step: int, result: dict[str, Any], sheets: dict[str, Image.Image | None]) -> None:
    """Log the numbers, as scalars and as tables (all classes together, and each class), and the sheets."""
    metrics, real = result["metrics"], result.get("real_vs_real") or {}
    wandb.write_scalars(step, to_scalars(result))
    rows = [
        {"metric": name, "meaning": meaning, "value": metrics[key], "real against real": real.get(key)}
        for key, name, meaning, _ in HEADLINES
        if metrics.get(key) is not None
    ]
    wandb.write_table(step, "evaluation/results", rows)
    wandb.write_table(step, "evaluation/classes", rows_head_to_tail(result))
    wandb.write_images(step, {name: sheet for name, sheet in sheets.items() if sheet is not None})


def _write_report(
    config: RunConfig,
    step: int,
    splits: DataSplits,
    workdir: Path,
    result: dict[str, Any],
    sheet: Image.Image,
    nearest: Image.Image | None,
    latent: tuple[Image.Image, Image.Image],
    w: np.ndarray,
    labels: np.ndarray,
) -> Path:
    np.savez(workdir / W_FILE, w=w, labels=labels)
    names, counts = splits.train.class_names, splits.train.class_counts
    with_w = config.has_mapping_network
    kimg, records = step * config.images_per_step / 1000, read_metrics(workdir)
    return write_report(
        workdir / REPORT_FILE,
        title=config.name,
        lede=f"{len(splits.train)} training images of {len(counts)} classes, {counts.max()} to {counts.min()} a class; "
        f"{kimg:g} kimg; averaged generator of step {step}.",
        config_text=json.dumps(flatten(config), indent=2),
        recipe_text=recipe_table(followed_settings(config, counts)) if config.auto else "",
        curves={name for record in records for name in record},
        evaluation=result,
        figures=[
            ("Samples. Every row is a class, from the most to the least frequent; not selected.", sheet),
            *([(W_CAPTION, w_projection_figure(w, labels, names, class_counts=counts))] if with_w else []),
            *zip((INTERPOLATIONS_CAPTION, TRUNCATION_CAPTION), latent, strict=True),
            *([(NEAREST_CAPTION, nearest)] if nearest else []),
            *_factor_figures(result),
            ("Training. Means over each logging interval.", training_curves(records)),
            *_singular_value_figures(records, workdir),
        ],
    )


def _singular_value_figures(records: list[dict[str, Any]], workdir: Path) -> list[tuple[str, Any]]:
    """Return captions and figures of singular values over training, and for each rollback those of the discarded part."""
    collapses = read_collapses(workdir)
    reported = [record for record in collapses if not record["returned"]]
    signs = "".join(f" Collapse: {record['sign']}." for record in reported)
    marks = {record["kept"]: "went back here" for record in collapses if record["returned"]}
    marks |= {record["step"]: "collapse" for record in reported}
    figures = [(SINGULAR_VALUES_CAPTION + signs, singular_values_figure(records, marks=marks))]
    for record in collapses:
        if record["returned"] and (workdir / record["log"]).exists():
            caption = f"Given up: {record['sign']}. Training went on from step {record['kept']}."
            discarded = read_metrics(workdir / record["log"])
            events = {record["step"]: "collapse", record["kept"]: "went back here"}
            figure = singular_values_figure(discarded, marks=events) or training_curves(discarded)
            figures.append((caption, figure))
    return [(caption, figure) for caption, figure in figures if figure is not None]


def _factor_figures(result: dict[str, Any]) -> list[tuple[str, Any]]:
    factors = result.get("factors")
    if not factors:
        return []
    accuracy = factors["metrics"]["class_accuracy"]
    caption = (
        f"Known factors. Predicted from {factors['protocol']['n_fake']} generated images; {accuracy:.1%} of them show the class "
        "that was asked for. Grey: factors that the network predicts badly for real images too."
    )
    return [(caption, factor_figure(factors))]
