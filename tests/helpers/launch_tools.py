"""Runs the launch scripts, with stand-ins for the clouds' tools."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from paths import ROOT
from waiting import TIMEOUT

LAUNCH = ROOT / "launch"
RUN = ["--config=configs/inat19.py:noisytwins,128", "--workdir=/mnt/b/runs/it's"]
TPU = ["--name=tw", "--zone=us-central2-b"]
GKE = ["--name=tw", "--image=repo/image:1", "--bucket=b", "--accelerator=v4", "--topology=2x2x4"]
PYTHON = {"PYTHON": sys.executable}

# Stands in for gcloud and the others: notes its arguments and input, and answers what the test asks it to, in turn.
STAND_IN = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
text = sys.stdin.read() if "--filename=-" in sys.argv else ""
words = [pathlib.Path(__file__).name, *sys.argv[1:]]
with open(here / "calls", "a") as file:
    file.write(json.dumps({{"words": words, "input": text}}) + "\\n")
answers = json.loads((here / "answers").read_text())
for key, outcomes in answers.items():
    if key in " ".join(words):
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        (here / "answers").write_text(json.dumps(answers))
        if isinstance(outcome, int):
            sys.exit(outcome)
        print(outcome)
        break
"""


def launch(script: str, *words: str, timeout: float = TIMEOUT, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        env={**os.environ, **PYTHON, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def dry(script: str, *words: str, **variables: str) -> list[list[str]]:
    """The commands that a dry run prints, as words; nothing of the cloud is needed."""
    result = launch(script, "--dry-run", *words, **variables)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines() if not line.startswith("#")]


class Tools:
    """Stand-ins for command-line tools, first on the path."""

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir()
        for name in ("gcloud", "kubectl", "sbatch", "docker", "tar", "srun", "squeue", "scontrol"):
            path = directory / name
            path.write_text(STAND_IN.format(python=sys.executable))
            path.chmod(0o755)

    def launch(self, script: str, *words: str, answers: dict | None = None, **variables) -> subprocess.CompletedProcess:
        (self.directory / "calls").write_text("")
        (self.directory / "answers").write_text(json.dumps(answers or {}))
        return launch(script, *words, PATH=f"{self.directory}:{os.environ['PATH']}", **variables)

    @property
    def calls(self) -> list[dict]:
        return [json.loads(line) for line in (self.directory / "calls").read_text().splitlines()]

    @property
    def commands(self) -> list[list[str]]:
        return [call["words"] for call in self.calls]

    @property
    def verbs(self) -> list[str]:
        """Calls of gcloud in a word each: what is done to the TPU, or the verb of worker.sh."""
        last = [call[-1] for call in self.commands if call[0] == "gcloud"]
        names = [call[4] for call in self.commands if call[0] == "gcloud"]
        return [
            word.split("worker.sh ")[1].split()[0] if "worker.sh" in word else name
            for word, name in zip(last, names, strict=True)
        ]
