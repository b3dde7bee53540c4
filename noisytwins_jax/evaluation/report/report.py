"""What a run has learnt, on one page: ``report.html``."""

import os
from collections.abc import Sequence
from pathlib import Path

from noisytwins_jax.evaluation.report import webpage
from noisytwins_jax.evaluation.report.glossary import how_to_read, known_metrics
from noisytwins_jax.evaluation.report.report_sections import (
    Evaluation,
    format_number,
    head_to_tail_section,
    headline_table,
    memorisation_section,
    protocol_note,
    protocol_section,
    truncation_section,
)

Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]  # caption, header, rows


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    config_text: str,
    evaluation: Evaluation,
    figures: Sequence[tuple[str, webpage.Picture]] = (),
    tables: Sequence[Table] = (),
    notes: Sequence[str] = (),
    lede: str = "",
) -> Path:
    """Writes a run's report: one HTML file that holds everything it shows and requests nothing.

    Args:
      path: the file to write, e.g. ``workdir/report.html``; replaced atomically.
      title: heading of the page.
      config_text: the configuration, shown behind a line to click.
      evaluation: what ``metrics.evaluation.evaluate_generator`` gives; parts that are missing are left out. The
        headline table, the protocol, the groups, the per-class table and chart, the truncation sweep and the distances
        to training images are made from it.
      figures: (caption, picture) in order of reading: sample sheet, nearest training images, projection of W, training
        curves, ... A picture is a PNG file's bytes, a PIL image or a Matplotlib figure. The caption's first sentence
        becomes a heading.
      tables: further tables (caption, header, rows of plain values).
      notes: sentences for the reader, e.g. what was not trained to the end; shown at the top with the evaluation's own
        warnings.
      lede: a line under the title: data, method, length of training.

    Returns:
      ``path``.

    Raises:
      UserError: bytes among the figures that are not a PNG file.
    """
    warnings = (evaluation.get("protocol") or {}).get("warnings") or ()
    extra = [
        webpage.table(
            [webpage.escape(cell) for cell in header],
            [[webpage.escape(format_number(x)) for x in row] for row in rows],
            caption,
        )
        for caption, header, rows in tables
    ]
    body = [
        webpage.care([*notes, *warnings]),
        webpage.beside(
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
        webpage.section("More numbers", *extra),
        how_to_read(evaluation, known_metrics([evaluation])),
        webpage.folded("Configuration", config_text),
    ]
    return webpage.write_page(path, webpage.page(title, lede, body))
