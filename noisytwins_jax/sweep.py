"""``python -m noisytwins_jax.sweep``: several methods and seeds of one configuration on this machine, then compared.

Runs are processes of their own, `--jobs` at a time. On CPUs each has one core: small networks gain nothing from more.
A run that is already finished is only evaluated again; one that was stopped goes on.
"""

import argparse
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from noisytwins_jax.compare import compare
from noisytwins_jax.errors import UserError

_ONE_CORE = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def sweep(commands: dict[str, list[str]], jobs: int) -> None:
    """Runs commands by name, `jobs` at a time, each line of their output behind its name.

    Raises:
      UserError: a run failed; the others are stopped (they save their state).
    """
    waiting, running = list(commands.items()), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, command = waiting.pop(0)
                running[name] = _start(name, command, one_core=jobs > 1)
            name = _wait_for_any(running)
            process, printer = running.pop(name)
            printer.join()
            if process.returncode:
                raise UserError(f"The run {name} failed (its last lines are above); mend it and run the same command.")
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, printer in running.values():
            process.wait()
            printer.join()


def _start(name: str, command: list[str], one_core: bool) -> tuple[subprocess.Popen, threading.Thread]:
    env = dict(os.environ)
    if one_core:
        env |= {**_ONE_CORE, "XLA_FLAGS": f"{env.get('XLA_FLAGS', '')} {_ONE_CORE['XLA_FLAGS']}".strip()}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)

    def echo() -> None:
        for line in process.stdout:
            print(f"[{name}] {line}", end="", flush=True)

    printer = threading.Thread(target=echo)
    printer.start()
    return process, printer


def _wait_for_any(running: dict[str, tuple[subprocess.Popen, threading.Thread]]) -> str:
    """The name of a process that has ended."""
    while True:
        for name, (process, _) in running.items():
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            return name


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m noisytwins_jax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="configuration file, without :<method>")
    parser.add_argument("--methods", required=True, help="methods of the file, with commas between")
    parser.add_argument("--seeds", default="0", help="seeds, with commas between (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="directory of the runs (default: runs)")
    arguments, overrides = parser.parse_known_args(argv)
    methods, seeds = arguments.methods.split(","), arguments.seeds.split(",")
    stem = Path(arguments.config).stem
    groups: dict[str, list[Path]] = {}
    commands = {}
    for method, seed in itertools.product(methods, seeds):
        name = f"{stem}-{method}" + (f"-seed{seed}" if len(seeds) > 1 else "")
        groups.setdefault(method, []).append(arguments.out / name)
        commands[name.removeprefix(f"{stem}-")] = [
            *(sys.executable, "-m", "noisytwins_jax.main", f"--config={arguments.config}:{method}"),
            *(f"--workdir={arguments.out / name}", f"--config.seed={seed}", *overrides),
        ]
    try:
        sweep(commands, arguments.jobs)
        report = arguments.out / "report.html"
        print("\n" + compare(groups, report))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"\nReport: {report.absolute()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
