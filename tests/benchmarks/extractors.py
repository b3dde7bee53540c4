"""Speed of the extractors and of the same networks in PyTorch, with the same weights on the same cores or GPU.

    python tests/benchmarks/extractors.py --network=inception

Weights are random; images are of the network's size, so that resizing is not measured. Both run alternately. Prints one
JSON line; README.md explains the fields. Without PyTorch only ours is measured.
"""

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from noisytwins_jax.metrics.extractors import clip, inception
from noisytwins_jax.metrics.features import Embedder
from noisytwins_jax.utils.sharding import use_all_cores

_NETWORKS = ("inception", "clip-vit-b32", "clip-vit-l14")


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=_NETWORKS, default="inception")
    parser.add_argument("--batch", type=int, default=0, help="images per device (default: 8 on CPUs, 64 elsewhere)")
    parser.add_argument("--rounds", type=int, default=5, help="alternating measurements of each; the median counts")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    args = parser.parse_args()
    use_all_cores()  # as --mode=evaluate does
    print(json.dumps(measure(args.network, args.batch, args.rounds, args.seconds)))


def measure(network: str, per_device_batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure an extractor, and the same in PyTorch where it is installed; see the options of `main`."""
    per_device_batch = per_device_batch or (8 if jax.default_backend() == "cpu" else 64)
    batch = per_device_batch * jax.local_device_count()
    state, size, run = _ours(network)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    programs: dict[str, Callable[[], np.ndarray]] = {"ours": run(images, per_device_batch)}
    with contextlib.suppress(ImportError):
        programs["pytorch"] = _torch(network, state, images)
    results = {name: program() for name, program in programs.items()}  # warm
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            rates[name].append(_images_per_second(program, batch, seconds))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    report = {"network": network, "device": jax.devices()[0].device_kind, "batch": batch, "cores": os.cpu_count()}
    report |= {f"{name}_images_per_second": round(value, 2) for name, value in medians.items()}
    if "pytorch" in medians:
        report["ratio"] = round(medians["ours"] / medians["pytorch"], 2)
        scale = np.abs(results["pytorch"]).max()
        report["difference"] = float(np.abs(results["ours"] - results["pytorch"]).max() / scale)
    return report | {"rounds": {name: [round(v, 2) for v in values] for name, values in rates.items()}}


def _ours(network: str) -> tuple[dict[str, np.ndarray], int, Callable]:
    """Return random tensors by the public names, the size of images, and a function that builds the program of images."""
    if network == "inception":
        shapes = {key: shape for key, shape in inception.state_dict_shapes().items() if not inception.is_optional(key)}
        state = _sample_weights(shapes)
        extractor = inception.inception_extractor(inception.from_state_dict(state), "0" * 64, "tf1")
        size = inception.SIZE
    else:
        config = clip.CONFIGS[network]
        state = _sample_weights(clip.state_dict_shapes(config, "openai"))
        variables, config = clip.from_state_dict(state)
        extractor, size = clip.clip_extractor(variables, config, "0" * 64, "openai"), config.image_size

    def run(images: np.ndarray, per_device_batch: int) -> Callable[[], np.ndarray]:
        embedder = Embedder({"": extractor}, per_device_batch)
        return lambda: embedder.embed_images(images)[""].features

    return state, size, run


def _sample_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Sample weights that preserve the signal's scale, and batch statistics that are not the identity."""
    rng = np.random.default_rng(1)
    state = {}
    for key, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:
            values *= np.sqrt(2 / np.prod(shape[1:]))
        elif key.endswith("running_var"):
            values = np.abs(values) + 0.5
        else:
            values = 0.1 * values + (1.0 if key.endswith("weight") else 0.0)
        state[key] = np.float32(values)
    return state


def _torch(network: str, state: dict[str, np.ndarray], images: np.ndarray) -> Callable[[], np.ndarray]:
    import torch
    from torch_networks import clip_tower
    from torch_networks import inception as torch_inception

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # ours is in full float32 too
    tensors = {key: torch.tensor(value, device=device) for key, value in state.items()}
    x = torch.tensor(images.transpose(0, 3, 1, 2).astype(np.float32), device=device)
    if network == "inception":
        x = (x - 128) / 128
        heads = None
    else:
        mean, deviation = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (clip._MEAN, clip._DEVIATION))
        x, heads = (x / 255 - mean) / deviation, clip.CONFIGS[network].heads

    def program() -> np.ndarray:
        with torch.inference_mode():
            features = torch_inception(tensors, x)[0] if heads is None else clip_tower(tensors, x, heads)
        return features.cpu().numpy()

    return program


def _images_per_second(program: Callable[[], np.ndarray], batch: int, seconds: float) -> float:
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds or not count:
        program()
        count += batch
    return count / passed


if __name__ == "__main__":
    main()
