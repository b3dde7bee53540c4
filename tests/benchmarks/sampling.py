"""Images per second of the iNat19 generators, here and in PyTorch with the same weights.

    pip install -e '.[torch]' && python tests/benchmarks/sampling.py [--resolutions=64,128] [--batches=1,64]

Both map latents and labels to images in [-1, 1], float32, with stored noise, on all cores. They run alternately; the best of
`ROUNDS` rounds counts, as other work on the machine only slows them down. The largest difference between their images is
printed too.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch

from noisytwins_jax.config.flags import load_config
from noisytwins_jax.interop.converted_network import ConvertedNetwork
from noisytwins_jax.interop.pytorch import stylegan2
from noisytwins_jax.interop.stylegan2.state_dict import write_stylegan2
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.sharding import use_all_cores

CONFIG = Path(__file__).parents[2] / "configs" / "inat19.py"
CLASSES, ROUNDS, SECONDS = 1010, 5, 2.0
SHARED = ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max", "architecture")  # options of both


def images_per_second(program: Callable[[], object], batch: int) -> float:
    """Measure images per second of calls for at least `SECONDS`."""
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS or not calls:
        program()
        calls += 1
    return calls * batch / (time.perf_counter() - began)


def compare(resolution: int, batch: int) -> str:
    """Measure one generator and batch size; return a line of the table."""
    config = load_config([f"--config={CONFIG}:noisytwins,{resolution}", "--config.dtype=float32"])
    model = build_model(config, 3, CLASSES)
    variables = jax.device_get(jax.jit(lambda key: model.init(key)[0])(jax.random.key(0)))
    options = config.generator
    theirs = stylegan2.Generator(
        resolution,
        CLASSES,
        **{name: getattr(options, name) for name in SHARED},
    ).eval()
    tensors = write_stylegan2(ConvertedNetwork("generator", {}, CLASSES, 3, variables), "studiogan")
    theirs.load_state_dict({key: torch.from_numpy(np.array(x)) for key, x in tensors.items()})
    rng = np.random.default_rng(0)
    z = rng.standard_normal((batch, options.z_dim)).astype(np.float32)
    labels = rng.integers(0, CLASSES, batch)

    @jax.jit
    def ours(variables: dict, z: jax.Array, labels: jax.Array) -> jax.Array:
        return model.generator.apply(variables, z, labels, noise_mode="const")

    arguments = jax.device_put((variables, z, labels.astype(np.int32)))
    torch_arguments = torch.from_numpy(z), torch.from_numpy(labels)

    def in_torch() -> torch.Tensor:
        with torch.inference_mode():
            return theirs(*torch_arguments, noise_mode="const")

    programs = {"ours": lambda: ours(*arguments).block_until_ready(), "PyTorch": in_torch}
    difference = np.abs(np.asarray(programs["ours"]()) - in_torch().numpy().transpose(0, 2, 3, 1)).max()
    best = dict.fromkeys(programs, 0.0)
    for _ in range(ROUNDS):
        for name, program in programs.items():
            best[name] = max(best[name], images_per_second(program, batch))
    ratio = best["ours"] / best["PyTorch"]
    rates = f"{best['ours']:.1f} | {best['PyTorch']:.1f} | {ratio:.2f}"
    return f"| iNat19, {resolution} px | {batch} | {rates} | {difference:.0e} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", default="64,128")
    parser.add_argument("--batches", default="1,64")
    arguments = parser.parse_args()
    use_all_cores()
    print(
        "| generator | batch | ours, images/s | PyTorch, images/s | ratio | largest difference |\n|---|---|---|---|---|---|"
    )
    for resolution in map(int, arguments.resolutions.split(",")):
        for batch in map(int, arguments.batches.split(",")):
            print(compare(resolution, batch), flush=True)


if __name__ == "__main__":
    main()
