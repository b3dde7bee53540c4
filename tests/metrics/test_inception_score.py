import numpy as np
import pytest
from golden_numbers import Golden

from noisytwins_jax.metrics.inception_score import inception_score
from noisytwins_jax.utils.errors import UserError

GOLDEN = Golden("metrics")


@pytest.mark.parametrize("case", ["is_a", "is_b"])
@pytest.mark.parametrize(
    "name, arguments",
    [
        ("tf_splits10_shuffle", {"splits": 10, "shuffle_seed": 2020}),
        ("tf_splits5_noshuffle", {"splits": 5}),
    ],
)
def test_matches_torch_fidelity(case, name, arguments):
    values = inception_score(GOLDEN[f"in/{case}/logits"], **arguments)
    np.testing.assert_allclose(values, GOLDEN[f"out/{case}/{name}_f64"], rtol=1e-10)


@pytest.mark.parametrize("case", ["is_a", "is_b"])
def test_one_split_matches_both_and_has_no_deviation(case):
    mean, std = inception_score(GOLDEN[f"in/{case}/logits"])
    np.testing.assert_allclose(mean, GOLDEN[f"out/{case}/studiogan_split1_f64"], rtol=1e-10)
    np.testing.assert_allclose(mean, GOLDEN[f"out/{case}/tf_splits1_noshuffle_f64"][0], rtol=1e-10)
    assert std is None


def test_known_scores():
    certain = np.eye(5).repeat(4, axis=0) * 1e5  # every softmax underflows
    np.testing.assert_allclose(inception_score(certain)[0], 5.0, rtol=1e-12)
    np.testing.assert_allclose(inception_score(np.ones((8, 5)))[0], 1.0, rtol=1e-12)
    one_class_a_split, std = inception_score(certain, splits=5)
    np.testing.assert_allclose([one_class_a_split, std], [1.0, 0.0], atol=1e-12)


def test_logits_without_a_score_are_refused():
    for logits, splits, message in (
        (np.ones((3, 2)), 4, "3 images cannot be taken in 4 splits"),
        (np.ones((3, 2)), 0, "0 splits"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), 1, "for 1 of 2 images"),
    ):
        with pytest.raises(UserError, match=message):
            inception_score(logits, splits)
    with pytest.raises(ValueError, match="shape"):
        inception_score(np.ones(3))
