"""Which accelerators this machine has, before JAX looks for them."""

import glob
import os

# Read by libtpu when it is loaded. A machine without TPUs is otherwise asked for its place in a pod: slow and noisy.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to wait for
    "TPU_ACCELERATOR_TYPE": "v4-8",  # any: a topology is named by hand
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",  # no files outside the run's own
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling needs no chips, so several processes may do it at once
}


def expect_no_tpu() -> None:
    """Keeps libtpu quiet on a machine without TPUs; to be called before JAX looks for devices."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def has_tpu() -> bool:
    """Whether this machine has TPUs, as far as its device files tell."""
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
