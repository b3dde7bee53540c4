import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noisytwins_jax.metrics.w_space import class_variance_ratios, w_ratio_monitor, within_class_variance_ratio
from noisytwins_jax.utils.errors import UserError


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


def test_the_ratio_inside_a_program_is_the_same():
    rng = np.random.default_rng(2)
    w = 3.0 + rng.normal(size=(5, 1, 16)) + rng.uniform(0.01, 2.0, (5, 1, 1)) * rng.normal(size=(5, 32, 16))
    want = within_class_variance_ratio(w.reshape(-1, 16), np.repeat(np.arange(5), 32))[1]
    np.testing.assert_allclose(jax.jit(class_variance_ratios)(w), want, rtol=1e-5)
    np.testing.assert_array_equal(class_variance_ratios(jnp.full((3, 8, 4), 0.1)), np.zeros(3))
    collapsed = jnp.asarray(np.repeat(rng.normal(size=(3, 1, 4)), 8, axis=1), jnp.float32)
    np.testing.assert_allclose(class_variance_ratios(collapsed), 0, atol=1e-10)
    assert np.isnan(class_variance_ratios(collapsed.at[0, 0, 0].set(jnp.inf))).all()


def linear(variables, z, labels):
    """Map latents with class means variables["centre"] and spread variables["spread"]."""
    return variables["centre"][labels] + variables["spread"][labels][:, None] * z


def test_probe_tells_head_from_tail():
    groups = {"head": np.array([2, 0]), "medium": np.array([3]), "tail": np.array([1, 4])}
    spread = np.array([1.0, 0.0, 1.0, 1.0, 0.0], np.float32)
    probe = jax.jit(w_ratio_monitor(linear, 8, groups))
    far = probe({"centre": jnp.arange(5.0)[:, None] * jnp.ones(8), "spread": spread})
    assert set(far) == {"w_ratio", "w_ratio/head", "w_ratio/tail"}
    assert far["w_ratio/tail"] == 0 < far["w_ratio"] < far["w_ratio/head"]
    # Within: variance 1 of three in five classes. Between: variance 2 of the centres 0 to 4.
    assert far["w_ratio"] == pytest.approx(0.6 / 2.6, rel=0.15)  # 32 latents of 8 numbers


def test_probe_shares_latents_among_at_most_fifty_classes():
    groups = {"head": np.arange(400), "medium": np.arange(400, 800), "tail": np.arange(800, 1010)}
    calls = []

    def record(variables, z, labels):
        calls.append((np.asarray(z), np.asarray(labels)))
        return z

    values = w_ratio_monitor(record, 4, groups)({})
    (z, labels), classes = calls[0], calls[0][1][::32]
    assert z.shape == (1600, 4) and (labels == np.repeat(classes, 32)).all()
    assert len(set(classes)) == 50 and {0, 1009} <= set(classes)
    assert [int(np.isin(classes, ids).sum()) for ids in groups.values()] == [20, 19, 11]
    np.testing.assert_array_equal(z[:32], z[-32:])
    assert all(value == pytest.approx(1, abs=1e-6) for value in values.values())  # z alone: nothing between classes
    assert set(
        w_ratio_monitor(record, 4, {"head": np.array([]), "medium": np.array([0]), "tail": np.array([])})({})
    ) == {"w_ratio"}
