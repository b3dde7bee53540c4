"""Writes a .pkl from which StyleGAN2-ADA for PyTorch resumes, without PyTorch.

Its training (``--resume``) unpickles G, D and G_ema and copies their parameters and buffers by name. Plain ``torch.nn.Module``
objects that hold these are enough for it, and bring no source code along; they have no ``forward``, so its scripts that draw
images need a snapshot of its own.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from noisytwins_jax.interop.torch_writer import Pickler, call, name, pickled
from noisytwins_jax.utils.files import replacing
from noisytwins_jax.utils.torch_file import MAGIC_NUMBER, PROTOCOL

_BUFFERS = ("resample_filter", "noise_const", "w_avg")
_HOOKS = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


def write_nvidia_snapshot(path: str | Path, networks: Mapping[str, Mapping[str, np.ndarray]], ada_p: float) -> None:
    """Writes networks as ``network-snapshot-*.pkl`` has them.

    Args:
      path: of the file, which is replaced.
      networks: state dicts of ``G``, ``D`` and ``G_ema``, float32.
      ada_p: probability of ADA's augmentations, the buffer ``p`` of ``augment_pipe``.
    """
    pickler = _SnapshotPickler()
    modules = {part: pickler.module(tensors) for part, tensors in networks.items()}
    modules["augment_pipe"] = pickler.module({"p": np.float32(ada_p)}, buffers=("p",))
    content = pickler.items(modules | {"training_set_kwargs": pickler.dump(None)})
    with replacing(path) as temporary:
        temporary.write_bytes(pickled(content))


class _SnapshotPickler(Pickler):
    """Pickles modules; as in every pickle of tensors, each storage is a whole little file of the older ``torch.save``."""

    def items(self, values: Mapping[str, bytes]) -> bytes:
        """A dict of what is pickled already."""
        return b"}(" + b"".join(self.dump(key) + value for key, value in values.items()) + b"u"

    def module(self, tensors: Mapping[str, np.ndarray], buffers: tuple[str, ...] = _BUFFERS) -> bytes:
        """A module whose state dict is `tensors`."""
        parts: dict[str, dict[str, np.ndarray]] = {}
        own: dict[str, dict[str, bytes]] = {"_parameters": {}, "_buffers": {}}
        for key, x in tensors.items():
            first, dot, rest = key.partition(".")
            if dot:
                parts.setdefault(first, {})[rest] = x
            elif first in buffers:
                own["_buffers"][first] = self.dump(np.asarray(x))
            else:
                own["_parameters"][first] = self._parameter(x)
        state = {
            "training": self.dump(False),
            **{members: self.items(values) for members, values in own.items()},
            "_non_persistent_buffers_set": call("builtins", "set", self.dump([])),
            **{hooks: call("collections", "OrderedDict") for hooks in _HOOKS},
            "_modules": self.items({part: self.module(inside, buffers) for part, inside in parts.items()}),
        }
        return name("torch.nn.modules.module", "Module") + b")\x81" + self.items(state) + b"b"

    def _parameter(self, x: np.ndarray) -> bytes:
        arguments = self.dump(np.asarray(x)), self.dump(True), call("collections", "OrderedDict")
        return call("torch._utils", "_rebuild_parameter", *arguments)

    def storage(self, x: np.ndarray, kind: str) -> bytes:
        """See `Pickler`."""
        header = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        identifier = self.named_storage("0", kind, x.size, self.dump(None))
        parts = [*map(self.dump, (MAGIC_NUMBER, PROTOCOL, header)), identifier, self.dump(["0"])]
        content = b"".join(map(pickled, parts)) + struct.pack("<q", x.size) + x.tobytes()
        return call("torch.storage", "_load_from_bytes", b"B" + struct.pack("<I", len(content)) + content)
