"""Speed of the input pipeline from prepared images to the devices, and of a PyTorch DataLoader over the same images.

    python tests/benchmarks/input.py --resolution=64 --images=20000

Draws petals, writes them as prepared shards and as PNG files for PyTorch (of the final size, so that resizing is not
measured), and reads both alternately for some seconds each, shuffled, in batches of 128, ours onto the device. Prints one
JSON line; README.md explains the fields. Without PyTorch only ours is measured.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from noisytwins_jax.data.pipeline import training_batches
from noisytwins_jax.data.prepare.command import parse_arguments, prepare
from noisytwins_jax.data.prepared import PreparedSource, prepared_splits
from noisytwins_jax.data.source import read_images
from noisytwins_jax.utils.sharding import Layout

_BATCH = 128
_CLASSES = 20


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="alternating measurements of each; the median counts")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="PyTorch's processes, and our threads")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = _prepared(Path(folder) / "data", args.resolution, args.images)
        readers: dict[str, Callable] = {"ours": lambda: _ours(source, args.workers)}
        with contextlib.suppress(ImportError):
            import torch

            _write_pngs(source, Path(folder) / "png")
            readers["pytorch"] = lambda: _pytorch(torch, Path(folder) / "png", args.workers)
        rates = {name: [] for name in readers}
        for _ in range(args.rounds):
            for name, open_batches in readers.items():
                with open_batches() as batches:
                    rates[name].append(_images_per_second(batches, args.seconds))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    result = {"resolution": args.resolution, "images": len(source), "workers": args.workers}
    result |= {f"{name}_images_per_second": round(value) for name, value in medians.items()}
    if "pytorch" in medians:
        result["ratio"] = round(medians["ours"] / medians["pytorch"], 2)
    print(json.dumps(result | {"rounds": {name: [round(v) for v in values] for name, values in rates.items()}}))


def _prepared(directory: Path, resolution: int, images: int) -> PreparedSource:
    options = ["petals", f"--data_dir={directory}", f"--resolution={resolution}", f"--num_classes={_CLASSES}"]
    options += [f"--largest={images // _CLASSES}", "--imbalance_factor=1", "--reference_per_class=1"]
    prepare(parse_arguments([*options, "--classifier_per_class=1"]))
    return prepared_splits("petals", resolution=resolution, directory=str(directory)).train


def _write_pngs(source: PreparedSource, folder: Path) -> None:
    for label in range(source.num_classes):
        (folder / f"{label:02d}").mkdir(parents=True)
    for start in range(0, len(source), 1000):
        batch = read_images(source, np.arange(start, min(start + 1000, len(source))))
        for i, (image, label) in enumerate(zip(batch["image"], batch["label"], strict=True), start):
            Image.fromarray(image).save(folder / f"{label:02d}" / f"{i}.png", compress_level=1)


@contextlib.contextmanager
def _ours(source: PreparedSource, threads: int) -> Iterator[Iterator]:
    layout = Layout()
    batches = training_batches(source, batch_size=_BATCH, seed=0, mirror=True, num_threads=threads)

    def on_device() -> Iterator[int]:
        for batch in batches:
            jax.block_until_ready(layout.put_batch(batch))
            yield len(batch["label"])

    with batches:
        yield on_device()


@contextlib.contextmanager
def _pytorch(torch, folder: Path, workers: int) -> Iterator[Iterator]:
    """Read batches as with torchvision's ImageFolder (not a dependency): decode, flip, convert; one folder per class."""
    files = sorted((path, int(path.parent.name)) for path in folder.glob("*/*.png"))

    class ImageFolder(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int):
            path, label = files[index]
            with path.open("rb") as file:
                image = np.array(Image.open(file).convert("RGB"))
            if torch.rand(1) < 0.5:
                image = image[:, ::-1].copy()
            return torch.from_numpy(image).permute(2, 0, 1), label

    loader = torch.utils.data.DataLoader(
        ImageFolder(), batch_size=_BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )

    def batches() -> Iterator[int]:
        while True:
            for images, _ in loader:
                yield len(images)

    yield batches()


def _images_per_second(batches: Iterator[int], seconds: float) -> float:
    for _ in range(5):  # workers start, files are opened
        next(batches)
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        count += next(batches)
    return count / passed


if __name__ == "__main__":
    main()
