"""The TPU compiler without a TPU: libtpu as a library, and the devices of a topology to compile for."""

import importlib.metadata
import importlib.util

from noisytwins_jax.tpu_cost.chips import TOPOLOGIES, get_chip
from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.platform import expect_no_tpu


def tpu_devices(topology: str) -> list:
    """Return the cores of a topology as devices to compile for.

    Args:
      topology: as ``v3:2x2`` (8 cores), ``v4:2x2x1``, ``v5e:2x2``.

    Raises:
      UserError: libtpu is not installed or is in use, or the compiler does not know the name.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("The TPU compiler is not installed; install it with: pip install libtpu (Linux only).")
    if get_chip(topology) is None:
        raise UserError(f"--topology={topology} is not a known TPU topology; give one of {TOPOLOGIES}.")
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
    """Return libtpu's version, from whichever package provides it."""
    for package in ("libtpu", "libtpu-nightly"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
