import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from paths import GOLDEN
from scipy.spatial.distance import cdist

from noisytwins_jax.metrics import nearest as nearest_module
from noisytwins_jax.metrics import neighbours, pairwise_distances
from noisytwins_jax.metrics.nearest import nearest, squared_radii
from noisytwins_jax.metrics.neighbours import neighbour_metrics
from noisytwins_jax.utils.errors import UserError

GOLDEN = np.load(GOLDEN / "metrics.npz")
CASES = ("basic", "equal", "clustered", "rankdef", "both_rankdef")


ROUTES = {
    "host": {},
    "host, one row a block": {"_BLOCK_PAIRS": 1},
    "devices": {"_DEVICE_WORK": 0},
    "devices, small blocks": {"_DEVICE_WORK": 0, "_BLOCK_PAIRS": 100_000, "_KEY_BLOCK": 64},
    "devices, no spare candidates": {"_DEVICE_WORK": 0, "_SPARE": 0},
}


def use_route(route, monkeypatch):
    for name, value in ROUTES[route].items():
        monkeypatch.setattr(nearest_module if name == "_SPARE" else pairwise_distances, name, value)


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    use_route(request.param, monkeypatch)


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


def test_matches_the_definitions():
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


def test_which_side_is_which():
    """A collapsed generator inside the real data: all fakes are realistic, almost no real image is reached."""
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) * 1e-3
    values = neighbour_metrics(real=real, fake=fake, k=5)
    assert values.precision == 1.0 and values.recall < 0.05 and values.coverage < 0.3


def test_strict_and_inclusive_differ_on_the_boundary():
    real = np.array([[0.0], [1.0], [2.0]])
    fake = np.array([[3.0], [5.0]])  # k = 1: the ball of 2.0 ends exactly at 3.0
    assert neighbour_metrics(real=real, fake=fake, k=1).precision == 0.0
    assert neighbour_metrics(real=real, fake=fake, k=1, inclusive=True).precision == 0.5


def test_balls_of_coinciding_points_warn_and_are_empty():
    real, fake = np.random.default_rng(2).normal(size=(30, 4)), np.zeros((10, 4))
    fake[:] = real[0]
    with pytest.warns(UserWarning, match="0 real and 10 generated images coincide"):
        assert neighbour_metrics(real=real, fake=fake, k=3).recall == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert neighbour_metrics(real=real, fake=fake, k=3, inclusive=True).recall == pytest.approx(1 / 30)


def test_self_is_excluded_by_index():
    """With one exact duplicate the first neighbour is at distance 0, although self is left out."""
    x = np.array([[0.0], [0.0], [5.0]])
    np.testing.assert_array_equal(squared_radii(x, 1), [0.0, 0.0, 25.0])


def test_a_distant_common_offset_does_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=(60, 8)), rng.normal(size=(50, 8))
    expected = neighbour_metrics(real=real, fake=fake)
    use_route("devices", monkeypatch)
    assert neighbour_metrics(real=real + 1e4, fake=fake + 1e4) == expected


def sets(kind):
    """Return real and fake sets whose distances are hard to compare in float32."""
    rng = np.random.default_rng(5)
    real, fake = rng.normal(size=(700, 64)), 0.9 * rng.normal(size=(600, 64))
    if kind == "high-dimensional":
        real, fake = (rng.normal(size=(n, 2048)).astype(np.float32) for n in (300, 250))
    if kind == "clustered":
        centres = rng.normal(size=(20, 64))
        real, fake = (np.repeat(centres, n, axis=0) + 1e-3 * rng.normal(size=(20 * n, 64)) for n in (35, 30))
    if kind == "duplicates":
        real[300:], fake[:200] = real[rng.integers(0, 300, 400)], real[rng.integers(0, 300, 200)]
    if kind == "collapsed":
        fake[:] = real[0]
    if kind == "nearly collapsed":
        fake = real[0] * (1 + 1e-9 * rng.normal(size=(600, 64)))
    if kind == "all one point":
        real[:], fake[:] = 3.0, 3.0
    if kind == "lattice":
        real, fake = (rng.integers(0, 3, (n, 64)).astype(np.float32) for n in (700, 600))
    if kind == "outlier":
        real[7] *= 1e6
    if kind == "offset":
        real, fake = (x + 1e7 for x in (real, fake))
    if kind == "tiny":
        real, fake = real * 1e-25, fake * 1e-25
    return real, fake


KINDS = ("gaussian", "high-dimensional", "clustered", "duplicates", "collapsed", "nearly collapsed", "all one point")
KINDS += ("lattice", "outlier", "offset", "tiny")


@pytest.mark.filterwarnings("ignore:.*coincide")
@pytest.mark.parametrize(
    "kind, route",
    [(kind, "devices") for kind in KINDS]
    + [(kind, "devices, no spare candidates") for kind in ("gaussian", "clustered", "nearly collapsed", "lattice")]
    + [("duplicates", "devices, small blocks")],
)
def test_devices_agree_with_float64_exactly(kind, route, monkeypatch):
    real, fake = sets(kind)
    expected = [neighbour_metrics(real=real, fake=fake, k=4, inclusive=inclusive) for inclusive in (False, True)]
    expected_pairs = [
        nearest(queries=fake, keys=real, k=6),
        nearest(queries=fake, keys=fake, k=4, exclude_self=True),
    ]
    use_route(route, monkeypatch)
    for module in (nearest_module, neighbours):
        monkeypatch.setattr(module, "distance_blocks", lambda *a: pytest.fail("took the host's route"))
    assert [
        neighbour_metrics(real=real, fake=fake, k=4, inclusive=inclusive) for inclusive in (False, True)
    ] == expected
    actual_pairs = [
        nearest(queries=fake, keys=real, k=6),
        nearest(queries=fake, keys=fake, k=4, exclude_self=True),
    ]
    for actual, reference in zip(actual_pairs, expected_pairs, strict=True):
        np.testing.assert_array_equal(actual[0], reference[0])
        np.testing.assert_array_equal(actual[1], reference[1])


def test_the_host_searches_rows_that_a_device_cannot_decide(monkeypatch):
    """Of 700 points of 20 tight clusters every one has more possible neighbours than a device may select."""
    real, _ = sets("clustered")
    searched = []
    search = pairwise_distances.Frame.distances
    monkeypatch.setattr(
        pairwise_distances.Frame, "distances", lambda self, x, *a: searched.append(len(x)) or search(self, x, *a)
    )
    use_route("devices", monkeypatch)
    nearest(queries=real, keys=real, k=5, exclude_self=True)
    assert sum(searched) == 0  # a cluster fits the spare candidates
    use_route("devices, no spare candidates", monkeypatch)
    nearest(queries=real, keys=real, k=5, exclude_self=True)
    assert sum(searched) == 700


def test_the_bound_on_float32_holds():
    """For every pair, from points far from the mean to points that coincide."""
    real, fake = (x.astype(np.float32) for x in sets("high-dimensional"))
    fake[:100] = real[:100] + 1e-4
    fake[100] *= 1e3
    keys = pairwise_distances.DeviceKeys(real, np.arange(300), fake)
    ((_, (rows, norms)),) = keys.row_blocks(fake)
    low, width = (np.asarray(a, np.float64) for a in pairwise_distances.distance_bounds(keys.arrays, rows, norms))
    low, width = low[: len(fake)], width[: len(fake)]  # without the padding
    exact = cdist(fake, real, "sqeuclidean") * keys.frame.scale**2
    assert (low <= exact).all() and (exact <= low + width).all()
    typical = np.median(exact)
    assert np.median(width) < 1e-3 * typical  # and it is narrow enough to decide almost all


def test_nearest_is_sorted_and_prefers_the_lowest_index(route):
    keys = np.array([[2.0], [0.0], [2.0], [0.0], [5.0], [0.0]])
    distances, indices = nearest(queries=np.array([[0.0], [4.0]]), keys=keys, k=4)
    np.testing.assert_array_equal(indices, [[1, 3, 5, 0], [4, 0, 2, 1]])
    np.testing.assert_array_equal(distances, [[0, 0, 0, 2], [1, 2, 2, 4]])
    assert distances.dtype == np.float64 and indices.dtype == np.int64
    distances, indices = nearest(queries=keys, keys=keys, k=2, exclude_self=True)
    np.testing.assert_array_equal(indices, [[2, 1], [3, 5], [0, 1], [1, 5], [0, 2], [1, 3]])
    np.testing.assert_array_equal(distances, [[0, 2], [0, 0], [0, 2], [0, 0], [3, 3], [0, 0]])


def test_nearest_refuses_unsuitable_arguments():
    x = np.random.default_rng(4).normal(size=(6, 2))
    for arguments, message in (
        ({"k": 0}, "k = 0 nearest images cannot be taken of 6: choose k from 1 to 6"),
        ({"k": 7}, "k from 1 to 6"),
        ({"k": 6, "exclude_self": True}, "k from 1 to 5"),
        ({"k": 1, "keys": x[:, :1]}, "2 and 1 dimensions"),
        ({"k": 1, "keys": x * np.inf}, "NaN or infinity"),
    ):
        with pytest.raises(UserError, match=message):
            nearest(**({"queries": x, "keys": x} | arguments))
    with pytest.raises(ValueError, match="one set"):
        nearest(queries=x[:3], keys=x, k=1, exclude_self=True)


@pytest.mark.slow
def test_several_devices_agree_as_well():
    """Run the tests of this file in a process with three devices, among which no block divides evenly."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    command = [sys.executable, "-m", "pytest", __file__, "-m", "not slow", "-k", "exactly or bound or lowest"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("route", ["host", "devices"])
def test_matches_the_prdc_package(route, monkeypatch):
    prdc = pytest.importorskip("prdc")
    rng = np.random.default_rng(6)
    real, fake = rng.normal(size=(1200, 128)), 0.9 * rng.normal(size=(1000, 128))
    expected = prdc.compute_prdc(real_features=real, fake_features=fake, nearest_k=5)
    use_route(route, monkeypatch)
    values = neighbour_metrics(real=real, fake=fake, k=5)._asdict()
    assert values == pytest.approx(expected, abs=1e-12)


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
