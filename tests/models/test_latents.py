"""Latent distributions against their moments and supports; truncation against scipy's truncated normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from noisytwins_jax.models.latents import (
    LATENTS,
    TRUNCATIONS,
    Latents,
    Truncation,
    annealed_std,
    check_truncation,
    parse_truncation,
)
from noisytwins_jax.utils.errors import UserError

KEY = jax.random.key(3)
NORMAL = Latents(16)
COUNT = 4000  # of samples: 64,000 elements, whose mean has a standard error of σ/253


def assert_distributed(z, distribution) -> None:
    """The largest difference of distribution functions is below what chance exceeds once in 100,000 keys."""
    z = np.asarray(z, np.float64).ravel()
    assert stats.kstest(z, distribution.cdf).statistic < 2.5 / np.sqrt(z.size)


def draw(latents: Latents = NORMAL, n: int = COUNT, **options) -> np.ndarray:
    return np.asarray(latents.draw(KEY, n, **options))


truncated = jax.jit(
    lambda kind, strength: NORMAL.draw(KEY, COUNT, truncation_kind=kind, strength=strength), static_argnums=0
)

# Mean, standard deviation, and the values if they are few; of N⁺ = max(N, 0): 1/√(2π) and √(1/2 - 1/(2π)).
DISTRIBUTIONS = {
    "normal": (0.0, 1.0, None),
    "uniform": (0.0, 3**-0.5, None),
    "bernoulli": (0.5, 0.5, [0, 1]),
    "censored": ((2 * np.pi) ** -0.5, (0.5 - 0.5 / np.pi) ** 0.5, None),
    "sign": (0.0, 1.0, [-1, 1]),
    "ternary": (0.0, (2 / 3) ** 0.5, [-1, 0, 1]),
    "normal_bernoulli": (0.0, 0.5**0.5, None),
    "random_std": (0.0, (1 + 1 / 12) ** 0.5, None),  # E[σ²] of σ ~ U[0.5, 1.5]
}


def test_untruncated_normal_latents_are_those_of_jax_to_the_bit():
    expected = jax.random.normal(KEY, (5, 16))
    np.testing.assert_array_equal(NORMAL.draw(KEY, 5), expected)
    np.testing.assert_array_equal(jax.jit(lambda std: NORMAL.draw(KEY, 5, std))(1.0), expected)
    np.testing.assert_array_equal(NORMAL.draw(KEY, 5, truncation_kind="psi", strength=0.5), expected)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_distributions(kind):
    mean, std, values = DISTRIBUTIONS[kind]
    z = draw(Latents(16, kind))
    assert z.shape == (COUNT, 16) and z.dtype == np.float32
    assert z.mean() == pytest.approx(mean, abs=0.02) and z.std() == pytest.approx(std, abs=0.02)
    if values is not None:
        found, counts = np.unique(z, return_counts=True)
        np.testing.assert_array_equal(found, values)
        np.testing.assert_allclose(counts / z.size, 1 / len(values), atol=0.01)
    np.testing.assert_allclose(draw(Latents(16, kind), std=2.0), 2 * z, rtol=1e-6)
    np.testing.assert_allclose(draw(Latents(16, kind), truncation_kind="std", strength=0.3), 0.3 * z, rtol=1e-6)


def test_every_kind_is_checked():
    assert {*DISTRIBUTIONS, "mixed"} == set(LATENTS)


def test_supports():
    assert np.abs(draw(Latents(16, "uniform"))).max() <= 1
    censored = draw(Latents(16, "censored"))
    np.testing.assert_array_equal(censored, np.maximum(draw(), 0))
    sparse = draw(Latents(16, "normal_bernoulli"))
    assert (sparse == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert sparse[sparse != 0].std() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("z_dim", "normal"), [(16, 8), (7, 4), (1, 1)])
def test_half_of_mixed_latents_are_bits(z_dim, normal):
    z = draw(Latents(z_dim, "mixed"))
    assert z.shape == (COUNT, z_dim)
    assert_distributed(z[:, :normal], stats.norm)
    if z_dim > 1:
        np.testing.assert_array_equal(np.unique(z[:, normal:]), [0, 1])
        assert z[:, normal:].mean() == pytest.approx(0.5, abs=0.02)


def test_each_sample_has_a_standard_deviation_of_its_own():
    z = draw(Latents(4000, "random_std", std_range=(0.2, 0.6)), n=300)
    assert_distributed(z.std(axis=1), stats.uniform(0.2, 0.4))


@pytest.mark.parametrize("threshold", [0.04, 0.5, 1.0, 2.0])
def test_a_threshold_gives_the_truncated_normal_distribution(threshold):
    z = np.asarray(truncated("threshold", threshold))
    assert np.abs(z).max() <= threshold
    assert_distributed(z, stats.truncnorm(-threshold, threshold))


def test_the_same_key_moves_coherently_with_the_threshold():
    before = np.zeros((COUNT, 16))
    for threshold in (0.1, 0.5, 1.0, 2.0, 4.0):
        z = np.asarray(truncated("threshold", threshold))
        assert (np.abs(z) > np.abs(before)).mean() > 0.999 and (np.abs(z) >= np.abs(before) * (1 - 1e-5)).all()
        assert (z * before >= 0).all()
        before = z
    np.testing.assert_array_equal(truncated("threshold", np.inf), draw())
    assert truncated._cache_size() <= 2  # one program for all strengths of a kind


def test_a_threshold_bounds_latents_of_any_standard_deviation():
    z = draw(std=2.0, truncation_kind="threshold", strength=1.0)
    assert_distributed(z, stats.truncnorm(-0.5, 0.5, scale=2.0))


def test_scaled_truncation():
    z = np.asarray(truncated("scaled", 0.4))
    assert_distributed(z, stats.truncnorm(-2, 2, scale=0.4))
    np.testing.assert_allclose(z, 0.4 * np.asarray(truncated("threshold", 2.0)), rtol=1e-6)
    np.testing.assert_array_equal(truncated("scaled", 0.0), 0.0)


@pytest.mark.parametrize("kind", ["threshold", "scaled"])
def test_only_normal_latents_are_truncated_in_z(kind):
    with pytest.raises(ValueError, match="not 'uniform'"):
        Latents(4, "uniform").draw(KEY, 2, truncation_kind=kind, strength=1.0)


def test_variance_annealing():
    std = jax.jit(lambda kimg: annealed_std(kimg, 2.0, 1.0, 100.0))
    found = [float(std(kimg)) for kimg in (0.0, 25.0, 100.0, 1000.0)]
    assert found == pytest.approx([2.0, 1.75, 1.0, 1.0]) and found[2:] == [1.0, 1.0]
    assert float(jnp.asarray(annealed_std(7.0, 1.0, 1.0, 10.0))) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.7", Truncation("std", 0.7)),
        ("threshold:0.5", Truncation("threshold", 0.5)),
        (" psi : -1 ", Truncation("psi", -1.0)),
        ("", None),
        ("  ", None),
    ],
)
def test_parse(text, expected):
    assert parse_truncation(text, "std") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("half", "no number.*threshold:0.5"),
        ("threshold:", "no number"),
        ("treshold:1", "did you mean 'threshold'"),
        (":1", "There is no truncation ''"),
        ("psi:0.5:1", "There is no truncation 'psi:0.5'"),
    ],
)
def test_parse_says_what_is_wrong(text, message):
    with pytest.raises(UserError, match=message):
        parse_truncation(text, "psi")


@pytest.mark.parametrize(
    ("kind", "strength", "latents", "has_w"),
    [
        ("psi", -0.5, "uniform", True),
        ("threshold", 0.5, "normal", False),
        ("threshold", float("inf"), "normal", True),
        ("scaled", 0.0, "normal", False),
        *[("std", 2.0, kind, False) for kind in LATENTS],
    ],
)
def test_what_can_be_truncated(kind, strength, latents, has_w):
    check_truncation(kind, strength, latents, has_w)
    if kind != "psi":
        z = Latents(4, latents).draw(KEY, 3, truncation_kind=kind, strength=strength)
        assert z.shape == (3, 4) and np.isfinite(z).all()


@pytest.mark.parametrize(
    ("kind", "strength", "latents", "has_w", "message"),
    [
        ("psy", 1.0, "normal", True, "did you mean 'psi'"),
        ("psi", 0.7, "normal", False, "threshold:0.5"),
        ("std", 0.7, "normal", True, "use psi"),
        ("scaled", 0.7, "normal", True, "use psi"),
        ("threshold", 0.7, "ternary", False, "ternary; use std"),
        ("scaled", 0.7, "random_std", False, "random_std; use std"),
        ("threshold", 0.7, "uniform", True, "uniform; use psi"),
        ("psi", float("nan"), "normal", True, "finite"),
        ("psi", float("inf"), "normal", True, "finite"),
        ("threshold", 0.0, "normal", False, "above 0"),
        ("threshold", float("nan"), "normal", False, "above 0"),
        ("scaled", -0.1, "normal", False, "at least 0"),
        ("std", float("inf"), "normal", False, "finite"),
        ("std", float("nan"), "uniform", False, "finite"),
    ],
)
def test_what_cannot_be_truncated(kind, strength, latents, has_w, message):
    with pytest.raises(UserError, match=message) as error:
        check_truncation(kind, strength, latents, has_w)
    assert "\n" not in str(error.value)


def test_kinds_of_truncation():
    assert TRUNCATIONS == ("psi", "threshold", "scaled", "std")
