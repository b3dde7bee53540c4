import pytest

from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.metrics.extractors.classifier import load_or_train_classifier


@pytest.fixture(scope="session")
def digits():
    return digits_splits(8)


@pytest.fixture(scope="session")
def digits_extractor(digits, tmp_path_factory):
    """The real thing: trained on all 8x8 digits, a few seconds."""
    return load_or_train_classifier(digits.classifier, tmp_path_factory.mktemp("classifier"))
