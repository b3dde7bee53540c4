"""Sections of a report page for one evaluation: results, protocol, head to tail, truncation and memorisation."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisytwins_jax.evaluation.report import webpage
from noisytwins_jax.evaluation.report.curves import per_class_figure, rows_head_to_tail
from noisytwins_jax.evaluation.report.glossary import COLUMNS, DEVIATIONS, HEADLINES, PROTOCOL, TRUNCATION_COLUMNS
from noisytwins_jax.evaluation.report.memorisation_figure import memorisation_figure
from noisytwins_jax.evaluation.report.truncation_figure import OPERATING_POINTS, truncation_figure, unreached_score
from noisytwins_jax.evaluation.table import has_classes, protocol_line
from noisytwins_jax.models.latents import TRUNCATION_DESCRIPTIONS, TRUNCATION_SYMBOLS
from noisytwins_jax.utils.errors import UserError

Evaluation = Mapping[str, Any]  # see `evaluate_generator`
MAX_CLASS_ROWS = 60  # in the per-class table; of more classes, only the head and the tail are listed


def format_number(value: object) -> str:
    """Format a number with about three significant digits, "n/a" for missing or non-finite ones; other values as they are."""
    if value is None or (isinstance(value, (float, np.floating)) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, np.integer)):
        return str(value)
    if isinstance(value, (float, np.floating)):
        size = abs(value)
        small = 0 < size < 0.01  # often so for KID
        return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size > 1 else f"{value:{'.2g' if small else '.3f'}}"
    return str(value)


def metric_cell(name: str, meaning: str, direction: int) -> str:
    """Return a table cell with a metric's name, its better direction (+1, -1, or 0 for neither) and its meaning."""
    arrow = {1: "&nbsp;↑", -1: "&nbsp;↓", 0: ""}[direction]
    return f"{webpage.escape(name)}{arrow}<small>{webpage.escape(meaning)}</small>"


def number_cell(values: Mapping[str, Any], key: str) -> str:
    """Return a table cell with a number, and its standard deviation where the metric has one."""
    deviation = values.get(DEVIATIONS.get(key, ""))
    return format_number(values.get(key)) + (
        f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{format_number(deviation)}" if deviation is not None else ""
    )


def protocol_note(evaluation: Evaluation) -> str:
    """Return the protocol in one line, to go below numbers."""
    if not evaluation.get("protocol"):
        return ""
    return f"<p><small>{webpage.escape(protocol_line(evaluation))}</small></p>"


def _describe_extractors(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) pairs about each extractor behind the numbers."""
    networks = protocol.get("extractors")
    if not networks:  # from before there were several
        names = (("extractor", "Features from"), ("extractor_sha256", "… weights' SHA-256"), ("feature_dim", "… size"))
        return [(name, format_number(protocol[key])) for key, name in names if protocol.get(key) is not None]
    entries = []
    for key, network in networks.items():
        preprocessing = network.get("preprocessing", (network.get("description") or {}).get("preprocessing"))
        headline = "the headline's" if key == protocol.get("headline_extractor") else ""
        facts = (network.get("name"), network.get("feature_dim") and f"{network['feature_dim']} features", headline)
        entries.append((f"Network: {key}", ", ".join(str(fact) for fact in facts if fact)))
        if preprocessing:
            entries.append(("… preprocessing", str(preprocessing)))
        if network.get("sha256"):
            entries.append(("… weights' SHA-256", network["sha256"]))
    return entries


def protocol_section(evaluation: Evaluation) -> str:
    """Return how the numbers were measured, entry by entry; an empty string where nothing was recorded."""
    protocol = evaluation.get("protocol") or {}
    if not protocol:
        return ""
    entries = [("Protocol", protocol.get("name") or "embedded"), *_describe_extractors(protocol)]
    hidden = () if has_classes(evaluation) else ("n_fake_per_class", "labels")
    entries += [
        (name, format_number(protocol[key]))
        for key, name in PROTOCOL
        if protocol.get(key) not in (None, "") and key not in hidden
    ]
    if hidden:
        entries.append(("Classes", "none; the generated images come without"))
    if "inclusive" in protocol:
        entries.append(("Neighbour test", "distance <= radius" if protocol["inclusive"] else "distance < radius"))
    if score := protocol.get("inception_score"):
        order = (
            "in the order of generation" if score.get("shuffle_seed") is None else f"shuffled, {score['shuffle_seed']}"
        )
        entries.append(
            ("Inception Score", f"logits {score.get('logits', '?')}; splits: {score.get('splits', '?')}, {order}")
        )
    if kid := protocol.get("kid"):
        entries.append(("KID", f"{kid.get('subsets', '?')} subsets of {kid.get('subset_size', '?')}"))
    if protocol.get("reference_fingerprint"):
        entries.append(("SHA-256 of the real images", protocol["reference_fingerprint"]))
    headline = protocol.get("headline")
    note = f"<p><small>Note: {webpage.escape(headline)}.</small></p>" if headline else ""
    descriptions = {key: network.get("description") for key, network in (protocol.get("extractors") or {}).items()}
    descriptions = {key: x for key, x in descriptions.items() if x} or protocol.get("extractor_description")
    networks = webpage.details("The networks that measure", json.dumps(descriptions, indent=2)) if descriptions else ""
    return webpage.definition_list(entries) + note + networks


def headline_table(evaluation: Evaluation) -> str:
    """Return the table of the metrics of all classes together, beside those of real against real images."""
    metrics, real_vs_real = evaluation.get("metrics") or {}, evaluation.get("real_vs_real") or {}
    rows = [
        (metric_cell(name, meaning, direction), number_cell(metrics, key), number_cell(real_vs_real, key))
        for key, name, meaning, direction in HEADLINES
        if metrics.get(key) is not None
    ]
    return webpage.table(("↑ higher, ↓ lower is better", "This run", "Real against real"), rows)


def _known_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the columns (key, name) that at least one row has."""
    return [(key, name) for key, name in columns if any(row.get(key) is not None for row in rows)]


def _group_table(evaluation: Evaluation) -> str:
    metrics = evaluation.get("metrics") or {}
    groups = (evaluation.get("protocol") or {}).get("class_groups") or {}
    values = {
        name: {key: metrics[f"{name}_{key}"] for key, _ in COLUMNS if f"{name}_{key}" in metrics} for name in groups
    }
    columns = _known_columns(list(values.values()), COLUMNS)
    rows = [
        (webpage.escape(name), str(len(ids)), *(format_number(values[name].get(key)) for key, _ in columns))
        for name, ids in groups.items()
    ]
    header = ("Group", "Classes", *(name for _, name in columns))
    return webpage.table(header, rows, "Means over the classes of a group, except for pooled values")


def _class_table(evaluation: Evaluation) -> str:
    ordered = rows_head_to_tail(evaluation)
    listed, caption = ordered, "Class by class, head to tail"
    if len(ordered) > MAX_CLASS_ROWS:
        half = MAX_CLASS_ROWS // 2
        listed = [*ordered[:half], *ordered[-half:]]
        caption = f"The {half} classes with most and the {half} with fewest training images, of {len(ordered)}"
    columns = _known_columns(ordered, (("n_train", "Training images"), ("n_real", "Real images"), *COLUMNS))
    rows = [
        (webpage.escape(row.get("name", row["class"])), *(format_number(row.get(key)) for key, _ in columns))
        for row in listed
    ]
    return webpage.table(("Class", *(name for _, name in columns)), rows, caption)


def class_chart(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the per-class chart of runs by name; an empty string where there are no classes."""
    try:
        return webpage.figure("Every class, head to tail", per_class_figure(evaluations))
    except UserError:  # nothing to draw
        return ""


def truncation_section(evaluation: Evaluation) -> str:
    """Return the figure of the truncation sweep and its table, a row a strength."""
    truncation = evaluation.get("truncation") or {}
    operating = {key: point for key, point in (truncation.get("operating_points") or {}).items() if point}
    points = {point["strength"]: point for point in (*operating.values(), *(truncation.get("points") or ()))}
    if not points:
        return ""
    kind = truncation.get("kind", "psi")
    try:
        chart = webpage.figure(
            f"Truncation. {TRUNCATION_DESCRIPTIONS[kind]}; stronger truncation trades variety for quality. "
            + unreached_score(truncation),
            truncation_figure(truncation, protocol_line(evaluation)),
        )
    except UserError:  # nothing to draw
        chart = ""
    names = {
        strength: [
            name for key, name in OPERATING_POINTS if key in operating and operating[key]["strength"] == strength
        ]
        for strength in points
    }
    columns = _known_columns(list(points.values()), TRUNCATION_COLUMNS)
    rows = [
        (
            f"{TRUNCATION_SYMBOLS[kind]} {strength:g}"
            + (f"<small>{webpage.escape(', '.join(names[strength]))}</small>" if names[strength] else ""),
            *(format_number(points[strength].get(key)) for key, _ in columns),
        )
        for strength in sorted(points)
    ]
    return chart + webpage.table(("Truncation", *(name for _, name in columns)), rows)


def memorisation_section(evaluation: Evaluation) -> str:
    """Return the figure of distances to training images and their table."""
    memorisation = evaluation.get("memorisation") or {}
    parts = {
        name: memorisation[key]
        for key, name in (("overall", "All"), ("within_class", "Same class"))
        if memorisation.get(key) and (key == "overall" or has_classes(evaluation))
    }
    if not parts:
        return ""
    try:
        chart = webpage.figure(
            "Distance to the nearest training image. Generated images nearer than held-out real ones are copies, or "
            "nearly so.",
            memorisation_figure(
                memorisation if has_classes(evaluation) else {"overall": parts.get("All")}, protocol_line(evaluation)
            ),
        )
    except UserError:  # nothing to draw
        chart = ""
    rows = {
        name: {
            "auth_pct": part.get("auth_pct"),
            **{side: (part.get(side) or {}).get("median") for side in ("fake_to_train", "held_out_to_train")},
            "near": part.get("share_nearer_than_held_out"),
        }
        for name, part in parts.items()
    }
    columns = _known_columns(
        list(rows.values()),
        (
            ("auth_pct", "AuthPct"),
            ("fake_to_train", "Generated, median"),
            ("held_out_to_train", "Held-out, median"),
            ("near", "Near copies"),
        ),
    )
    cells = [(name, *(format_number(row[key]) for key, _ in columns)) for name, row in rows.items()]
    near = "near" in dict(columns)
    caption = f"Distances to the nearest {_describe_counts(parts)}" + (
        ". Near copies: share of generated images nearer than 99% of the held-out ones; about 0.01 without copying"
        if near
        else ""
    )
    table = webpage.table(("Training images", *(name for _, name in columns)), cells, caption) if columns else ""
    return chart + table


def _describe_counts(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the numbers of images behind the distances, as far as they are known."""
    part = next(iter(parts.values()))
    train, fake, held_out = (part.get(key) for key in ("n_train", "n_fake", "n_held_out"))
    sides = [f"{fake} generated ones" if fake else "", f"{held_out} held-out real ones" if held_out else ""]
    sides = [side for side in sides if side]
    return f"of {train or 'the'} training images" + (f", from {' and '.join(sides)}" if sides else "")


def head_to_tail_section(evaluation: Evaluation) -> list[str]:
    """Return tables and chart of groups and classes; an empty list where there are no classes."""
    if not has_classes(evaluation):
        return []
    pieces = [_group_table(evaluation), class_chart({"this run": evaluation}), _class_table(evaluation)]
    return [*pieces, protocol_note(evaluation) if any(pieces) else ""]
