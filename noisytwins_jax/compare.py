"""``python -m noisytwins_jax.compare WORKDIR…``: evaluated runs and images side by side, as a table and as one page."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noisytwins_jax.evaluation.report.comparison import write_comparison
from noisytwins_jax.evaluation.results import EVALUATION_FILE, W_FILE
from noisytwins_jax.evaluation.sheets import SHEET_FILE
from noisytwins_jax.evaluation.table import format_means, format_table
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.logging import METRICS_FILE, read_metrics


def compare(groups: Mapping[str, Sequence[Path]], out: Path) -> str:
    """Write the comparison page of evaluated runs, or evaluated images from files; return their table as text.

    Args:
      groups: method → workdirs, one a seed. Methods with several seeds also get a row of means and deviations; the
        page shows the first seed of each, and W ratios over training as means over the seeds.
      out: the page to write.

    Raises:
      UserError: a workdir has not been evaluated, or two were evaluated under different protocols; nothing is written.
    """
    runs = {method: [_read_run(workdir) for workdir in workdirs] for method, workdirs in groups.items()}
    rows = {
        method if len(seeds) == 1 else seed["name"]: seed["evaluation"]
        for method, seeds in runs.items()
        for seed in seeds
    }
    text = format_table(rows)  # first, since it raises for runs that must not be compared
    several = {method: seeds for method, seeds in runs.items() if len(seeds) > 1}
    pages = {method: seeds[0] | {"records": [seed["records"] for seed in seeds]} for method, seeds in runs.items()}
    write_comparison(out, pages)
    if several:
        text += "\n\n" + format_means({method: [s["evaluation"] for s in seeds] for method, seeds in several.items()})
    return text


def _read_run(workdir: Path) -> dict[str, Any]:
    """Load what is compared of a workdir; images from files have only an evaluation."""
    if not (workdir / EVALUATION_FILE).exists():
        raise UserError(f"{workdir} has no {EVALUATION_FILE}; train or evaluate it first (--mode=evaluate).")
    evaluation = json.loads((workdir / EVALUATION_FILE).read_text())
    w = sheet = None
    if (workdir / W_FILE).exists():
        with np.load(workdir / W_FILE) as saved:
            w = (saved["w"], saved["labels"])
    if (workdir / SHEET_FILE).exists():
        sheet = Image.open(workdir / SHEET_FILE)
    records = read_metrics(workdir) if (workdir / METRICS_FILE).exists() else []
    return {"name": workdir.name, "evaluation": evaluation, "sheet": sheet, "w": w, "records": records}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m noisytwins_jax.compare", description=__doc__)
    parser.add_argument(
        "workdirs", nargs="+", type=Path, help="directories of evaluated runs, or of images (--mode=evaluate --images)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/report.html"), help="the page to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    names = {workdir.name for workdir in arguments.workdirs}
    unique = len(names) == len(arguments.workdirs)  # otherwise name them by their paths
    try:
        print(compare({w.name if unique else str(w): [w] for w in arguments.workdirs}, arguments.out))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"\nReport: {arguments.out.absolute()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
