"""``python -m noisytwins_jax.sweep``: methods, seeds and grids of one configuration on this machine, then compared.

Runs are processes of their own, `--jobs` at a time. With several at a time each has one core on CPUs:
small networks gain nothing from more. The same command goes on where it was stopped; runs already finished with this
configuration are left as they are.

With `--grid config.FIELD=VALUE,VALUE` (again for another field) every combination of the values is run, once a seed.
A run that fails does not stop the others. The finished ones end as a table (.txt; run by run in .csv) and a plot (.png).
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


class Run(NamedTuple):
    """A run of a sweep."""

    workdir: Path
    method: str
    point: dict[str, str]  # values of the grid's fields, as typed, by short name
    seed: str
    options: list[str]  # of `noisytwins_jax.main`: the configuration and its fields
    config: RunConfig

    @property
    def command(self) -> list[str]:
        """What trains and evaluates it."""
        return [sys.executable, "-m", "noisytwins_jax.main", *self.options, f"--workdir={self.workdir}"]

    def evaluation(self) -> dict | None:
        """Its numbers, once it was trained to the end and evaluated with exactly this configuration; else None."""
        evaluation, report, config = (self.workdir / name for name in (EVALUATION_FILE, REPORT_FILE, CONFIG_FILE))
        if not (evaluation.exists() and report.exists()):
            return None
        if read_config(self.workdir) != json.loads(json.dumps(flatten(self.config))):
            return None
        if report.stat().st_mtime_ns < config.stat().st_mtime_ns:  # written last of all, and first: started again since
            return None
        result, asked = json.loads(evaluation.read_text()), self.config.evaluation
        measured = [result["protocol"].get(name) for name in ("name", "n_fake_per_class", "k", "seed")]
        measured.append(list(result["protocol"].get("extractors") or {}))
        chosen = list(parse_extractors(asked.settings.protocol, asked.extractors))
        if measured != [asked.protocol, asked.samples_per_class, asked.settings.k, asked.seed, chosen]:
            return None  # evaluated in another way since
        return result if result["protocol"]["step"] >= self.config.total_steps else None


def plan(config: str, methods: str, seeds: str, grids: Sequence[str], overrides: Sequence[str], out: Path) -> list[Run]:
    """Every run of a sweep; the arguments are those of the command.

    Raises:
      UserError: one of the configurations is not valid, or two runs would be the same.
    """
    path, _, words = config.partition(":")
    swept = parse_grids(grids)
    names = short_names(list(swept))
    if again := [o for o in overrides if o.partition("=")[0].lstrip("-") in swept]:
        raise UserError(f"{again[0]} is a field of --grid too; give it in one place.")
    runs: dict[Path, Run] = {}
    several = bool(swept) or "," in seeds  # a grid's runs always name their seed, so that seeds can be added later
    for method, values, seed in itertools.product(
        methods.split(","), itertools.product(*swept.values()), seeds.split(",")
    ):
        options = [f"--config={path}:{method}" + (f",{words}" if words else ""), f"--config.seed={seed}"]
        options += [*(f"--{field}={value}" for field, value in zip(swept, values, strict=True)), *overrides]
        parsed = load_config(options)
        point = dict(zip(names, values, strict=True))
        parts = [name + ("" if is_number(value) else "-") + value for name, value in point.items()]
        name = "-".join([parsed.name, *parts, *([f"seed{seed}"] if several else [])])
        workdir = out / re.sub(r"[^\w.+-]+", "_", name)
        if workdir in runs:
            raise UserError(f"Two runs would be {workdir}; name every method, seed and value once.")
        runs[workdir] = Run(workdir, method, point, seed, options, parsed)
    return list(runs.values())


def parse_grids(texts: Sequence[str]) -> dict[str, list[str]]:
    """Values by field, from texts such as ``config.noisytwins.sigma=0,0.1``.

    Raises:
      UserError: a text of another form, a field twice, or the seed, which has its own option.
    """
    grids: dict[str, list[str]] = {}
    for text in texts:
        field, _, values = text.partition("=")
        words = [word.strip() for word in values.split(",")]
        if not re.fullmatch(r"config(\.\w+)+", field) or not all(words):
            raise UserError(
                f"--grid takes a field and its values, as in --grid config.noisytwins.sigma=0,0.1,0.3, not {text!r}."
            )
        if field in grids:
            raise UserError(f"--grid has {field} twice; give all of its values at once.")
        if field in ("config.seed", "config.name"):
            raise UserError(f"--grid cannot sweep {field}; seeds are given with --seeds, and names are made here.")
        grids[field] = words
    return grids


def short_names(fields: Sequence[str]) -> list[str]:
    """As many last words of each field as tell it from the others: ``sigma``; ``ema.kimg`` beside ``ada.kimg``."""

    def tails(field: str) -> list[str]:
        words = field.split(".")
        return [".".join(words[-n:]) for n in range(1, len(words) + 1)]

    return [next(tail for tail in tails(field) if sum(tail in tails(f) for f in fields) == 1) for field in fields]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m noisytwins_jax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Fields for all runs are set as in noisytwins_jax.main: --config.total_kimg=64",
    )
    parser.add_argument("--config", required=True, help="configuration file; words after the method as file.py:WORDS")
    parser.add_argument("--methods", required=True, help="methods of the file, with commas between")
    parser.add_argument("--seeds", default="0", help="seeds, with commas between (default: 0)")
    parser.add_argument("--grid", action="append", default=[], metavar="FIELD=VALUES", help="a field and its values")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="directory of the runs (default: runs)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments, overrides = build_parser().parse_known_args(argv)
    try:
        return _sweep_and_compare(arguments, overrides)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # by now the runs have saved their states and ended
        print("Stopped; the same command goes on.", file=sys.stderr)
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
    print(f"{len(runs)} runs in {out.absolute()}, {len(finished)} of them finished already.", flush=True)
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
            "command tries them again."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
