import numpy as np
import pytest
import scipy.linalg
from paths import GOLDEN

from noisytwins_jax.metrics import frechet
from noisytwins_jax.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from noisytwins_jax.utils.errors import UserError

GOLDEN = np.load(GOLDEN / "metrics.npz")
CASES = ("basic", "equal", "clustered", "rankdef", "both_rankdef")


def sets(case):
    return GOLDEN[f"in/{case}/real"], GOLDEN[f"in/{case}/fake"]


@pytest.mark.parametrize("case", CASES)
def test_matches_reference_values(case):
    real, fake = sets(case)
    value = frechet_distance(real, fake)
    np.testing.assert_allclose(value, GOLDEN[f"out/{case}/fid_gram_f64"], rtol=1e-12)
    np.testing.assert_allclose(value, GOLDEN[f"out/{case}/fid_eigh_f64"], rtol=1e-6)
    np.testing.assert_allclose(value, GOLDEN[f"out/{case}/fid_torchfidelity_f64"], rtol=1e-6)
    np.testing.assert_allclose(value, GOLDEN[f"out/{case}/fid_studiogan_f64"], rtol=1e-6)


@pytest.fixture
def large(monkeypatch):
    """Every set with n > 4 d counts as large, and is summed in blocks of seven rows."""
    monkeypatch.setattr(frechet, "_QR_ELEMENTS", 0)
    monkeypatch.setattr(frechet, "_BLOCK_ELEMENTS", 7 * 10)


@pytest.mark.parametrize("case", CASES)
def test_large_sets_match_reference_values(case, large, monkeypatch):
    real, fake = sets(case)
    if min(len(real), len(fake)) > 4 * real.shape[1]:
        monkeypatch.setattr(np.linalg, "qr", lambda *a, **k: pytest.fail("took the route of small sets"))
    np.testing.assert_allclose(frechet_distance(real, fake), GOLDEN[f"out/{case}/fid_gram_f64"], rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_large_sets_agree_with_small_ones(offset, monkeypatch):
    rng = np.random.default_rng(5)
    real, fake = rng.normal(size=(500, 12)) * np.arange(1, 13) + offset, rng.normal(size=(300, 12)) + offset
    real[:, 3], fake[:, 3:6] = 2.0 * real[:, 2], offset  # singular both, in different directions
    expected = frechet_distance(real, fake)
    monkeypatch.setattr(frechet, "_QR_ELEMENTS", 0)
    monkeypatch.setattr(frechet, "_BLOCK_ELEMENTS", 12 * 64)
    fitted = feature_statistics(real)
    np.testing.assert_allclose(fitted.mean, real.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(fitted.factor @ fitted.factor.T, np.cov(real.T), atol=1e-9)
    assert fitted.factor.shape == (12, 11) and feature_statistics(fake).factor.shape == (12, 9)
    np.testing.assert_allclose(frechet_distance(real, fake), expected, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 5, 30, 90])
def test_the_input_is_left_as_it_was(n, large):
    features = np.random.default_rng(6).normal(size=(n, 10))
    before = features.copy()
    feature_statistics(features)
    np.testing.assert_array_equal(features, before)


@pytest.mark.slow
def test_matches_the_matrix_square_root():
    rng = np.random.default_rng(7)
    real, fake = (rng.normal(size=(1500, 256)) @ rng.normal(size=(256, 256)) * 0.1 + rng.normal(size=256) for _ in "12")
    first, second = np.cov(real.T), np.cov(fake.T)
    root = scipy.linalg.sqrtm(first @ second)
    expected = np.sum((real.mean(0) - fake.mean(0)) ** 2) + np.trace(first + second - 2 * root.real)
    np.testing.assert_allclose(frechet_distance(real, fake), expected, rtol=1e-8)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 40])
def test_factor_reproduces_the_covariance(n):
    x = np.random.default_rng(n).normal(size=(n, 8)) + 100.0
    fitted = feature_statistics(x.astype(np.float32))
    expected = np.cov(x.astype(np.float32).astype(np.float64).T) if n > 1 else np.zeros((8, 8))
    np.testing.assert_allclose(fitted.factor @ fitted.factor.T, expected, atol=1e-12)
    assert fitted.factor.shape == (8, {1: 0}.get(n, min(n, 8)))
    assert fitted.mean.dtype == fitted.factor.dtype == np.float64 and fitted.count == n


def test_one_image_has_zero_covariance():
    rng = np.random.default_rng(0)
    one, many = rng.normal(size=(1, 5)), rng.normal(size=(30, 5))
    expected = np.sum((one[0] - many.mean(0)) ** 2) + np.trace(np.cov(many.T))
    np.testing.assert_allclose(frechet_distance(one, many), expected, rtol=1e-12)
    np.testing.assert_allclose(frechet_distance(many, one), expected, rtol=1e-12)


def test_known_gaussians():
    """Commuting covariances: tr (S1 S2)^(1/2) is the sum of products of standard deviations."""
    rotation = scipy.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    a, b = np.array([1.0, 2.0, 3.0, 0.0]), np.array([2.0, 0.5, 0.0, 1.0])
    first = FeatureStatistics(np.zeros(4), rotation * a, 100)
    second = FeatureStatistics(np.full(4, 2.0), rotation * b, 100)
    np.testing.assert_allclose(frechet_distance(first, second), 16 + ((a - b) ** 2).sum(), rtol=1e-6)


def test_equal_sets_are_at_zero_and_never_negative():
    x = np.random.default_rng(2).normal(size=(50, 10)) * 1e3
    assert 0.0 <= frechet_distance(x, x) < 1e-6


def test_small_sets_stay_accurate_in_many_dimensions():
    """Row factor and covariance factor agree for the large side of a rank-deficient pair."""
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=(3, 64)), rng.normal(size=(200, 64)) @ rng.normal(size=(64, 64))
    rows = (fake - fake.mean(0)) / np.sqrt(199)
    cross = (real - real.mean(0)) / np.sqrt(2) @ rows.T
    expected = np.sum((real.mean(0) - fake.mean(0)) ** 2) + np.trace(np.cov(real.T)) + np.trace(np.cov(fake.T))
    expected -= 2 * scipy.linalg.svdvals(cross).sum()
    np.testing.assert_allclose(frechet_distance(real, fake), expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_before_any_factorisation(bad, monkeypatch):
    x = np.ones((600, 512))
    x[3, 4] = bad
    monkeypatch.setattr(np.linalg, "qr", lambda *a, **k: pytest.fail("factorised a matrix with NaN"))
    with pytest.raises(UserError, match="1 of 600 rows"):
        frechet_distance(np.ones((5, 512)), x)


def test_sets_that_have_no_distance_are_refused():
    with pytest.raises(UserError, match="empty"):
        frechet_distance(np.zeros((0, 4)), np.ones((3, 4)))
    with pytest.raises(UserError, match="4 and 5 dimensions"):
        frechet_distance(np.ones((3, 4)), np.ones((3, 5)))
    with pytest.raises(ValueError, match="shape"):
        feature_statistics(np.ones(3))
