"""Specifications of TPU generations, per device of the TPU compiler.

A device of the compiler is a core. The compiler's v2, v3 and v4 chips have two of them; the two of a v5p count as one,
and v5e and v6e chips have one. Published numbers of chips are divided by the cores that the compiler counts.
"""

from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A TPU generation.

    Attributes:
      name: as in the names of topologies.
      cores: devices of the compiler on a chip.
      clock_hz: cycles per second.
      flops_per_cycle: bfloat16 FLOPs of a core in one cycle: 2 × 128 × 128 for each matrix unit, 2 × 256 × 256 on v6e.
      memory: bytes of high-bandwidth memory available to a core's program.
      link_bytes_per_s: published bytes/s that all links of a chip send, in one direction.
      note: a remark, printed with the costs.
    """

    name: str
    cores: int
    clock_hz: float
    flops_per_cycle: int
    memory: float
    link_bytes_per_s: float
    note: str = ""

    @property
    def peak_flops(self) -> float:
        """Peak bfloat16 FLOP/s of a core."""
        return self.clock_hz * self.flops_per_cycle

    @property
    def core_link_bytes_per_s(self) -> float:
        """Bytes/s of a core's share of the links."""
        return self.link_bytes_per_s / self.cores


# Clocks: v2 700, v3 940 and v4 1050 MHz (Jouppi et al., "TPU v4", ISCA 2023, and their "A domain-specific supercomputer
# for training deep neural networks", CACM 2020). Those of v5e, v5p and v6e are not published: they follow from the
# published peaks of a chip, 197, 459 and 918 TFLOP/s. (v2 to v4: 46, 123 and 275 TFLOP/s; cloud.google.com/tpu/docs.)
# FLOPs per cycle: matrix units of a core, from the same sources. The compiler's own estimate for a product of 8192×8192
# matrices reaches 0.98, 0.97, 0.90, 0.88, 0.90 and 0.70 of them, from v2 to v6e (libtpu 0.0.52).
# Memory: available according to libtpu 0.0.52, when a program needs too much; published are 8, 16, 16, 16, 95 and 32 GB.
# Links: v2 and v3 four of 496 and 656 Gbit/s (CACM 2020); v4 2400, v5e 1600, v5p 4800 and v6e 3200 Gbit/s a chip
# (cloud.google.com/tpu/docs), half of the "bidirectional" GB/s of its newer pages.
CHIPS = (
    Chip("v2", 2, 700e6, 2 * 128**2, 7.48 * _GIB, 4 * 496e9 / 8),
    Chip("v3", 2, 940e6, 4 * 128**2, 15.48 * _GIB, 4 * 656e9 / 8),
    Chip(
        "v4",
        2,
        1050e6,
        8 * 128**2,
        15.25 * _GIB,
        2400e9 / 8,
        "A real v4 joins the two cores of a chip into one device of 32 GB; the compiler counts them one by one.",
    ),
    Chip("v5e", 1, 1500e6, 8 * 128**2, 15.75 * _GIB, 1600e9 / 8),
    Chip("v5p", 1, 1750e6, 16 * 128**2, 95.73 * _GIB, 4800e9 / 8),
    Chip("v6e", 1, 1750e6, 8 * 256**2, 31.24 * _GIB, 3200e9 / 8),
)

# Names that the compiler accepts; others of the same form work too.
TOPOLOGIES = (
    "v2:2x2, v3:1x1 to v3:32x32, v4:2x2x1, v4:2x2x2, v4:4x4x4, v5e:1x1 to v5e:16x16, v5p:2x2x1, v5p:4x4x4, "
    "v6e:1x1 to v6e:16x16"
)


def get_chip(topology: str) -> Chip | None:
    """Return the generation of a topology's name, as ``v3:2x2``, or ``None`` if it is not in the table."""
    generation = topology.partition(":")[0].partition("-")[0]
    return next((chip for chip in CHIPS if chip.name == generation), None)


def communication_seconds(sent_bytes: float, chip: Chip) -> float:
    """Compute a lower bound of the time that a core needs to send: all links busy in one direction, without contention.

    A model: rings over all links of a torus, no latency. Links that a small slice of a pod lacks are not subtracted, and
    cores of one chip are assumed to exchange data over the links too.
    """
    return sent_bytes / chip.core_link_bytes_per_s
