"""What a run has learnt, on one page: ``report.html``, and a page that compares several runs."""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from noisytwins_jax.diagnostics import webpage
from noisytwins_jax.diagnostics.curves import per_class_figure, rows_head_to_tail, w_ratio_figure
from noisytwins_jax.diagnostics.memorisation_figure import memorisation_figure
from noisytwins_jax.diagnostics.truncation_figure import OPERATING_POINTS, truncation_figure, unreached_score
from noisytwins_jax.diagnostics.w_projection import w_comparison_figure
from noisytwins_jax.errors import UserError
from noisytwins_jax.metrics.protocols import CLASSIFIER
from noisytwins_jax.metrics.table import (
    check_one_protocol,
    from_files,
    has_classes,
    notes_on,
    protocol_line,
    same_groups,
    shared_floor,
    with_classes_first,
)

Evaluation = Mapping[str, Any]  # see metrics.evaluation
Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]  # caption, header, rows

HEADLINES: tuple[
    tuple[str, str, str, int], ...
] = (  # key, name, what it says, +1 if higher is better, -1 if lower, else 0
    ("fid", "FID", "all classes pooled", -1),
    ("ifid", "iFID", "mean of the FIDs within each class", -1),
    ("tail_ifid", "Tail iFID", "the same, rarest classes", -1),
    ("fid_clip", "FID_CLIP", "all classes pooled, CLIP's features", -1),
    ("ifid_clip", "iFID_CLIP", "mean within each class, CLIP's features", -1),
    ("tail_ifid_clip", "Tail iFID_CLIP", "the same, rarest classes", -1),
    ("fd_dinov2", "FD_DINOv2", "all classes pooled, DINOv2's features", -1),
    ("ifd_dinov2", "iFD_DINOv2", "mean within each class, DINOv2's features", -1),
    ("cmmd", "CMMD", "kernel distance of CLIP's features; no normal distribution assumed", -1),
    ("kid", "KID", "kernel distance, unbiased; ± over subsets", -1),
    ("inception_score", "Inception Score", "images recognisable and of many kinds", 1),
    ("precision", "Precision", "share of generated images that look real", 1),
    ("recall", "Recall", "share of real images that can be generated", 1),
    ("tail_recall", "Tail recall", "within each of the rarest classes", 1),
    ("density", "Density", "number of real neighbours, relative to real data", 1),
    ("coverage", "Coverage", "share of real images with a generated neighbour", 1),
    ("class_accuracy", "Class accuracy", "share of images recognised as their class", 1),
    ("w_ratio", "W ratio", "variance of W within classes / total; 0 is collapse", 0),
    ("auth_pct", "AuthPct", "percentage of images that are no near copies of training images", 0),
)
DEVIATIONS = {"kid": "kid_std", "inception_score": "inception_score_std"}  # of the estimate, not over classes
COLUMNS = (  # of groups and classes, where any of them has the number
    ("fid", "FID, pooled"),
    ("ifid", "iFID"),
    ("fid_clip", "FID_CLIP, pooled"),
    ("ifid_clip", "iFID_CLIP"),
    ("fd_dinov2", "FD_DINOv2, pooled"),
    ("ifd_dinov2", "iFD_DINOv2"),
    ("precision", "Precision"),
    ("recall", "Recall"),
    ("density", "Density"),
    ("coverage", "Coverage"),
    ("class_accuracy", "Class accuracy"),
    ("w_ratio", "W ratio"),
)
TRUNCATION_COLUMNS = (
    ("fid", "FID"),
    ("fid_clip", "FID_CLIP"),
    ("fd_dinov2", "FD_DINOv2"),
    ("inception_score", "Inception Score"),
    ("precision", "Precision"),
    ("recall", "Recall"),
    ("density", "Density"),
    ("coverage", "Coverage"),
    ("n_fake", "Generated images"),
)
PROTOCOL: tuple[tuple[str, str], ...] = (
    ("n_real", "Real images"),
    ("reference_split", "… taken from"),
    ("preprocessing", "… prepared with"),
    ("resolution", "Resolution"),
    ("n_fake", "Generated images"),
    ("n_fake_per_class", "… of each class"),
    ("n_fake_pooled", "… behind pooled values"),
    ("labels", "… with labels"),
    ("truncation_psi", "Truncation ψ"),
    ("class_noise", "Class noise"),
    ("weights", "Generator weights"),
    ("step", "… of step"),
    ("seed", "Seed"),
    ("k", "Neighbours k"),
)
MOST_ROWS = 60  # classes in the per-class table; of more, the head and the tail are shown

HOW_TO_READ: tuple[tuple[str, str, str], ...] = (  # a number that it explains, or "" for any page; name; words
    (
        "",
        "FID and iFID",
        "Distance between the features of generated and real images; 0 means alike. FID pools all classes. iFID takes "
        "one class at a time and averages, so it also sees a class that repeats itself or turns into another.",
    ),
    (
        "fid_clip",
        "FID_CLIP and iFID_CLIP",
        "The same distances with features of CLIP, which was trained on other images and on text: they follow what "
        "images show rather than the classes of ImageNet. Their size cannot be compared with that of FID.",
    ),
    (
        "fd_dinov2",
        "FD_DINOv2",
        "The same distance with features of DINOv2, which was trained without labels; it follows people's judgement of "
        "realism more closely.",
    ),
    (
        "kid",
        "KID",
        "A distance without bias from the number of images, so it can be trusted with few of them, and can come out "
        "slightly below 0.",
    ),
    (
        "inception_score",
        "Inception Score",
        "High when each image is clearly of one of ImageNet's classes and all of them occur. It never looks at the real "
        "images: compare it with that of all real images, in the same row, not with infinity.",
    ),
    (
        "",
        "Precision and recall",
        "Precision asks whether generated images look real, recall whether the real variety is reached. A collapsed "
        "generator has high precision and low recall. One is easily traded for the other: read them together.",
    ),
    (
        "class_accuracy",
        "Class accuracy",
        "How often a classifier trained on real images recognises the class that was asked for. High diversity with "
        "low class accuracy is confusion of classes, not diversity.",
    ),
    (
        "w_ratio",
        "W ratio",
        "How much of the latent space W's variance lies within classes. Near 0, every class is a single point: all "
        "its images come out alike. Near 1, W hardly depends on the class.",
    ),
    (
        "auth_pct",
        "AuthPct",
        "A generated image counts as authentic if its nearest training image is farther from it than from that image's "
        "own nearest other training image. Low values mean copying; bad images score high too, so read it with FID.",
    ),
    (
        "",
        "Real against real",
        "The same measurement between two halves of the real images. No generator needs to do better; the halves are "
        "smaller sets, which by itself makes their FID and iFID larger.",
    ),
    (
        "w_ratio",
        "Pictures of W",
        "Dots are samples, dark for the head and bright for the tail. Judge the spread of a class by the principal "
        "components: t-SNE draws tight and wide classes alike and only tells which are apart and which are mixed.",
    ),
    (
        "",
        "Comparing with other work",
        "Numbers are comparable only under the same protocol: same feature extractor, same real images, same counts. "
        "Training again with another seed moves them; a single run shows no more than itself.",
    ),
)
_SCORE_OF_CLASSIFIER = (  # instead of the above where the headline's extractor is the classifier
    "High when the data set's own classifier is sure of each image's class and all classes occur. It is not Inception's "
    "score over ImageNet's classes, so compare it with no published one. It never looks at the real images: compare it with "
    "that of all real images, in the same row, not with infinity."
)


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


def _metric_cell(name: str, meaning: str, direction: int) -> str:
    arrow = {1: "&nbsp;↑", -1: "&nbsp;↓", 0: ""}[direction]
    return f"{webpage.escape(name)}{arrow}<small>{webpage.escape(meaning)}</small>"


def _floor_of(evaluation: Evaluation, key: str) -> Any:
    return (evaluation.get("floor") or {}).get(key)


def _number_cell(values: Mapping[str, Any], key: str) -> str:
    """A number, and its deviation where the metric has one."""
    deviation = values.get(DEVIATIONS.get(key, ""))
    return format_number(values.get(key)) + (
        f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{format_number(deviation)}" if deviation is not None else ""
    )


def _measured(evaluation: Evaluation) -> str:
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


def _protocol(evaluation: Evaluation) -> str:
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


def _headline_table(evaluation: Evaluation) -> str:
    metrics, floor = evaluation.get("metrics") or {}, evaluation.get("floor") or {}
    rows = [
        (_metric_cell(name, meaning, way), _number_cell(metrics, key), _number_cell(floor, key))
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


def _class_chart(evaluations: Mapping[str, Evaluation]) -> str:
    try:
        return webpage.figure("Every class, head to tail", per_class_figure(evaluations))
    except UserError:  # nothing to draw
        return ""


def _truncation(evaluation: Evaluation) -> str:
    """The figure of the truncation sweep and its table, a row a ψ."""
    truncation = evaluation.get("truncation") or {}
    operating = {key: point for key, point in (truncation.get("operating_points") or {}).items() if point}
    points = {point["psi"]: point for point in (*operating.values(), *(truncation.get("points") or ()))}
    if not points:
        return ""
    try:
        chart = webpage.figure(
            f"Truncation. {truncation.get('kind', 'psi')}; stronger truncation trades variety for quality. "
            + unreached_score(truncation),
            truncation_figure(truncation, protocol_line(evaluation)),
        )
    except UserError:  # nothing to draw
        chart = ""
    names = {
        psi: [name for key, name in OPERATING_POINTS if key in operating and operating[key]["psi"] == psi]
        for psi in points
    }
    columns = _known_columns(list(points.values()), TRUNCATION_COLUMNS)
    rows = [
        (
            f"ψ = {psi:g}" + (f"<small>{webpage.escape(', '.join(names[psi]))}</small>" if names[psi] else ""),
            *(format_number(points[psi].get(key)) for key, _ in columns),
        )
        for psi in sorted(points)
    ]
    return chart + webpage.table(("Truncation", *(name for _, name in columns)), rows)


def _memorisation(evaluation: Evaluation) -> str:
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


def _how_to_read(evaluation: Evaluation, metrics: Collection[str]) -> str:
    """Words on the numbers `metrics`, as the evaluation's headline extractor gives them."""
    headline = (evaluation.get("protocol") or {}).get("headline_extractor") or CLASSIFIER
    others = {"inception_score": _SCORE_OF_CLASSIFIER} if headline == CLASSIFIER else {}
    said = [(name, others.get(key, words)) for key, name, words in HOW_TO_READ if not key or key in metrics]
    return webpage.section("How to read this page", webpage.pairs(said, "words"))


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
                _headline_table(evaluation) or webpage.paragraph("This run has not been evaluated."),
                _measured(evaluation),
            ),
            webpage.section("Protocol of these numbers", _protocol(evaluation) or webpage.paragraph("Not recorded.")),
        ),
        webpage.section("Pictures", *(webpage.figure(caption, picture) for caption, picture in figures)),
        webpage.section("Head to tail", *_head_to_tail(evaluation)),
        webpage.section("Quality against variety", _truncation(evaluation)),
        webpage.section("Memorisation", _memorisation(evaluation)),
        webpage.section("More numbers", *extra),
        _how_to_read(evaluation, _known_metrics([evaluation])),
        webpage.folded("Configuration", config_text),
    ]
    return webpage.write_page(path, webpage.page(title, lede, body))


def _head_to_tail(evaluation: Evaluation) -> list[str]:
    """Tables and chart of groups and classes; empty where there are no classes."""
    if not has_classes(evaluation):
        return []
    pieces = [_group_table(evaluation), _class_chart({"this run": evaluation}), _class_table(evaluation)]
    return [*pieces, _measured(evaluation) if any(pieces) else ""]


def _known_metrics(evaluations: Collection[Evaluation]) -> set[str]:
    """Names of the numbers that at least one of them has."""
    return {key for e in evaluations for key, value in (e.get("metrics") or {}).items() if value is not None}


def _shared(evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """Protocol and floor of runs that agree on them wherever they overlap: one may lack a network that another used."""
    protocol: dict[str, Any] = {}
    extractors: dict[str, Any] = {}
    hidden = (
        {"step", "weights", "truncation_psi", "class_noise"} if any(map(from_files, evaluations.values())) else {"step"}
    )
    for evaluation in reversed(with_classes_first(evaluations)):
        protocol |= {key: value for key, value in (evaluation.get("protocol") or {}).items() if key not in hidden}
        extractors |= protocol.get("extractors") or {}
    if any(map(has_classes, evaluations.values())):
        protocol.pop("classes", None)
    shared = protocol | ({"extractors": extractors} if extractors else {})
    return {"protocol": shared, "floor": shared_floor(evaluations)}


def _comparison_table(evaluations: Mapping[str, Evaluation], floor: Mapping[str, Any]) -> str:
    rows, grouped = [], same_groups(evaluations)
    runs = [evaluation.get("metrics") or {} for evaluation in evaluations.values()]
    for key, name, meaning, way in HEADLINES:
        known = [metrics[key] for metrics in runs if metrics.get(key) is not None]
        if not known or (key.startswith("tail_") and not grouped):
            continue
        best = max(way * value for value in known)
        marked = [m.get(key) is not None and way != 0 and len(known) > 1 and way * m[key] == best for m in runs]
        shown = [_number_cell(metrics, key) for metrics in runs]
        cells = [f'<span class="best">{x}</span>' if mark else x for x, mark in zip(shown, marked, strict=True)]
        rows.append((_metric_cell(name, meaning, way), *cells, _number_cell(floor, key)))
    header = ("↑ higher, ↓ lower is better", *(webpage.escape(name) for name in evaluations), "Real against real")
    return webpage.table(header, rows, "Coloured: the best of these runs")


def write_comparison(
    path: str | os.PathLike,
    runs: Mapping[str, Mapping[str, Any]],
    *,
    title: str = "Comparison of runs",
    notes: Sequence[str] = (),
    lede: str = "",
) -> Path:
    """Writes a page that compares runs: numbers, sample sheets, W and its ratio over training, every class in a chart.

    Args:
      path: the file to write; replaced atomically.
      runs: run name -> ``{"evaluation": dict, "sheet": picture, "w": (w float [n, D], labels int [n]), "records":
        one list of ``logs.read_metrics`` for each seed}``. Any of the four may be missing; class names and counts are
        taken from the first evaluation.
      title: heading of the page.
      notes: sentences for the reader, shown at the top.
      lede: a line under the title.

    Returns:
      ``path``.

    Raises:
      UserError: there is no run to compare, or two were evaluated under different protocols.
    """
    if not runs:
        raise UserError("There is no run to compare; name at least one.")
    evaluations = {name: run["evaluation"] for name, run in runs.items() if run.get("evaluation")}
    sheets = [webpage.figure(name, run["sheet"]) for name, run in runs.items() if run.get("sheet") is not None]
    check_one_protocol(evaluations)
    first, shared = next(iter(with_classes_first(evaluations)), {}), _shared(evaluations)
    of_classes = {name: evaluation for name, evaluation in evaluations.items() if has_classes(evaluation)}
    body = [
        webpage.care([*notes, *notes_on(evaluations)]),
        webpage.section("Results", _comparison_table(evaluations, shared["floor"]), _measured(shared)),
        webpage.section("Samples", *sheets),
        webpage.section("Latent space W", _w_pictures(runs, first), _w_ratio_chart(runs)),
        webpage.section("Head to tail", _class_chart(of_classes)),
        webpage.section("Protocol of these numbers", _protocol(shared)),
        _how_to_read(shared, _known_metrics(evaluations.values())),
    ]
    return webpage.write_page(path, webpage.page(title, lede, body))


def _w_ratio_chart(runs: Mapping[str, Mapping[str, Any]]) -> str:
    try:
        chart = w_ratio_figure({name: run.get("records", ()) for name, run in runs.items()})
    except UserError:  # nothing to draw
        return ""
    seeds = max(len(run.get("records", ())) for run in runs.values())
    caption = "W ratio over training. The averaged generator's, from 32 latents a class"
    return webpage.figure(caption + ("; means and standard deviations over seeds." if seeds > 1 else "."), chart)


def _w_pictures(runs: Mapping[str, Mapping[str, Any]], evaluation: Evaluation) -> str:
    sets = {name: run["w"] for name, run in runs.items() if run.get("w") is not None}
    if not sets:
        return ""
    size = 1 + max(int(np.max(labels)) for _, labels in sets.values())
    rows = {int(row["class"]): row for row in evaluation.get("per_class") or ()}
    names = [str(rows.get(c, {}).get("name", c)) for c in range(size)]
    counts = [rows.get(c, {}).get("n_train") for c in range(size)]
    known = None if None in counts else counts
    caption = "W by class, principal components above and t-SNE below. Each panel is fitted on its own: compare shapes."
    if len(sets) == 1:
        caption = "W by class, principal components and t-SNE"
    return webpage.figure(caption, w_comparison_figure(sets, names, class_counts=known))
