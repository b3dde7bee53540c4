"""Put the tests' shared helpers on the path, keep JAX on the CPU, and share what is expensive to make."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent / "helpers"))


@pytest.fixture(scope="session")
def digits():
    from noisytwins_jax.data.digits import digits_splits

    return digits_splits(8)


@pytest.fixture(scope="session")
def digits_extractor(digits, tmp_path_factory):
    """The real classifier: trained on all 8×8 digits, a few seconds."""
    from noisytwins_jax.metrics.extractors.classifier import load_or_train_classifier

    return load_or_train_classifier(digits.classifier, tmp_path_factory.mktemp("classifier"))
