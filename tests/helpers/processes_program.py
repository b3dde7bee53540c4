"""One of several processes of a run, to be started by `test_processes`: the same arguments but the last in each.

python tests/processes_program.py gradients OUT.npz ADDRESS N PROCESS
python tests/processes_program.py train WORKDIR FIELDS ADDRESS N PROCESS
python tests/processes_program.py evaluate|sample WORKDIR FIELDS ADDRESS N PROCESS
python tests/processes_program.py together ADDRESS N PROCESS

FIELDS are JSON text: the changes for `tiny_run.tiny_config`.
"""

import json
import sys

import jax
import numpy as np
import tiny_run
from waiting import TIMEOUT

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import broadcast_from_primary, distributed_map, local_copy
from noisytwins_jax.utils.sharding import Layout, join_processes


def gradients(out: str) -> None:
    """Gradients and metrics of the main updates on the mesh of all processes, in float64."""
    import devices_program

    layout = Layout()
    count, index = jax.process_count(), jax.process_index()
    batch = {name: np.split(x, count)[index] for name, x in devices_program.make_batch().items()}
    found = devices_program.run(["generator", "discriminator"], layout, batch)
    if index == 0:
        arrays = {name: tiny_run.arrays(result[:2]) for name, result in found.items()}
        np.savez(out, **{f"{name}{path}": x for name, tree in arrays.items() for path, x in tree.items()})


def train(workdir: str, fields: str) -> None:
    """A tiny run to its end, with its evaluation and report."""
    from noisytwins_jax.train import train

    train(tiny_run.tiny_config(**json.loads(fields)), workdir)


def evaluate(workdir: str, fields: str) -> None:
    """Evaluates the newest checkpoint again."""
    from noisytwins_jax.evaluation.evaluate import evaluate

    evaluate(tiny_run.tiny_config(**json.loads(fields)), workdir)


def sample(workdir: str, fields: str) -> None:
    """Draws a grid from the newest checkpoint."""
    from noisytwins_jax.generation.sample import sample

    print("Samples:", sample(tiny_run.tiny_config(**json.loads(fields)), workdir, per_class=3))


def together() -> None:
    """A mistake in one process is everybody's, and nobody waits; then what works between them."""
    index, count = jax.process_index(), jax.process_count()

    def compute(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        if index == 1:
            raise UserError("Nothing here.")
        return (rows,)

    def write() -> str:
        raise UserError("The disk is gone.")

    for call in (lambda: distributed_map(compute, 5), lambda: broadcast_from_primary(write)):
        try:
            call()
        except UserError as error:
            print(f"{index}: {error}")
    # Types that devices do not have, rows that do not divide among the processes, and fewer rows than processes.
    whole = distributed_map(lambda rows: (rows * 0.1, np.full((len(rows), 3), index)), 5)
    assert whole[0].dtype == np.float64 and np.array_equal(whole[0], np.arange(5) * 0.1)
    assert whole[1].dtype == np.int64 and whole[1].shape == (5, 3)
    assert np.array_equal(whole[1][:, 0], np.arange(5) // -(-5 // count))
    assert distributed_map(lambda rows: (rows,), 1)[0].tolist() == [0]
    assert broadcast_from_primary(lambda: {"from": index, "many": "x" * 1000}) == {"from": 0, "many": "x" * 1000}
    layout = Layout(fsdp=jax.device_count(), split_from=1)
    state = {
        "params": {"w": jax.ShapeDtypeStruct((jax.device_count(), 3), np.float32)},
        "step": jax.ShapeDtypeStruct((), int),
    }
    make = jax.jit(
        lambda: {"params": {"w": jax.numpy.arange(layout.num_devices * 3.0).reshape(-1, 3)}, "step": 7},
        out_shardings=layout.state_shardings(state),
    )
    spread = make()
    assert not spread["params"]["w"].is_fully_replicated
    copy = local_copy(spread)
    assert np.array_equal(copy["params"]["w"].ravel(), np.arange(layout.num_devices * 3)) and copy["step"] == 7
    print(f"{index}: well")


def main(what: str, *arguments: str) -> None:
    """Joins the others and does it."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    *arguments, address, count, process = arguments
    try:
        if int(count) > 1:
            join_processes(address, int(count), int(process), timeout=TIMEOUT)
        globals()[what](*arguments)
    except UserError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
