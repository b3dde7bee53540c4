"""Trains on a disk that gets full, or fails for a moment: python full_disk_program.py WORKDIR full|passing|final."""

import errno
import resource
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from noisytwins_jax.training import checkpoint
from noisytwins_jax.utils.errors import UserError


def make_state(step):
    return {"params": {"a": jax.random.normal(jax.random.key(step), (100_000,)), "b": jnp.arange(7.0) + step}}


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def main(workdir, scene):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing too much is then an error like that of a full disk
    checkpoint.WAIT = 0.01

    failures = {"left": 0}
    write_digests = checkpoint.Checkpoints._write_digests

    def fail_now_and_then(self):  # in the background, when the arrays are written: half a checkpoint
        if failures["left"]:
            failures["left"] -= 1
            raise OSError(errno.EIO, "Input/output error")
        write_digests(self)

    checkpoint.Checkpoints._write_digests = fail_now_and_then

    with checkpoint.Checkpoints(workdir, writable=True) as checkpoints:

        def save(step, **options):
            checkpoints.save(step, make_state(step), {"next_index": step}, {}, **options)

        save(1, wait=True)
        if scene == "full":
            limit_files(10_000)
            save(2)
            save(3)
        elif scene == "passing":
            failures["left"] = 1
            save(2)
            save(3)  # says that 2 failed
            checkpoints.wait()
            failures["left"] = 2
            save(4, wait=True)  # succeeds at last
            failures["left"] = 3
            for step in range(5, 9):
                save(step)
        else:
            failures["left"] = 1
            save(2)


if __name__ == "__main__":
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except UserError as error:
        limit_files(resource.RLIM_INFINITY)
        sys.exit(f"Error: {error}")
