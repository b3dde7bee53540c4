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

from noisytwins_jax.config import RunConfig
from noisytwins_jax.config.flags import load_config
from noisytwins_jax.interop.converted_network import ConvertedNetwork
from noisytwins_jax.interop.stylegan2.state_dict import write_stylegan2
from noisytwins_jax.models.model import Model
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.sharding import use_all_cores

CONFIG = Path(__file__).parents[2] / "configs" / "inat19.py"
CLASSES, ROUNDS, SECONDS = 1010, 5, 2.0
SHARED = ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max", "architecture")  # options of both


def images_per_second(program: Callable[[], object], batch: int, seconds: float = SECONDS) -> float:
    """Measure images per second of calls for at least `seconds`."""
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds or not calls:
        program()
        calls += 1
    return calls * batch / (time.perf_counter() - began)


def build_generator(resolution: int, dtype: str = "float32") -> tuple[RunConfig, Model, dict]:
    """Return the configuration, the networks and random variables of the generator."""
    config = load_config([f"--config={CONFIG}:noisytwins,{resolution}", f"--config.dtype={dtype}"])
    model = build_model(config, 3, CLASSES)
    return config, model, jax.device_get(jax.jit(lambda key: model.init(key)[0])(jax.random.key(0)))


def sample_inputs(config: RunConfig, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample latents and labels."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((batch, config.generator.z_dim)).astype(np.float32)
    return z, rng.integers(0, CLASSES, batch).astype(np.int32)


def our_program(model: Model, variables: dict, z: np.ndarray, labels: np.ndarray) -> Callable[[], jax.Array]:
    """Return a function that generates images of these latents and labels, and waits for them."""

    @jax.jit
    def generate(variables: dict, z: jax.Array, labels: jax.Array) -> jax.Array:
        return model.generator.apply(variables, z, labels, noise_mode="const")

    arguments = jax.device_put((variables, z, labels))
    return lambda: generate(*arguments).block_until_ready()


def torch_program(config: RunConfig, variables: dict, z: np.ndarray, labels: np.ndarray) -> Callable[[], np.ndarray]:
    """Return the same in PyTorch, on the CPU."""
    import torch

    from noisytwins_jax.interop.pytorch import stylegan2

    options = {name: getattr(config.generator, name) for name in SHARED}
    theirs = stylegan2.Generator(config.data.resolution, CLASSES, **options).eval()
    tensors = write_stylegan2(ConvertedNetwork("generator", {}, CLASSES, 3, variables), "studiogan")
    theirs.load_state_dict({key: torch.from_numpy(np.array(x)) for key, x in tensors.items()})
    arguments = torch.from_numpy(z), torch.from_numpy(labels)

    def generate() -> np.ndarray:
        with torch.inference_mode():
            return theirs(*arguments, noise_mode="const").numpy()

    return generate


def compare(resolution: int, batch: int) -> str:
    """Measure one generator and batch size; return a line of the table."""
    config, model, variables = build_generator(resolution)
    inputs = sample_inputs(config, batch)
    programs = {"ours": our_program(model, variables, *inputs), "PyTorch": torch_program(config, variables, *inputs)}
    ours, theirs = (program() for program in programs.values())
    difference = np.abs(np.asarray(ours) - theirs.transpose(0, 2, 3, 1)).max()
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
