import warnings
from pathlib import Path

import numpy as np
import pytest

from noisytwins_jax.errors import UserError
from noisytwins_jax.metrics import neighbours
from noisytwins_jax.metrics.neighbours import coverage, density, neighbour_metrics, precision, recall

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics.npz")
CASES = ("basic", "equal", "clustered", "rankdef", "both_rankdef")


@pytest.fixture(params=["exact distances", "matrix product", "one row a block"])
def route(request, monkeypatch):
    if request.param == "matrix product":
        monkeypatch.setattr(neighbours, "_EXACT_WORK", 0)
    if request.param == "one row a block":
        monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [3, 5])
def test_matches_prdc(case, k, route):
    real, fake = GOLDEN[f"in/{case}/real"], GOLDEN[f"in/{case}/fake"]
    expected = GOLDEN[f"out/{case}/prdc_k{k}_f64"]
    np.testing.assert_allclose(neighbour_metrics(real=real, fake=fake, k=k), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [3, 5])
def test_inclusive_matches_torch_fidelity(case, k):
    real, fake = GOLDEN[f"in/{case}/real"], GOLDEN[f"in/{case}/fake"]
    expected = GOLDEN[f"out/{case}/prc_torchfidelity_k{k}_f64"][:2]  # stored from float32
    values = neighbour_metrics(real=real, fake=fake, k=k, inclusive=True)
    np.testing.assert_allclose([values.precision, values.recall], expected, atol=1e-7)


def test_matches_the_definitions_spelt_out():
    rng = np.random.default_rng(0)
    real, fake, k = rng.normal(size=(23, 3)), rng.normal(size=(17, 3)) + 0.5, 4

    def radius(x, i):
        return sorted(np.linalg.norm(x[j] - x[i]) for j in range(len(x)) if j != i)[k - 1]

    in_real = [[np.linalg.norm(f - real[i]) < radius(real, i) for i in range(len(real))] for f in fake]
    in_fake = [[np.linalg.norm(r - fake[j]) < radius(fake, j) for j in range(len(fake))] for r in real]
    expected = (
        np.mean([any(row) for row in in_real]),
        np.mean([any(row) for row in in_fake]),
        np.sum(in_real) / (k * len(fake)),
        np.mean(np.any(in_real, axis=0)),
    )
    np.testing.assert_allclose(neighbour_metrics(real=real, fake=fake, k=k), expected, rtol=1e-12)
    functions = (precision, recall, density, coverage)
    np.testing.assert_allclose([f(real=real, fake=fake, k=k) for f in functions], expected, rtol=1e-12)


def test_which_side_is_which():
    """A collapsed generator inside the real data: all fakes are realistic, almost no real image is reached."""
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) * 1e-3
    values = neighbour_metrics(real=real, fake=fake, k=5)
    assert values.precision == 1.0 and values.recall < 0.05 and values.coverage < 0.3


def test_strict_and_inclusive_differ_on_the_boundary():
    real = np.array([[0.0], [1.0], [2.0]])
    fake = np.array([[3.0], [5.0]])  # k = 1: the ball of 2.0 ends exactly at 3.0
    assert precision(real=real, fake=fake, k=1) == 0.0
    assert precision(real=real, fake=fake, k=1, inclusive=True) == 0.5


def test_points_that_coincide_warn_and_count_for_nothing():
    real, fake = np.random.default_rng(2).normal(size=(30, 4)), np.zeros((10, 4))
    fake[:] = real[0]
    with pytest.warns(UserWarning, match="0 real and 10 generated images coincide"):
        assert recall(real=real, fake=fake, k=3) == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recall(real=real, fake=fake, k=3, inclusive=True) == pytest.approx(1 / 30)


def test_self_is_excluded_by_index():
    """With one exact duplicate the first neighbour is at distance 0, although self is left out."""
    x = np.array([[0.0], [0.0], [5.0]])
    np.testing.assert_array_equal(neighbours._squared_radii(x, 1), [0.0, 0.0, 25.0])


def test_a_distant_common_offset_does_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=(60, 8)), rng.normal(size=(50, 8))
    expected = neighbour_metrics(real=real, fake=fake)
    monkeypatch.setattr(neighbours, "_EXACT_WORK", 0)
    assert neighbour_metrics(real=real + 1e4, fake=fake + 1e4) == expected


def test_unsuitable_sets_are_refused():
    x = np.random.default_rng(4).normal(size=(6, 2))
    neighbour_metrics(real=x, fake=x, k=5)  # k + 1 is enough
    for arguments, message in (
        ({"real": x[:5], "fake": x}, "at least 6 real images, got 5"),
        ({"real": x, "fake": x[:5]}, "at least 6 generated images, got 5"),
        ({"real": x, "fake": x, "k": 0}, "k >= 1"),
        ({"real": x, "fake": x[:, :1]}, "2 and 1 dimensions"),
        ({"real": x, "fake": x * np.nan}, "NaN"),
    ):
        with pytest.raises(UserError, match=message):
            neighbour_metrics(**arguments)
    with pytest.raises(TypeError):
        neighbour_metrics(x, x)  # keywords only: swapped sides would swap precision and recall
