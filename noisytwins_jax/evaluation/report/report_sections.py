"""The parts of a page that come from one evaluation: results, protocol, head to tail, truncation and memorisation."""

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
from noisytwins_jax.models.latents import KINDS, SYMBOLS
from noisytwins_jax.utils.errors import UserError

Evaluation = Mapping[str, Any]  # see metrics.evaluation
MOST_ROWS = 60  # classes in the per-class table; of more, the head and the tail are shown


def format_number(value: object) -> str:
    """Three or so significant digits; "n/a" for what is missing or not finite; other values as they are."""
    if value is None or (isinstance(value, (float, np.floating)) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, np.integer)):
        return str(value)
    if isinstance(value, (float, np.floating)):
        size = abs(value)
        small = 0 < size < 0.01  # as KID often is
        return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size > 1 else f"{value:{'.2g' if small else '.3f'}}"
    return str(value)


def metric_cell(name: str, meaning: str, direction: int) -> str:
    """A metric's name, which way it is better (+1, -1, or 0 for neither), and what it says."""
    arrow = {1: "&nbsp;↑", -1: "&nbsp;↓", 0: ""}[direction]
    return f"{webpage.escape(name)}{arrow}<small>{webpage.escape(meaning)}</small>"


def number_cell(values: Mapping[str, Any], key: str) -> str:
    """A number, and its deviation where the metric has one."""
    deviation = values.get(DEVIATIONS.get(key, ""))
    return format_number(values.get(key)) + (
        f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{format_number(deviation)}" if deviation is not None else ""
    )


def protocol_note(evaluation: Evaluation) -> str:
    """The protocol in one line, for below numbers."""
    if not evaluation.get("protocol"):
        return ""
    return f"<p><small>{webpage.escape(protocol_line(evaluation))}</small></p>"


def _networks(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values about each network behind the numbers."""
    networks = protocol.get("extractors")
    if not networks:  # from before there were several
        names = (("extractor", "Features from"), ("extractor_sha256", "… weights' SHA-256"), ("feature_dim", "… size"))
        return [(name, format_number(protocol[key])) for key, name in names if protocol.get(key) is not None]
    said = []
    for key, network in networks.items():
        preprocessing = network.get("preprocessing", (network.get("description") or {}).get("preprocessing"))
        headline = "the headline's" if key == protocol.get("headline_extractor") else ""
        facts = (network.get("name"), network.get("feature_dim") and f"{network['feature_dim']} features", headline)
        said.append((f"Network: {key}", ", ".join(str(fact) for fact in facts if fact)))
        if preprocessing:
            said.append(("… preprocessing", str(preprocessing)))
        if network.get("sha256"):
            said.append(("… weights' SHA-256", network["sha256"]))
    return said


def protocol_section(evaluation: Evaluation) -> str:
    """How the numbers were measured, entry by entry; empty where nothing was recorded."""
    protocol = evaluation.get("protocol") or {}
    if not protocol:
        return ""
    said = [("Protocol", protocol.get("name") or "embedded"), *_networks(protocol)]
    hidden = () if has_classes(evaluation) else ("n_fake_per_class", "labels")
    said += [
        (name, format_number(protocol[key]))
        for key, name in PROTOCOL
        if protocol.get(key) not in (None, "") and key not in hidden
    ]
    if hidden:
        said.append(("Classes", "none; the generated images come without"))
    if "inclusive" in protocol:
        said.append(("Neighbour test", "distance <= radius" if protocol["inclusive"] else "distance < radius"))
    if score := protocol.get("inception_score"):
        order = (
            "in the order of generation" if score.get("shuffle_seed") is None else f"shuffled, {score['shuffle_seed']}"
        )
        said.append(
            ("Inception Score", f"logits {score.get('logits', '?')}; splits: {score.get('splits', '?')}, {order}")
        )
    if kid := protocol.get("kid"):
        said.append(("KID", f"{kid.get('subsets', '?')} subsets of {kid.get('subset_size', '?')}"))
    if protocol.get("reference_fingerprint"):
        said.append(("SHA-256 of the real images", protocol["reference_fingerprint"]))
    headline = protocol.get("headline")
    note = f"<p><small>Note: {webpage.escape(headline)}.</small></p>" if headline else ""
    described = protocol.get("extractor_description")
    networks = {key: network.get("description") for key, network in (protocol.get("extractors") or {}).items()}
    described = {key: words for key, words in networks.items() if words} or described
    extractor = webpage.folded("The networks that measure", json.dumps(described, indent=2)) if described else ""
    return webpage.pairs(said) + note + extractor


def headline_table(evaluation: Evaluation) -> str:
    """The numbers of all classes together, beside real against real."""
    metrics, floor = evaluation.get("metrics") or {}, evaluation.get("floor") or {}
    rows = [
        (metric_cell(name, meaning, way), number_cell(metrics, key), number_cell(floor, key))
        for key, name, meaning, way in HEADLINES
        if metrics.get(key) is not None
    ]
    return webpage.table(("↑ higher, ↓ lower is better", "This run", "Real against real"), rows)


def _known_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The columns (key, name) that at least one row has."""
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
    return webpage.table(header, rows, "Means over the classes of a group, but for what is pooled")


def _class_table(evaluation: Evaluation) -> str:
    ordered = rows_head_to_tail(evaluation)
    shown, caption = ordered, "Class by class, head to tail"
    if len(ordered) > MOST_ROWS:
        half = MOST_ROWS // 2
        shown = [*ordered[:half], *ordered[-half:]]
        caption = f"The {half} classes with most and the {half} with fewest training images, of {len(ordered)}"
    columns = _known_columns(ordered, (("n_train", "Training images"), ("n_real", "Real images"), *COLUMNS))
    rows = [
        (webpage.escape(row.get("name", row["class"])), *(format_number(row.get(key)) for key, _ in columns))
        for row in shown
    ]
    return webpage.table(("Class", *(name for _, name in columns)), rows, caption)


def class_chart(evaluations: Mapping[str, Evaluation]) -> str:
    """The chart of every class, by name of the run; empty where there are no classes."""
    try:
        return webpage.figure("Every class, head to tail", per_class_figure(evaluations))
    except UserError:  # nothing to draw
        return ""


def truncation_section(evaluation: Evaluation) -> str:
    """The figure of the truncation sweep and its table, a row a strength."""
    truncation = evaluation.get("truncation") or {}
    operating = {key: point for key, point in (truncation.get("operating_points") or {}).items() if point}
    points = {point["strength"]: point for point in (*operating.values(), *(truncation.get("points") or ()))}
    if not points:
        return ""
    kind = truncation.get("kind", "psi")
    try:
        chart = webpage.figure(
            f"Truncation. {KINDS[kind]}; stronger truncation trades variety for quality. "
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
            f"{SYMBOLS[kind]} {strength:g}"
            + (f"<small>{webpage.escape(', '.join(names[strength]))}</small>" if names[strength] else ""),
            *(format_number(points[strength].get(key)) for key, _ in columns),
        )
        for strength in sorted(points)
    ]
    return chart + webpage.table(("Truncation", *(name for _, name in columns)), rows)


def memorisation_section(evaluation: Evaluation) -> str:
    """The figure of distances to training images and its numbers."""
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
    caption = f"Distances to the nearest {_counts(parts)}" + (
        ". Near copies: share of generated images nearer than 99% of the held-out ones; about 0.01 without copying"
        if near
        else ""
    )
    table = webpage.table(("Training images", *(name for _, name in columns)), cells, caption) if columns else ""
    return chart + table


def _counts(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """How many images are behind the distances, as far as it is known."""
    part = next(iter(parts.values()))
    train, fake, held_out = (part.get(key) for key in ("n_train", "n_fake", "n_held_out"))
    sides = [f"{fake} generated ones" if fake else "", f"{held_out} held-out real ones" if held_out else ""]
    sides = [side for side in sides if side]
    return f"of {train or 'the'} training images" + (f", from {' and '.join(sides)}" if sides else "")


def head_to_tail_section(evaluation: Evaluation) -> list[str]:
    """Tables and chart of groups and classes; empty where there are no classes."""
    if not has_classes(evaluation):
        return []
    pieces = [_group_table(evaluation), class_chart({"this run": evaluation}), _class_table(evaluation)]
    return [*pieces, protocol_note(evaluation) if any(pieces) else ""]
