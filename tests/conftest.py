"""Put the tests' shared helpers on the path, keep JAX on the CPU, and share what is expensive to build."""

import atexit
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent / "helpers"))

# What the processes of one session share: pytest-xdist's workers and every program that a test starts inherit the
# variables. A new directory each time, so that nothing passes because of what an earlier session left.
if "NOISYTWINS_TESTS_SHARED" not in os.environ:
    os.environ["NOISYTWINS_TESTS_SHARED"] = tempfile.mkdtemp(prefix="noisytwins_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["NOISYTWINS_TESTS_SHARED"], ignore_errors=True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{os.environ['NOISYTWINS_TESTS_SHARED']}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    # Without these kernels compilation takes a third less time. XLA ends a process that has a flag it does not know, so
    # another one tries it.
    faster = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
    trial = [sys.executable, "-c", "import jax; jax.devices()"]
    if subprocess.run(trial, env={**os.environ, "XLA_FLAGS": faster}, capture_output=True, check=False).returncode == 0:
        os.environ["XLA_FLAGS"] = faster


@pytest.fixture(scope="session")
def computed_once():
    """A function (name, compute) that returns what `compute` returns, as JSON; one worker of the session computes it for all."""

    def get(name, compute):
        path = Path(os.environ["NOISYTWINS_TESTS_SHARED"]) / f"{name}.json"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait
            if not path.exists():
                path.write_text(json.dumps(compute()))
        return json.loads(path.read_text())

    return get


@pytest.fixture(scope="module")
def fast_compilation():
    """Compile fast what then runs slowly, for modules most of whose time is compilation."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def digits():
    from noisytwins_jax.data.digits import digits_splits

    return digits_splits(8)


@pytest.fixture(scope="session")
def digits_extractor(digits, tmp_path_factory):
    """The real classifier: trained on all 8×8 digits, a few seconds."""
    from noisytwins_jax.metrics.extractors.classifier import load_or_train_classifier

    return load_or_train_classifier(digits.classifier, tmp_path_factory.mktemp("classifier"))
