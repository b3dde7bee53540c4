"""Comparison of evaluations: the check that they share one protocol, and plain-text tables."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from noisytwins_jax.evaluation.scores import FRECHET
from noisytwins_jax.utils.errors import UserError

Evaluation = Mapping[str, Any]  # see `evaluate_generator`

_COLUMNS = {
    "FID": ("fid", ".2f"),
    "iFID": ("ifid", ".2f"),
    "tail iFID": ("tail_ifid", ".2f"),
    "FID few": ("few_fid", ".2f"),
    "KID": ("kid", ".4f"),
    "KID few": ("few_kid", ".4f"),
    "FID_CLIP": ("fid_clip", ".3f"),
    "iFID_CLIP": ("ifid_clip", ".3f"),
    "FD_DINOv2": ("fd_dinov2", ".2f"),
    "iFD_DINOv2": ("ifd_dinov2", ".2f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "tail recall": ("tail_recall", ".3f"),
    "W ratio": ("w_ratio", ".3f"),
    "class accuracy": ("class_accuracy", ".3f"),
}
_COLUMN_NAMES = {key: name for name, (key, _) in _COLUMNS.items()}

FILES_NOTE = "Truncation and class noise of images from files are not known."
GROUPS_NOTE = "Head, medium and tail are different classes in these runs, so values of the groups are left out."

# Entries of a protocol that change numbers, with the values of evaluations from before an entry existed.
_ENTRIES: dict[str, Any] = {
    "name": "embedded",
    "headline_extractor": "classifier",
    "extractor_sha256": None,
    "reference_fingerprint": None,
    "preprocessing": "",
    "n_real": None,
    "labels": "balanced",
    "n_fake_per_class": None,
    "n_fake_pooled": None,  # defaults to `n_fake`, see `_comparable_entries`
    "few_classes": None,
    "k": None,
    "inclusive": False,
    "seed": None,
    "weights": "ema",
    "truncation_psi": 1.0,
    "class_noise": False,
}
# Entries of single metrics; nothing to compare where one side lacks the metric.
_OPTIONAL_ENTRIES = ("reference_split", "inception_score", "kid")
_GENERATOR_ENTRIES = ("weights", "truncation_psi", "class_noise")  # unknown for images from files
_CLASS_ENTRIES = ("n_fake_per_class", "labels")  # meaningless for images without classes
# Entries on which the headline's distance depends and that can change while a run is trained; a subset of `_ENTRIES`.
_DISTANCE_ENTRIES = ("name", "headline_extractor", "extractor_sha256", "reference_fingerprint", "n_fake_pooled", "seed")


def _comparable_entries(evaluation: Evaluation) -> dict[str, Any]:
    """Return the entries that make numbers comparable, in the order of checking; None for those not recorded."""
    protocol = {key: value for key, value in (evaluation.get("protocol") or {}).items() if value is not None}
    defaults = _ENTRIES | {"n_fake_pooled": protocol.get("n_fake")}
    entries = {key: protocol.get(key, default) for key, default in defaults.items()}
    entries |= {key: protocol.get(key) for key in _OPTIONAL_ENTRIES}
    if from_files(evaluation):
        entries = {
            k: v for k, v in entries.items() if k not in _GENERATOR_ENTRIES or (k != "weights" and k in protocol)
        }
    if not has_classes(evaluation):
        entries = {k: v for k, v in entries.items() if k not in _CLASS_ENTRIES}
    for name, extractor in (protocol.get("extractors") or {}).items():
        described = extractor.get("description") or {}
        entries[f"extractors.{name}.sha256"] = extractor.get("sha256")
        entries[f"extractors.{name}.preprocessing"] = extractor.get("preprocessing", described.get("preprocessing"))
    return entries


def distance_entries(evaluation: Evaluation) -> dict[str, Any]:
    """Return the protocol entries that must agree where the headline's distances of one run are compared."""
    return {key: value for key, value in _comparable_entries(evaluation).items() if key in _DISTANCE_ENTRIES}


def has_classes(evaluation: Evaluation) -> bool:
    """Return whether the generated images have classes; without them (images from files) there are only pooled numbers."""
    return (evaluation.get("protocol") or {}).get("classes") is not False


def from_files(evaluation: Evaluation) -> bool:
    """Return whether the generated images came from files, with nothing known about their generator."""
    return (evaluation.get("protocol") or {}).get("weights") == "files"


def check_one_protocol(evaluations: Mapping[str, Evaluation]) -> None:
    """Check that evaluations were measured in the same way, so that their numbers can be compared.

    An entry that both lack is the same. An entry that one lacks is a difference, unless it only belongs to metrics that
    the other does not have (another network's weights, the splits of the Inception Score, the subsets of KID, the number
    of images of a class where there are no classes), or to the generator of images from files, which is unknown.

    Args:
      evaluations: run name -> evaluation. Training data and seeds of training may differ.

    Raises:
      UserError: two runs differ in an entry of the protocol that changes numbers; it names the first such entry.
    """
    flat = {name: _comparable_entries(evaluation) for name, evaluation in evaluations.items()}
    for key in dict.fromkeys(key for entries in flat.values() for key in entries):
        known = {
            name: entries[key]
            for name, entries in flat.items()
            if key in entries and (key in _ENTRIES or entries[key] is not None)
        }
        for one, other in pairwise(known):
            if known[one] != known[other]:
                raise UserError(
                    f"{one} and {other} were evaluated under different protocols ({key}: {_format_entry(known[one])} and "
                    f"{_format_entry(known[other])}) and cannot stand in one table: evaluate them again in the same way "
                    "(--mode=evaluate), or tabulate them apart."
                )


def same_groups(evaluations: Mapping[str, Evaluation]) -> bool:
    """Return whether head, medium and tail are the same classes in all runs, so that the groups can be compared.

    Evaluations without classes have no groups and are ignored.
    """
    groups = [(e.get("protocol") or {}).get("class_groups") for e in evaluations.values() if has_classes(e)]
    return all(one == groups[0] for one in groups)


def protocol_line(evaluation: Evaluation) -> str:
    """Describe how an evaluation's numbers were measured, in one line."""
    protocol = _ENTRIES | {k: v for k, v in (evaluation.get("protocol") or {}).items() if v is not None}
    each, pooled = protocol["n_fake_per_class"], protocol["n_fake_pooled"]
    generated = f"{each} generated images per class"
    if not has_classes(evaluation):
        generated = f"{protocol.get('n_fake', '?')} generated images, without classes,"
    elif each is None or protocol["labels"] == "as in the files":
        generated = f"{protocol.get('n_fake', '?')} generated images, labels {protocol['labels']},"
    parts = [
        f"Protocol {protocol['name']}: {generated} against {_or_unknown(protocol['n_real'])} real ones"
        + (f", {pooled} generated ones pooled" if pooled is not None else "")
        + (f", as many of the few classes {_span(protocol['few_classes'])}" if protocol["few_classes"] else ""),
        f"features {protocol.get('extractor', '?')}",
        f"precision and recall pooled, k = {_or_unknown(protocol['k'])}, distance {'<=' if protocol['inclusive'] else '<'} radius",
        *([f"truncation psi = {protocol['truncation_psi']:g}"] if protocol["truncation_psi"] != 1 else []),
        *(["with class noise"] if protocol["class_noise"] else []),
        *(["tail values are means over the tail classes"] if has_classes(evaluation) else []),
    ]
    return "; ".join(parts) + "."


def _span(classes: Sequence[int]) -> str:
    """Format class ids: as ``70-99`` where they follow each other."""
    first, last = classes[0], classes[-1]
    return f"{first}-{last}" if list(classes) == [*range(first, last + 1)] else ", ".join(map(str, classes))


def _or_unknown(value: object) -> object:
    return "?" if value is None else value


def headline_line(evaluation: Evaluation) -> str:
    """Format the headline's distance and recall, as far as they were measured, in one line for the terminal.

    Returns:
      For example ``FID 22.2, recall 0.071 (protocol noisytwins, 50000 images)``; the number of images is that behind pooled values.
    """
    protocol, metrics = evaluation.get("protocol") or {}, evaluation.get("metrics") or {}
    key = FRECHET.get(protocol.get("headline_extractor"), "fid")
    values = {_COLUMN_NAMES[key]: metrics.get(key), "recall": metrics.get("recall")}
    text = ", ".join(f"{name} {_three_digits(value)}" for name, value in values.items() if value is not None)
    images = protocol.get("n_fake_pooled") or protocol.get("n_fake") or "?"
    return f"{text or 'no headline numbers'} (protocol {protocol.get('name') or _ENTRIES['name']}, {images} images)"


def _three_digits(value: float) -> str:
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"


def format_table(results: Mapping[str, Evaluation]) -> str:
    """Format several results (name -> result) as plain text: one row a run, then the protocol that they share.

    A last row compares real with real images where that was measured. A missing or undefined value prints as a dash; a column
    in which no run has a value is left out, and so are tail values where the runs' tails are different classes.

    Raises:
      UserError: see `check_one_protocol`.
    """
    if not results:
        return "no evaluations"
    check_one_protocol(results)
    rows = {name: result.get("metrics") or {} for name, result in results.items()}
    columns = _columns(results)
    if real_vs_real := shared_real_vs_real(results):
        rows["real half vs real half"] = real_vs_real
    cells = [["run", *columns]]
    for name, values in rows.items():
        numbers = [(values.get(key), form) for key, form in columns.values()]
        cells.append([name, *("-" if value is None else format(value, form) for value, form in numbers)])
    return "\n".join([*_align(cells), *_notes(results)])


def format_means(results: Mapping[str, Sequence[Evaluation]]) -> str:
    """Format means ± population standard deviations over the seeds of each method (name -> results) as plain text.

    Raises:
      UserError: see `check_one_protocol`.
    """
    runs = {
        name if len(seeds) == 1 else f"{name} (seed {i} of {len(seeds)})": seed
        for name, seeds in results.items()
        for i, seed in enumerate(seeds, start=1)
    }
    check_one_protocol(runs)
    columns = _columns(runs)
    cells = [["mean ± std", *columns]]
    for name, seeds in results.items():
        row = [f"{name} ({len(seeds)} seeds)"]
        for key, form in columns.values():
            values = [(seed.get("metrics") or {}).get(key) for seed in seeds]
            row.append("-" if None in values else f"{np.mean(values):{form}} ± {np.std(values):{form}}")
        cells.append(row)
    return "\n".join([*_align(cells), *_notes(runs)])


def sort_by_detail(results: Mapping[str, Evaluation]) -> list[Evaluation]:
    """Sort evaluations: those without classes last, before them those from files, so that the most detailed is first."""
    return sorted(results.values(), key=lambda result: (not has_classes(result), from_files(result)))


def shared_real_vs_real(results: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Merge real-vs-real metrics of results of one protocol: each number from the first result that has it."""
    merged: dict[str, Any] = {}
    for result in reversed(sort_by_detail(results)):
        merged |= {key: value for key, value in (result.get("real_vs_real") or {}).items() if value is not None}
    return merged


def comparison_notes(results: Mapping[str, Evaluation]) -> list[str]:
    """Return notes on what cannot be compared in a table of these results."""
    files = [from_files(result) for result in results.values()]
    return [*([FILES_NOTE] if any(files) and not all(files) else []), *([] if same_groups(results) else [GROUPS_NOTE])]


def _columns(results: Mapping[str, Evaluation]) -> dict[str, tuple[str, str]]:
    """Return the columns in which at least one of these runs has a number; KID stands beside that of the few classes alone."""
    grouped = same_groups(results)
    few = any((result.get("metrics") or {}).get("few_kid") is not None for result in results.values())
    return {
        name: (key, form)
        for name, (key, form) in _COLUMNS.items()
        if (grouped or not key.startswith("tail_"))
        and (few or key != "kid")
        and any((result.get("metrics") or {}).get(key) is not None for result in results.values())
    }


def _notes(results: Mapping[str, Evaluation]) -> list[str]:
    lines = [protocol_line(sort_by_detail(results)[0])] if results else []
    return lines + comparison_notes(results)


def _format_entry(value: object) -> str:
    """Format an entry's value for a message, a hash by its first digits."""
    text = "not recorded" if value is None else str(value)
    return text[:12] if len(text) == 64 and " " not in text else text


def _align(cells: list[list[str]]) -> list[str]:
    """Align the cells of a table into lines, the first column left, the others right, with a rule under the header."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
