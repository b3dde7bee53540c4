"""How arrays lie over devices. The only file that knows there is more than one."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from noisytwins_jax.errors import UserError

Array = jax.Array


class Layout:
    """A data-parallel mesh: batches are split over its only axis, everything else is on every device.

    Programs stay functions of the global batch: XLA turns a mean over a split batch into a mean over all devices.

    Args:
      devices: default all devices of all processes, ordered by process so that a process's rows are contiguous.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        devices = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
        self.mesh = Mesh(np.array(devices), ("data",))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.split = NamedSharding(self.mesh, PartitionSpec("data"))

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return self.mesh.size

    def batch(self, x: Array) -> Array:
        """Inside a program: splits the leading axis over devices."""
        return jax.lax.with_sharding_constraint(x, self.split)

    def replicate(self, x: Array) -> Array:
        """Inside a program: gathers to every device."""
        return jax.lax.with_sharding_constraint(x, self.replicated)

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, Array]:
        """Outside: this process's rows of a global batch, onto its devices."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.split, x), batch)

    def check_batch_size(self, batch_size: int, mbstd_group_size: int, twins: bool, path_length_batch: int = 0) -> None:
        """Refuses batch sizes that devices, minibatch-standard-deviation groups or twins cannot divide.

        `path_length_batch`, of path-length regularisation (0 for none), only has to divide among devices.

        Raises:
          UserError: with the nearest batch size that would do.
        """
        unit = self.num_devices * mbstd_group_size
        if twins:
            unit = int(np.lcm(unit, 2))
        if batch_size % unit:
            parts = [f"{self.num_devices} device(s)", f"minibatch-std groups of {mbstd_group_size}"]
            parts += ["pairs of twins"] if twins else []
            nearest = max(unit, round(batch_size / unit) * unit)
            raise UserError(
                f"batch_size={batch_size} does not divide among {', '.join(parts)}; it must be a multiple of {unit}, "
                f"for example --config.batch_size={nearest}."
            )
        if path_length_batch % self.num_devices:
            raise UserError(
                f"The path-length batch of {path_length_batch} images does not divide among {self.num_devices} "
                "devices; change --config.path_length.batch_fraction, for example to 1."
            )
