"""The report page of one evaluation: ``report.html``."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from noisytwins_jax.evaluation.report import webpage
from noisytwins_jax.evaluation.report.glossary import how_to_read, known_metrics
from noisytwins_jax.evaluation.report.report_sections import (
    Evaluation,
    head_to_tail_section,
    headline_table,
    memorisation_section,
    protocol_note,
    protocol_section,
    truncation_section,
)


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    config_text: str,
    evaluation: Evaluation,
    figures: Sequence[tuple[str, webpage.Picture]] = (),
    lede: str = "",
    recipe_text: str = "",
    curves: Collection[str] = (),
) -> Path:
    """Write a run's report: one self-contained HTML file.

    Args:
      path: the file to write, e.g. ``workdir/report.html``; replaced atomically.
      title: heading of the page.
      config_text: the configuration, shown folded.
      evaluation: the result of `evaluate_generator`; missing parts are left out. The headline table, the protocol, its
        warnings, the groups, the per-class table and chart, the truncation sweep and the distances to training images
        come from it.
      figures: (caption, picture) in order of reading: sample sheet, nearest training images, projection of W, training
        curves, ... A picture is a PNG file's bytes, a PIL image or a Matplotlib figure. The caption's first sentence
        becomes a heading.
      lede: a line under the title: data, method, length of training.
      recipe_text: settings that follow from the data, with their rules, shown folded.
      curves: names of the logged numbers that a figure shows; some are explained.

    Returns:
      ``path``.

    Raises:
      UserError: bytes among the figures that are not a PNG file.
    """
    warnings = (evaluation.get("protocol") or {}).get("warnings") or ()
    body = [
        webpage.callout(warnings),
        webpage.side_by_side(
            webpage.section(
                "Results",
                headline_table(evaluation) or webpage.paragraph("This run has not been evaluated."),
                protocol_note(evaluation),
            ),
            webpage.section(
                "Protocol of these numbers", protocol_section(evaluation) or webpage.paragraph("Not recorded.")
            ),
        ),
        webpage.section("Pictures", *(webpage.figure(caption, picture) for caption, picture in figures)),
        webpage.section("Head to tail", *head_to_tail_section(evaluation)),
        webpage.section("Quality against variety", truncation_section(evaluation)),
        webpage.section("Memorisation", memorisation_section(evaluation)),
        how_to_read(evaluation, known_metrics([evaluation]) | set(curves)),
        webpage.details("Settings from the data", recipe_text) if recipe_text else "",
        webpage.details("Configuration", config_text),
    ]
    return webpage.write_page(path, webpage.page(title, lede, body))
