import numpy as np
import pytest
from golden_numbers import Golden

from noisytwins_jax.metrics import kernel_distances
from noisytwins_jax.metrics.kernel_distances import cmmd, kid
from noisytwins_jax.utils.errors import UserError

GOLDEN = Golden("metrics")


def sets(case):
    return {"real": GOLDEN[f"in/{case}/real"], "fake": GOLDEN[f"in/{case}/fake"]}


@pytest.mark.parametrize("case", ["basic", "equal", "clustered"])
@pytest.mark.parametrize("size, subsets", [(50, 10), (100, 4)])
def test_kid_matches_torch_fidelity(case, size, subsets):
    values = kid(**sets(case), subsets=subsets, subset_size=size)
    expected = GOLDEN[f"out/{case}/kid_size{size}_subsets{subsets}_f64"]
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("case", ["basic", "equal", "clustered", "rankdef", "both_rankdef"])
def test_kid_of_whole_sets_is_the_unbiased_estimate(case):
    """Subsets as large as the sets only permute them, whatever the seed."""
    whole = sets(case)
    count = min(map(len, whole.values()))
    expected = GOLDEN[f"out/{case}/mmd2_first_min_f64"]
    first = {name: x[:count] for name, x in whole.items()}
    mean, std = kid(**first, subsets=3, subset_size=1000, seed=7)
    np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e-14)
    assert std < 1e-12 * max(1.0, abs(mean))


def test_kid_matches_the_definition():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)) + 1

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    pairs = [(i, j) for i in range(5) for j in range(5)]
    expected = sum(kernel(real[i], real[j]) + kernel(fake[i], fake[j]) for i, j in pairs if i != j) / 20
    expected -= 2 * sum(kernel(real[i], fake[j]) for i, j in pairs) / 25
    np.testing.assert_allclose(kid(real=real, fake=fake, subsets=1)[0], expected, rtol=1e-12)


def test_kid_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(1)
    real, near, far = (rng.normal(size=(2000, 8)) + shift for shift in (0.0, 0.0, 0.5))
    values = [kid(real=real, fake=fake, subsets=50, subset_size=200)[0] for fake in (near, far)]
    assert abs(values[0]) < 0.01 < 0.1 < values[1]


@pytest.mark.parametrize("block", [7, 2048])
def test_cmmd_matches_the_definition(block, monkeypatch):
    monkeypatch.setattr(kernel_distances, "_BLOCK_ROWS", block)
    rng = np.random.default_rng(2)
    real, fake = rng.normal(size=(23, 6)).astype(np.float32), 3 * rng.normal(size=(17, 6)) + 0.2

    def mean_kernel(x, y):
        x, y = ([row / np.linalg.norm(row) for row in np.asarray(a, np.float64)] for a in (x, y))
        return np.mean([[np.exp(-np.sum((a - b) ** 2) / (2 * 0.7**2)) for b in y] for a in x])

    expected = 50 * (mean_kernel(real, real) + mean_kernel(fake, fake) - 2 * mean_kernel(real, fake))
    np.testing.assert_allclose(cmmd(real=real, fake=fake, sigma=0.7, scale=50), expected, rtol=1e-11)


def test_cmmd_sees_directions_only_and_is_zero_for_equal_sets():
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=(300, 16)), rng.normal(size=(200, 16)) + 0.5
    scaled = fake * rng.uniform(0.1, 10, size=(200, 1))
    np.testing.assert_allclose(cmmd(real=real, fake=fake), cmmd(real=real, fake=scaled), rtol=1e-9)
    assert abs(cmmd(real=real, fake=3 * real[::-1])) < 1e-9
    assert cmmd(real=real, fake=fake) > 0.1


def test_sets_without_a_distance_are_refused():
    x = np.random.default_rng(4).normal(size=(6, 3))
    for function, arguments, message in (
        (kid, {"fake": x[:1]}, "at least 2 generated images, got 1"),
        (kid, {"real": x[:, :2]}, "2 and 3 dimensions"),
        (kid, {"real": x * np.nan}, "real features hold NaN"),
        (kid, {"subsets": 0}, "0 subsets of 1000"),
        (kid, {"subset_size": 1}, "subsets of 1 images"),
        (cmmd, {"fake": x[:0]}, "at least 1 generated images, got 0"),
        (cmmd, {"fake": x * [[0], [1], [1], [1], [1], [1]]}, "embedding that is zero"),
        (cmmd, {"sigma": 0.0}, "sigma = 0.0"),
    ):
        with pytest.raises(UserError, match=message):
            function(**({"real": x, "fake": x} | arguments))
