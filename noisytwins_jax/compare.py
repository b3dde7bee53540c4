"""``python -m noisytwins_jax.compare WORKDIR…``: finished runs side by side, as a table and as one page."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from noisytwins_jax.diagnostics.report import write_comparison
from noisytwins_jax.errors import UserError
from noisytwins_jax.evaluate import EVALUATION_FILE, SHEET_FILE, W_FILE
from noisytwins_jax.metrics.table import format_table


def compare(workdirs: Sequence[Path], out: Path) -> str:
    """Writes the comparison page of evaluated runs to `out`; returns their table as text.

    Raises:
      UserError: a workdir has not been evaluated.
    """
    runs = {}
    for workdir in workdirs:
        if not (workdir / EVALUATION_FILE).exists():
            raise UserError(f"{workdir} has no {EVALUATION_FILE}; train or evaluate it first.")
        with np.load(workdir / W_FILE) as saved:
            w = (saved["w"], saved["labels"])
        runs[workdir.name] = {
            "evaluation": json.loads((workdir / EVALUATION_FILE).read_text()),
            "sheet": Image.open(workdir / SHEET_FILE),
            "w": w,
        }
    write_comparison(out, runs, title="Comparison of runs")
    return format_table({name: run["evaluation"] for name, run in runs.items()})


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m noisytwins_jax.compare", description=compare.__doc__)
    parser.add_argument("workdirs", nargs="+", type=Path, help="directories of evaluated runs")
    parser.add_argument("--out", type=Path, default=Path("runs/report.html"), help="the page to write")
    arguments = parser.parse_args(argv)
    try:
        print(compare(arguments.workdirs, arguments.out))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"\nReport: {arguments.out.absolute()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
