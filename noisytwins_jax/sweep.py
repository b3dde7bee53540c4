"""``python -m noisytwins_jax.sweep``: train methods, seeds and grids of one configuration on this machine and compare them.

Each run is a process of its own; `--jobs` run at the same time. With several at the same time each has one core on CPUs:
small networks gain nothing from more. The same command resumes a stopped sweep; runs already finished with this
configuration are not run again.

With `--grid config.FIELD=VALUE,VALUE` (may be repeated for other fields) every combination of the values is run, once per
seed. A run that fails does not stop the others. The results are a table (.txt; run by run in .csv) and a plot (.png).
"""

import argparse
import itertools
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from noisytwins_jax.compare import compare
from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.config.flags import load_config
from noisytwins_jax.evaluation.report.grid import GridRun, is_number, write_grid
from noisytwins_jax.evaluation.results import EVALUATION_FILE, REPORT_FILE
from noisytwins_jax.metrics.protocols import parse_extractors
from noisytwins_jax.training.workdir import CONFIG_FILE, read_config
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.subprocesses import run_all

_OF_THE_DEVICE = ("device_batch", "remat")  # fields that a run with config.auto chooses for the device's memory


class Run(NamedTuple):
    """A run of a sweep."""

    workdir: Path
    method: str
    point: dict[str, str]  # values of the grid's fields, as given, by short name
    seed: str
    options: list[str]  # of `noisytwins_jax.main`: the configuration and its fields
    config: RunConfig

    @property
    def command(self) -> list[str]:
        """The command that trains and evaluates it."""
        return [sys.executable, "-m", "noisytwins_jax.main", *self.options, f"--workdir={self.workdir}"]

    def evaluation(self) -> dict | None:
        """Return its evaluation if it was trained to the end and evaluated with exactly this configuration, else None."""
        evaluation, report, config = (self.workdir / name for name in (EVALUATION_FILE, REPORT_FILE, CONFIG_FILE))
        if not (evaluation.exists() and report.exists()):
            return None
        saved, wanted = (
            {name: value for name, value in fields.items() if name not in _OF_THE_DEVICE}
            for fields in (read_config(self.workdir) or {}, json.loads(json.dumps(flatten(self.config))))
        )
        if saved != wanted:
            return None
        if (
            report.stat().st_mtime_ns < config.stat().st_mtime_ns
        ):  # a run writes its config first, its report last: restarted since
            return None
        result, options = json.loads(evaluation.read_text()), self.config.evaluation
        protocol = [result["protocol"].get(name) for name in ("name", "n_fake_per_class", "k", "seed")]
        protocol.append(list(result["protocol"].get("extractors") or {}))
        extractors = list(parse_extractors(options.settings.protocol, options.extractors))
        if protocol != [options.protocol, options.samples_per_class, options.settings.k, options.seed, extractors]:
            return None  # evaluated with other options since
        return result if result["protocol"]["step"] >= self.config.total_steps else None


def plan(config: str, methods: str, seeds: str, grids: Sequence[str], overrides: Sequence[str], out: Path) -> list[Run]:
    """Build every run of a sweep from the options of the command.

    Raises:
      UserError: one of the configurations is not valid, or two runs would be the same.
    """
    path, _, preset = config.partition(":")
    swept = parse_grids(grids)
    names = short_names(list(swept))
    if duplicates := [o for o in overrides if o.partition("=")[0].lstrip("-") in swept]:
        raise UserError(f"{duplicates[0]} is a field of --grid too; give it in one place.")
    runs: dict[Path, Run] = {}
    with_seed = bool(swept) or "," in seeds  # runs of a grid always name their seed, so that seeds can be added later
    for method, values, seed in itertools.product(
        methods.split(","), itertools.product(*swept.values()), seeds.split(",")
    ):
        options = [f"--config={path}:{method}" + (f",{preset}" if preset else ""), f"--config.seed={seed}"]
        options += [*(f"--{field}={value}" for field, value in zip(swept, values, strict=True)), *overrides]
        parsed = load_config(options, from_data=True)
        point = dict(zip(names, values, strict=True))
        parts = [name + ("" if is_number(value) else "-") + value for name, value in point.items()]
        name = "-".join([parsed.name, *parts, *([f"seed{seed}"] if with_seed else [])])
        workdir = out / re.sub(r"[^\w.+-]+", "_", name)
        if workdir in runs:
            raise UserError(f"Two runs would be {workdir}; name every method, seed and value once.")
        runs[workdir] = Run(workdir, method, point, seed, options, parsed)
    return list(runs.values())


def parse_grids(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse texts such as ``config.noisytwins.sigma=0,0.1`` into values by field.

    Raises:
      UserError: a malformed text, a field twice, or the seed, which has its own option.
    """
    grids: dict[str, list[str]] = {}
    for text in texts:
        field, _, values = text.partition("=")
        parsed = [value.strip() for value in values.split(",")]
        if not re.fullmatch(r"config(\.\w+)+", field) or not all(parsed):
            raise UserError(
                f"--grid takes a field and its values, as in --grid config.noisytwins.sigma=0,0.1,0.3, not {text!r}."
            )
        if field in grids:
            raise UserError(f"--grid has {field} twice; give all of its values at once.")
        if field in ("config.seed", "config.name"):
            raise UserError(f"--grid cannot sweep {field}; seeds are given with --seeds, and the sweep chooses names.")
        grids[field] = parsed
    return grids


def short_names(fields: Sequence[str]) -> list[str]:
    """Return the shortest unambiguous suffix of each field: ``sigma``, but ``ema.kimg`` and ``ada.kimg``."""

    def tails(field: str) -> list[str]:
        parts = field.split(".")
        return [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]

    return [next(tail for tail in tails(field) if sum(tail in tails(f) for f in fields) == 1) for field in fields]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m noisytwins_jax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Fields for all runs are set as in noisytwins_jax.main: --config.total_kimg=64",
    )
    parser.add_argument(
        "--config", required=True, help="configuration file; options after the method as file.py:OPTIONS"
    )
    parser.add_argument("--methods", required=True, help="comma-separated methods of the file")
    parser.add_argument("--seeds", default="0", help="comma-separated seeds (default: 0)")
    parser.add_argument("--grid", action="append", default=[], metavar="FIELD=VALUES", help="a field and its values")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="directory of the runs (default: runs)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments, overrides = build_parser().parse_known_args(argv)
    try:
        return _sweep_and_compare(arguments, overrides)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # by now the runs have saved their states and ended
        print("Stopped; the same command resumes.", file=sys.stderr)
        return 130


def _sweep_and_compare(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    if arguments.jobs < 1:
        raise UserError(f"--jobs must be at least 1, but it is {arguments.jobs}.")
    out, grids = arguments.out, arguments.grid
    runs = plan(arguments.config, arguments.methods, arguments.seeds, grids, overrides, out)
    finished = [run.workdir for run in runs if run.evaluation() is not None]
    if arguments.dry_run:
        for run in runs:
            print(("# finished: " if run.workdir in finished else "") + shlex.join(run.command))
        return 0
    stem = Path(arguments.config.partition(":")[0]).stem
    waiting = {run.workdir.name.removeprefix(f"{stem}-"): run for run in runs if run.workdir not in finished}
    print(f"{len(runs)} runs in {out.absolute()}, {len(finished)} of them already finished.", flush=True)
    failed = run_all({name: run.command for name, run in waiting.items()}, arguments.jobs, keep_going=bool(grids))
    if not grids:
        groups: dict[str, list[Path]] = {}
        for run in runs:
            groups.setdefault(run.method, []).append(run.workdir)
        print("\n" + compare(groups, out / REPORT_FILE))
        print(f"\nReport: {(out / REPORT_FILE).absolute()}")
        return 0
    results = [(run, evaluation) for run in runs if (evaluation := run.evaluation()) is not None]
    if results:
        prefix = out / "-".join([stem, *dict.fromkeys(run.method for run in runs), *runs[0].point])
        print("\n" + write_grid(prefix, [GridRun(r.workdir.name, r.method, r.point, r.seed, e) for r, e in results]))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed ({', '.join(failed)}; their last lines are above); the same "
            "command retries them."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
