"""Time and memory of the metrics of given features: Fréchet distance, precision and recall, KID, CMMD.

    python tests/benchmarks/distances.py --metric=frechet --images=50000
    python tests/benchmarks/distances.py --metric=neighbours --images=10000

Features are random, float32. Prints one JSON line; README.md explains the fields.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable

import numpy as np

from noisytwins_jax.metrics.frechet import frechet_distance
from noisytwins_jax.metrics.kernel_distances import cmmd, kid
from noisytwins_jax.metrics.neighbours import neighbour_metrics

_METRICS: dict[str, Callable] = {
    "frechet": lambda real, fake: frechet_distance(real, fake),
    "neighbours": lambda real, fake: neighbour_metrics(real=real, fake=fake, k=5)._asdict(),
    "kid": lambda real, fake: kid(real=real, fake=fake),
    "cmmd": lambda real, fake: cmmd(real=real, fake=fake),
}


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metric", choices=_METRICS, default="frechet")
    parser.add_argument("--images", type=int, default=50_000, help="on each side")
    parser.add_argument("--dimensions", type=int, default=2048)
    args = parser.parse_args()
    real, fake = (_features(seed, args.images, args.dimensions) for seed in (0, 1))
    before = _peak_mb()
    began, cpu = time.perf_counter(), time.process_time()
    value = _METRICS[args.metric](real, fake)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    times = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}
    memory = {"features_mb": round((real.nbytes + fake.nbytes) / 1e6), "peak_before_mb": before, "peak_mb": _peak_mb()}
    print(json.dumps(vars(args) | times | memory | {"value": value}))


def _features(seed: int, n: int, d: int) -> np.ndarray:
    """Sample rectified and correlated features like Inception's, in blocks so that they do not set the peak memory."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).standard_normal((d, d), np.float32) / np.float32(d**0.5)
    features = np.empty((n, d), np.float32)
    for start in range(0, n, 1000):
        block = features[start : start + 1000]
        block[:] = np.maximum(rng.standard_normal(block.shape, np.float32) @ mixing, 0)
    return features


def _peak_mb() -> int:
    """Return the peak memory of this process, in millions of bytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


if __name__ == "__main__":
    main()
