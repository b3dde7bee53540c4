"""The TPU compiler, without a TPU: libtpu as a library, and the devices of a topology that need not exist."""

import importlib.metadata
import importlib.util

from noisytwins_jax.tpu_cost.chips import TOPOLOGIES, chip_of
from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.platform import expect_no_tpu


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
