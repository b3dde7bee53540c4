import numpy as np
import pytest

from noisytwins_jax.errors import UserError
from noisytwins_jax.metrics.w_space import within_class_variance_ratio


def test_collapsed_classes_give_zero():
    labels = np.repeat(np.arange(4), 50)
    w = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)[labels]
    overall, per_class = within_class_variance_ratio(w, labels)
    assert overall == pytest.approx(0.0, abs=1e-12) and per_class.shape == (4,)


def test_w_that_ignores_the_class_gives_one():
    labels = np.tile(np.arange(5), 400)
    overall, per_class = within_class_variance_ratio(np.random.default_rng(1).normal(size=(2000, 8)), labels)
    assert overall == pytest.approx(1 - 1 / 400, abs=2e-3)
    np.testing.assert_allclose(per_class, 1.0, atol=0.1)


def test_known_values():
    """One dimension, class means -1 and 1, within variances 1 and 4: total = 2.5 + 1."""
    w = np.array([[-2.0], [0.0], [-1.0], [3.0]])
    overall, per_class = within_class_variance_ratio(w, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(per_class, [1 / 3.5, 4 / 3.5])
    assert overall == pytest.approx(2.5 / 3.5)


def test_classes_weigh_the_same_whatever_their_size_and_scale_cancels():
    w, labels = np.array([[-2.0], [0.0], [-1.0], [3.0]]), np.array([0, 0, 1, 1])
    repeated = np.concatenate([w, np.tile(w[:2], (9, 1))]) * 1e-3 + 7.0
    values = within_class_variance_ratio(repeated, np.concatenate([labels, np.zeros(18, int)]))
    np.testing.assert_allclose(values[0], 2.5 / 3.5, rtol=1e-9)


def test_absent_class_is_nan_and_left_out_and_constant_w_is_zero():
    w = np.array([[0.0], [1.0], [0.0], [1.0]])
    overall, per_class = within_class_variance_ratio(w, np.array([0, 0, 2, 2]))
    assert overall == 1.0 and np.isnan(per_class[1]) and not np.isnan(per_class[[0, 2]]).any()
    overall, per_class = within_class_variance_ratio(np.full((99, 3), 0.1, np.float32), np.arange(99) % 3)
    assert overall == 0.0 and (per_class == 0).all()


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="diverged"):
        within_class_variance_ratio(np.array([[np.nan], [0.0]]), np.array([0, 0]))
    with pytest.raises(UserError, match="Class 1 has a single sample"):
        within_class_variance_ratio(np.zeros((3, 2)), np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="must be"):
        within_class_variance_ratio(np.zeros((3, 2)), np.array([0, 0]))
    with pytest.raises(ValueError, match=">= 0"):
        within_class_variance_ratio(np.zeros((2, 2)), np.array([-1, -1]))
