"""Commands run in parallel on this machine, each in a process of its own."""

import os
import subprocess
import threading

from noisytwins_jax.utils.errors import UserError

_ONE_CORE = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def run_all(commands: dict[str, list[str]], jobs: int, keep_going: bool = False) -> list[str]:
    """Run commands by name, `jobs` at a time, printing each line of their output with its name.

    Returns:
      The names of those that failed, with `keep_going`; without it, none did.

    Raises:
      UserError: a command failed, without `keep_going`; the others are stopped (runs save their state).
    """
    waiting, running, failed = list(commands.items()), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, command = waiting.pop(0)
                running[name] = _start(name, command, one_core=jobs > 1)
            name = _wait_for_any(running)
            process, printer = running.pop(name)
            printer.join()
            if process.returncode:
                failed.append(name)
            if failed and not keep_going:
                raise UserError(f"The run {name} failed (its last lines are above); fix it and run the same command.")
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, printer in running.values():
            process.wait()
            printer.join()
    return failed


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
    """Wait for any process to end; return its name."""
    while True:
        for name, (process, _) in running.items():
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            return name
