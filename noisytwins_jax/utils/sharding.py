"""The mesh and shardings of a run, and the initialisation of its processes."""

import collections
import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from noisytwins_jax.utils.errors import TryAgainError, UserError, first_line

Array = jax.Array
PyTree = Any
JOIN_SECONDS = 300.0  # machines of a pod do not start at the same moment
MAX_CPU_DEVICES = 32  # with more cores, a device has several
SPLIT_FROM = 2**14  # elements: smaller arrays are not worth a message of their own


class Layout:
    """A mesh of two axes, ``data`` × ``fsdp``: batches are sharded over both, and the state over the second.

    Programs stay functions of the global batch: XLA turns a mean over a sharded batch into a mean over all devices.

    With ``fsdp`` = 1 the state is replicated. Otherwise groups of that many neighbouring devices share one copy of every
    large parameter, its optimiser's moments and its moving average (fully sharded data parallelism): programs gather
    parameters to use them, and reduce and scatter their gradients, so that a device updates only its part.

    Args:
      devices: by default all devices of all processes, ordered by process so that a process's rows are contiguous.
      fsdp: number of devices that share one copy of the state; it must divide the number of devices.
      split_from: number of elements from which an array of the state is sharded.

    Raises:
      UserError: `fsdp` does not divide the number of devices.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None, fsdp: int = 1, split_from: int = SPLIT_FROM):
        devices = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
        if len(devices) % fsdp:
            divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
            raise UserError(
                f"config.mesh.fsdp={fsdp} does not divide the {len(devices)} device(s) of the run; give one of "
                f"{', '.join(map(str, divisors))}."
            )
        self.mesh = Mesh(np.array(devices).reshape(-1, fsdp), ("data", "fsdp"))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.split = self.split_at(0)
        self.fsdp, self.split_from = fsdp, split_from

    @property
    def num_devices(self) -> int:
        """Return the number of devices of the mesh."""
        return self.mesh.size

    def batch(self, x: Array) -> Array:
        """Shard the leading axis over devices; call inside a program."""
        return x if self.num_devices == 1 else jax.lax.with_sharding_constraint(x, self.split)

    def split_batch(self, x: Array, count: int) -> Array:
        """Split a sharded batch into micro-batches, ``[N, …] → [count, N/count, …]``; no row moves to another device."""
        n, devices = x.shape[0], self.num_devices
        parts = x.reshape(devices, count, n // (devices * count), *x.shape[1:]).swapaxes(0, 1)
        parts = parts.reshape(count, n // count, *x.shape[1:])
        return parts if devices == 1 else jax.lax.with_sharding_constraint(parts, self.split_at(1))

    def merge_batch(self, parts: Array) -> Array:
        """Undo `split_batch`."""
        count, size, devices = *parts.shape[:2], self.num_devices
        x = parts.reshape(count, devices, size // devices, *parts.shape[2:]).swapaxes(0, 1)
        return self.batch(x.reshape(count * size, *parts.shape[2:]))

    def replicate(self, x: Array) -> Array:
        """Replicate an array on every device; call inside a program."""
        return x if self.num_devices == 1 else jax.lax.with_sharding_constraint(x, self.replicated)

    def gather(self, params: PyTree) -> PyTree:
        """Replicate sharded parameters on every device, to use them; call inside a program."""
        return jax.tree.map(lambda x: self.replicate(x) if self._is_split(x) else x, params)

    def scatter(self, gradients: PyTree) -> PyTree:
        """Shard gradients as the parameters are stored, for the optimiser; call inside a program."""

        def one(x: Array) -> Array:
            if not self._is_split(x):
                return x
            # Replicated first, or XLA would propagate the sharding back into the layers and redistribute activations. On
            # accelerators it merges the sum and the split into one reduce-scatter.
            return jax.lax.with_sharding_constraint(self.replicate(x), self._parameter_sharding(x.shape))

        return jax.tree.map(one, gradients)

    def state_shardings(self, state: PyTree) -> PyTree:
        """Return the shardings of a state between programs, for each leaf of a tree of arrays or of their shapes.

        Large leaves below a node named ``params`` or ``opt_state`` are sharded; the rest is replicated.
        """

        def one(path: tuple[Any, ...], x: Any) -> NamedSharding:
            names = {getattr(entry, "name", getattr(entry, "key", None)) for entry in path}
            return self._parameter_sharding(x.shape) if names & {"params", "opt_state"} else self.replicated

        return jax.tree_util.tree_map_with_path(one, state)

    def split_at(self, axis: int) -> NamedSharding:
        """Return the sharding of arrays whose batch axis is `axis`."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))

    def put_batch(self, batch: dict[str, np.ndarray], batch_axis: int = 0) -> dict[str, Array]:
        """Put this process's rows of a global batch on its devices; call outside programs."""
        sharding = self.split_at(batch_axis)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def map_batches(
        self,
        program: Callable[..., tuple[Array, ...]],
        variables: PyTree,
        *arrays: np.ndarray,
        per_device_batch: int,
        prefetch: int = 1,
    ) -> tuple[np.ndarray, ...]:
        """Apply a compiled program to many rows in batches of one shape, on a mesh of this process's devices alone.

        Args:
          program: (variables, *batch) → arrays with a row for each row of the batch, which depends on that row alone.
          variables: replicated on every device; see `replicate_to_devices`.
          arrays: ``[n, …]`` each; the last batch is padded with zeros.
          per_device_batch: rows per device and call. A device's program does not depend on the number of devices, so
            results are bit-identical on any number of them.
          prefetch: batches in flight at once; with 2 or more, devices do not wait for the host.

        Returns:
          Arrays ``[n, …]`` on the host.
        """
        batch, in_flight, results = per_device_batch * self.num_devices, collections.deque(), []

        def collect() -> None:
            outputs, count = in_flight.popleft()
            results.append([np.asarray(y)[:count] for y in outputs])

        for start in range(0, max(1, len(arrays[0])), batch):
            rows = [x[start : start + batch] for x in arrays]
            count = len(rows[0])
            padded = [np.pad(x, [(0, batch - count)] + [(0, 0)] * (x.ndim - 1)) for x in rows]
            in_flight.append((program(variables, *jax.device_put(padded, self.split)), count))
            if len(in_flight) == prefetch:
                collect()
        while in_flight:
            collect()
        return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))

    def replicate_to_devices(self, tree: PyTree) -> PyTree:
        """Put a copy of a tree on every device of the mesh; call outside programs."""
        return jax.device_put(tree, self.replicated)

    def check_batch_size(self, batch_size: int, mbstd_group_size: int, twins: bool, path_length_batch: int = 0) -> None:
        """Check that devices, minibatch-standard-deviation groups and twins divide the batch size.

        `path_length_batch`, of path-length regularisation (0 for none), only has to divide among devices.

        Raises:
          UserError: they do not; the message has the nearest batch size that works.
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

    def _is_split(self, x: Array) -> bool:
        return split_axis(x.shape, self.fsdp, self.split_from) is not None

    def _parameter_sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        axis = split_axis(shape, self.fsdp, self.split_from)
        return self.replicated if axis is None else NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "fsdp"))


def split_axis(shape: tuple[int, ...], parts: int, split_from: int) -> int | None:
    """Return the axis along which an array of parameters is split into `parts`: the first of the largest that divide.

    None if it is not split: with one part, below `split_from` elements, or if no axis divides.
    """
    axes = [axis for axis, n in enumerate(shape) if n % parts == 0]
    if parts == 1 or math.prod(shape) < split_from or not axes:
        return None
    return max(axes, key=lambda axis: shape[axis])


def use_all_cores() -> None:
    """On CPUs, make every core a device; call it before JAX initialises its devices.

    For programs of many independent rows: two devices of one core each compute 1.25 times as many Inception features as
    one device of two. The environment takes precedence (``JAX_NUM_CPU_DEVICES``), and after initialisation this does
    nothing.
    """
    given = "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in os.environ.get("XLA_FLAGS", "")
    if not given:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # devices are initialised already
            jax.config.update("jax_num_cpu_devices", min(cores, MAX_CPU_DEVICES))


def join_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float = JOIN_SECONDS
) -> None:
    """Join this process to those of a run; call it before JAX initialises its devices.

    Args:
      coordinator: ``host:port`` of the first process; or ``"auto"`` where JAX can find it: Cloud TPU, GKE's JobSet, SLURM.
      num_processes: number of processes; None for ``"auto"``.
      process_id: index of this process, from 0; None for ``"auto"``.
      timeout: seconds to wait for the others.

    Raises:
      TryAgainError: the processes do not find each other.
      UserError: an argument is missing or out of range, or the port is in use.
    """
    if coordinator == "auto":
        if (num_processes, process_id) != (None, None):
            raise UserError("--coordinator=auto finds out --num_processes and --process_id by itself; leave them out.")
        arguments = {}
    else:
        arguments = _explicit_processes(coordinator, num_processes, process_id, timeout)
    # JAX would handle SIGTERM itself, so that a process could not be ended before it trains.
    jax.config.update("jax_enable_preemption_service", False)
    failures: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(**arguments, initialization_timeout=10**6, shutdown_timeout_seconds=60)
        except Exception as error:  # of many types: clusters are detected by files, variables and the network
            failures.append(error)

    # In a thread, because JAX ends the whole process after its own timeout.
    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        all_of_them = "all of them" if coordinator == "auto" else "as many as --num_processes says, by --process_id"
        raise TryAgainError(
            f"Not all processes of the run came together within {timeout:g} s; start {all_of_them}, and see whether one "
            "of them failed."
        )
    if failures:
        kind = UserError if isinstance(failures[0], ValueError) else TryAgainError
        raise kind(
            f"The processes cannot be joined ({first_line(failures[0]).rstrip('.')}); give --coordinator=host:port, "
            "--num_processes and --process_id, or auto on Cloud TPU, GKE and SLURM."
        )


def _explicit_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> dict[str, Any]:
    """Build the arguments of ``jax.distributed.initialize``; check that the coordinator's port is free, or answers."""
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(
            f"A run of several processes needs {' and '.join(missing)} too; or give --coordinator=auto alone on Cloud "
            "TPU, GKE and SLURM."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator={coordinator} is not host:port; give, for example, --coordinator=10.0.0.2:8476."
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1} for --num_processes={num_processes}."
            if num_processes > 0
            else f"--num_processes={num_processes} must be at least 1."
        )
    if process_id == 0:
        _check_port_is_free(int(port))
    else:
        _wait_for_coordinator(host.strip("[]"), int(port), timeout)
    return {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}


def _check_port_is_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"Port {port} of --coordinator cannot be used here ({error.strerror}); give another to every process."
            ) from None


def _wait_for_coordinator(host: str, port: int, timeout: float) -> None:
    """Wait until the first process answers; JAX itself would end this one with a stack trace if it never does."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TryAgainError(
                    f"The coordinator {host}:{port} did not answer within {timeout:g} s ({error.strerror or error}); "
                    "start process 0 on that host, and see whether a firewall is in between."
                ) from None
            time.sleep(0.5)
