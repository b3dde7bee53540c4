"""The TPU compiler, without a TPU: libtpu as a library, and the devices of a topology that need not exist."""

import glob
import importlib.metadata
import importlib.util
import os

from noisytwins_jax.errors import UserError, first_line
from noisytwins_jax.tpu.chips import TOPOLOGIES, chip_of

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


def tpu_devices(topology: str) -> list:
    """The cores of a topology, as devices to compile for.

    Args:
      topology: as ``v3:2x2`` (8 cores), ``v4:2x2x1``, ``v5e:2x2``.

    Raises:
      UserError: without libtpu, for a name that the compiler does not know, or if libtpu cannot be used just now.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("The TPU compiler is not installed; install it with: pip install libtpu (Linux only).")
    if chip_of(topology) is None:
        raise UserError(f"--topology={topology} is no TPU that is known here; give one of {TOPOLOGIES}.")
    expect_no_tpu()
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except Exception as error:  # libtpu's own errors are of several types
        reason = first_line(error)
        if "lockfile" in reason:
            raise UserError(
                "Another process is using the TPU compiler and does not share it; wait for it to end, or start that "
                "process and this one with ALLOW_MULTIPLE_LIBTPU_LOAD=1."
            ) from None
        raise UserError(
            f"The TPU compiler refuses --topology={topology} ({reason}); give one of {TOPOLOGIES}."
        ) from None


def compiler_version() -> str:
    """libtpu's version, of whichever package brings it."""
    for package in ("libtpu", "libtpu-nightly"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
