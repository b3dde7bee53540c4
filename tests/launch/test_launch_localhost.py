"""localhost.sh: processes on this machine, for real."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launch_tools import LAUNCH, PYTHON, RUN, launch
from tiny_run import environment
from waiting import TIMEOUT


def test_localhost_commands() -> None:
    words = ["--processes=2", "--devices=3", "--port=1234", "--platform=cpu", "--", *RUN]
    lines = launch("localhost.sh", "--dry-run", *words).stdout.splitlines()
    process = ["env", "PYTHONUNBUFFERED=1", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=3", sys.executable]
    process += ["-m", "noisytwins_jax.main", *RUN, "--coordinator=localhost:1234", "--num_processes=2"]
    assert [shlex.split(line) for line in lines] == [
        [*process, "--process_id=0", "&"],
        [*process, "--process_id=1", "&"],
        ["wait"],
    ]
    gpu = launch("localhost.sh", "--dry-run", "--platform=gpu", *words[:1], *words[2:3], "--", *RUN).stdout
    assert "CUDA_VISIBLE_DEVICES=1" in gpu and "JAX_PLATFORMS" not in gpu


PROGRAM = """

import os, pathlib, signal, sys, time
flags = dict(word[2:].split("=") for word in sys.argv[1:] if word.startswith("--"))
me, mode = flags["process_id"], sys.argv[1]
def end(number, frame):
    print("ended by", number)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
print(mode, flags["num_processes"], flags["coordinator"], os.environ["JAX_NUM_CPU_DEVICES"])
print("no end of line", end="", file=sys.stderr)
ready = pathlib.Path(__file__).with_name("ready")
ready.mkdir(exist_ok=True)
(ready / me).touch()
while len(list(ready.iterdir())) < int(flags["num_processes"]):
    time.sleep(0.05)
if mode == "fails" and me == "1":
    sys.exit(7)
if mode == "killed" and me == "1":
    os.kill(os.getpid(), 9)
if mode != "ends":
    time.sleep(36000)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return f"--program={path}"


def test_localhost_finds_a_port_and_marks_lines(program: str) -> None:
    result = launch("localhost.sh", program, "--platform=cpu", "--processes=3", "--devices=2", "--", "ends")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    firsts = sorted(line for line in lines if "ends" in line)
    assert [line[:3] for line in firsts] == ["[0]", "[1]", "[2]"] and len(lines) == 6
    (address,) = {line.split()[3] for line in firsts}
    assert {line.split(maxsplit=1)[1] for line in firsts} == {f"ends 3 {address} 2"}
    with socket.socket() as free:
        free.bind(("localhost", int(address.rpartition(":")[2])))


@pytest.mark.parametrize(("mode", "status"), [("fails", 7), ("killed", 137)])
def test_localhost_ends_all_when_one_fails(program: str, mode: str, status: int) -> None:
    result = launch("localhost.sh", program, "--platform=cpu", "--processes=3", "--", mode)
    assert result.returncode == status
    assert f"Process 1 ended with status {status}" in result.stderr
    assert result.stdout.count("ended by 15") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_localhost_passes_signals_on(program: str, number: signal.Signals) -> None:
    command = ["bash", str(LAUNCH / "localhost.sh"), program, "--platform=cpu", "--processes=2", "--", "waits"]
    # Tests in the background are started with SIGINT ignored, which a shell could not undo: it must not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, env={**os.environ, **PYTHON}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        seen = [process.stdout.readline() for _ in range(2)]
        assert all("waits" in line for line in seen)
        process.send_signal(number)
        output, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 128 + number, errors
        assert output.count(f"ended by {int(number)}") == 2


@pytest.mark.slow
def test_localhost_trains(tmp_path: Path) -> None:
    """Two processes of one simulated device each; the same command finds the run finished."""
    run = ["--config=configs/digits_lt.py:noisytwins,smoke", f"--workdir={tmp_path / 'smoke'}"]
    for _ in range(2):
        variables = {**environment(1), **PYTHON}
        result = launch("localhost.sh", "--platform=cpu", "--processes=2", "--devices=1", "--", *run, **variables)
        assert result.returncode == 0, result.stdout + result.stderr
        reports = [line for line in result.stdout.splitlines() if "Report:" in line]
        assert reports and (tmp_path / "smoke" / "report.html").exists()
