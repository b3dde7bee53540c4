"""Put the tests' shared helpers on the path, keep JAX on the CPU, and share what is expensive to build."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent / "helpers"))

# Compiled programs are shared by the processes of one session: pytest-xdist's workers and every program that a test
# starts inherit the variables. A new directory each time, so that nothing passes because of what an earlier session left.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="noisytwins_jax_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


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
