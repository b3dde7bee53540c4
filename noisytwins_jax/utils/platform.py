"""Detection of TPUs before JAX initialises."""

import glob
import os

# Read by libtpu when it is loaded. Without them it looks for its place in a pod, which is slow and noisy without TPUs.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to wait for
    "TPU_ACCELERATOR_TYPE": "v4-8",  # any: topologies are named explicitly
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",  # no files outside the workdir
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling needs no chips, so several processes may do so at once
}


def expect_no_tpu() -> None:
    """Keep libtpu quiet on a machine without TPUs; call it before JAX initialises its devices."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def has_tpu() -> bool:
    """Return whether this machine has TPUs, judging by its device files."""
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
