"""One of two processes of a run: python two_processes_program.py PORT PROCESS WORKDIR. Prints what the tests look at."""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from noisytwins_jax.training import checkpoint
from noisytwins_jax.training.fault_tolerance.consistency import check_consistency, code_fingerprint
from noisytwins_jax.training.fault_tolerance.nan_guard import find_nonfinite_tensors
from noisytwins_jax.training.fault_tolerance.signals import StopSignal
from noisytwins_jax.training.fault_tolerance.watchdog import Watchdog
from noisytwins_jax.training.fault_tolerance.workdir_lock import WorkdirLock
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import gather_strings, raise_on_all_processes

SEEN = {}


def message_of(action):
    try:
        action()
    except UserError as error:
        return str(error)
    return None


def agreement(process):
    SEEN["strings"] = gather_strings("ä" * (1 + 40 * process))
    facts = {"code": code_fingerprint(), "config.seed": "3", "data": "abc"}
    SEEN["same"] = message_of(lambda: check_consistency(facts))
    SEEN["seed"] = message_of(lambda: check_consistency(facts | {"config.seed": str(process), "data": str(process)}))
    SEEN["absent"] = message_of(lambda: check_consistency(facts | ({"config.new": "1"} if process else {})))

    def body(fail):
        with raise_on_all_processes():
            if fail:
                raise UserError("no such file")

    SEEN["one fails"] = message_of(lambda: body(process == 1))
    SEEN["none fails"] = message_of(lambda: body(False))


def lock(process, workdir):
    def twice():
        with WorkdirLock(workdir), WorkdirLock(workdir):
            pass

    SEEN["lock"] = message_of(twice)
    SEEN["unlocked"] = message_of(lambda: WorkdirLock(workdir).__enter__())


def finite(process):
    sharding = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
    values = np.zeros(8, np.float32)
    values[[1, 7]] = np.nan, np.inf
    split = jax.make_array_from_process_local_data(sharding, values[4 * process : 4 * process + 4])
    SEEN["tensors"] = find_nonfinite_tensors({"params": {"weight": split, "fine": jnp.ones_like(split)}})


def watchdog(process):
    """Only the first process's clock moves, and only once the other has told where it is."""
    now = [0.0]

    def stand_still(dog, seconds):
        dog.check_peers()
        gather_strings("")  # waits for the other
        now[0] += seconds if process == 0 else 0
        time.sleep(0.5)
        for message in dog.check_peers():
            print(message, file=sys.stderr)
        gather_strings("")

    with Watchdog(minutes=10 / 60, period=0.1, clock=lambda: now[0]) as dog:
        dog.heartbeat(7, "waiting for input" if process == 1 else "training")
        stand_still(dog, 15.0)
    with Watchdog(minutes=10 / 60, period=0.1, clock=lambda: now[0]) as dog:
        dog.heartbeat(8, "evaluating", patience=10 if process == 1 else 1)  # the other need not know how long it takes
        stand_still(dog, 15.0)


def stopping(process):
    with StopSignal() as stop:
        for step in range(200):
            if process == 1 and step == 150:
                os.kill(os.getpid(), signal.SIGTERM)
            if stop.agreed():
                break
    SEEN["stopped"] = [step, stop.name, stop.exit_status]
    SEEN["asked"] = bool(stop._own)


def full_disk(process, workdir):
    """Only the second process cannot write its part of a checkpoint; the first waits for it, not for long here."""
    checkpoint.TIMEOUT = 3
    logging.set_verbosity(logging.FATAL)
    sharding = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
    values = np.random.default_rng(process).normal(size=100_000).astype(np.float32)
    state = {"params": {"weight": jax.make_array_from_process_local_data(sharding, values)}}

    def save():
        with checkpoint.Checkpoints(Path(workdir), writable=True) as checkpoints:
            checkpoints.save(1, state, {"next_index": 1}, {}, wait=True)
            if process == 1:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
            checkpoints.save(2, state, {"next_index": 2}, {})

    SEEN["full"] = message_of(save)
    SEEN["checkpoints"] = str(Path(workdir) / "checkpoints")


if __name__ == "__main__":
    port, index, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    agreement(index)
    lock(index, workdir)
    finite(index)
    watchdog(index)
    stopping(index)
    full_disk(index, workdir)
    print(json.dumps(SEEN))
