"""README's "Add your own loss", carried out to the letter in a copy of the package."""

import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import tiny_run
from paths import ROOT
from waiting import TIMEOUT

from noisytwins_jax.utils.logging import read_metrics


def test_the_example_of_the_readme(tmp_path):
    text = (ROOT / "README.md").read_text()
    section = re.search(r"^## Add your own loss$(.*?)^## ", text, re.DOTALL | re.MULTILINE)[1]
    (file,) = re.findall(r"The file, `([^`]+)`", section)
    (place,) = re.findall(r"The line, with its import, in `([^`]+)`", section)
    module, lines = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    imported, _, field = lines.partition("\n\n\nclass Losses:\n")
    (command,) = re.findall(r"```sh\n(.*?)\n```", section, re.DOTALL)

    for name in ("noisytwins_jax", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert not (tmp_path / file).exists()
    (tmp_path / file).write_text(module)
    source = (tmp_path / place).read_text()
    (losses,) = re.findall(r"^class Losses:\n.*?(?=^\S)", source, re.DOTALL | re.MULTILINE)
    first = source.index("from noisytwins_jax.")
    source = source.replace(losses, f"{losses.rstrip()}\n{field}\n\n")
    (tmp_path / place).write_text(f"{source[:first]}{imported}\n{source[first:]}")

    python, *arguments = shlex.split(command)
    assert python == "python"
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=tiny_run.environment(1) | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    (workdir,) = (tmp_path / "runs").glob("digits_lt-*")
    values = [record["loss/discriminator/drift"] for record in read_metrics(workdir) if "loss/discriminator" in record]
    assert len(values) == 4 and np.isfinite(values).all() and min(values) > 0
