"""What preparing a folder of JPEGs costs: images/s, cores in use, memory of all processes together; and resuming after kill -9.

    python tests/benchmarks/preparing.py --images=50000 --resolution=64

Draws petals as JPEG files of 160×120 pixels, prepares them, kills the command with SIGKILL when a third of the shards are
complete, and starts it again. Prints one JSON line; README.md explains the fields.
"""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from noisytwins_jax.data.petals import draw

_CLASSES = 20
_SIZE = (160, 120)


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, data = Path(folder) / "pictures", Path(folder) / "data"
        with ProcessPoolExecutor(args.jobs) as pool:
            list(pool.map(_write_jpegs, *zip(*_parts(source, args.images), strict=True)))
        command = [sys.executable, "-m", "noisytwins_jax.data.prepare", "image_folder", f"--source={source}"]
        command += [f"--data_dir={data}", f"--resolution={args.resolution}", f"--jobs={args.jobs}"]
        first = _watch(command, lambda: len(list(data.rglob("*.array_record-*.json"))), until=1 / 3)
        second = _watch(command)
        info = json.loads(next(data.rglob("preparation.json")).read_text())
    images = info["splits"]["train"]["images"]
    resumed = next(line for line in second["output"].splitlines() if line.startswith("Resuming"))
    result = {"images": images, "resolution": args.resolution, "jobs": args.jobs, "killed_after_s": first["seconds"]}
    result |= {"resumed": resumed, "then_s": second["seconds"]}
    result |= {"images_per_second": round(images / (first["seconds"] + second["seconds"]))}
    result |= {"cores": second["cores"], "peak_mb": max(first["peak_mb"], second["peak_mb"])}
    print(json.dumps(result))


def _parts(source: Path, images: int) -> list[tuple[Path, int, int]]:
    each = -(-images // _CLASSES)
    return [(source / f"{label:02d}", label, min(each, images - label * each)) for label in range(_CLASSES)]


def _write_jpegs(folder: Path, label: int, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        if i % 50 == 0:  # drawing is expensive: each picture fifty times, a little darker every time
            picture = Image.fromarray(draw(label, i, 128)[0]).resize(_SIZE)
            pixels = np.asarray(picture, np.float32)
        file = io.BytesIO()
        Image.fromarray((pixels * (1 - (i % 50) / 200)).astype(np.uint8)).save(file, "JPEG", quality=90)
        (folder / f"{i}.jpg").write_bytes(file.getvalue())


def _watch(command: list[str], shards_done=None, until: float = 1.0) -> dict:
    """Run a command, kill its processes when a share of the shards is complete, and measure all of them together."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    peak, cpu = 0, {}
    total = None
    while process.poll() is None:
        memory = 0
        for one in _tree(process.pid):
            try:
                memory += one.memory_info().rss
                times = one.cpu_times()
                cpu[one.pid] = times.user + times.system
            except psutil.Error:
                continue
        peak = max(peak, memory)
        if shards_done is not None:
            total = total or _planned(command)
            if total and shards_done() >= until * total:
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    output = process.communicate()[0]
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 1),
        "cores": round(sum(cpu.values()) / seconds, 2),
        "peak_mb": round(peak / 1e6),
        "output": output,
    }


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _planned(command: list[str]) -> int | None:
    """Return how many shards there will be, from the name of the first one."""
    data = next(word.partition("=")[2] for word in command if word.startswith("--data_dir="))
    name = next((path.name for path in Path(data).rglob("*.array_record-*-of-*")), None)
    return None if name is None else int(name.partition("-of-")[2].partition(".")[0])


if __name__ == "__main__":
    main()
