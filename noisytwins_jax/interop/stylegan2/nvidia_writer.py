"""A writer of .pkl files from which StyleGAN2-ADA for PyTorch resumes training; needs no PyTorch.

Its training (``--resume``) unpickles G, D and G_ema and copies their parameters and buffers by name. Plain
``torch.nn.Module`` objects with these are enough for that and contain no source code. They have no ``forward``; their
attributes are those that its networks are made from, ``init_args`` and ``init_kwargs``, and the sizes that scripts read.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from noisytwins_jax.interop.stylegan2.architecture import detect_architecture
from noisytwins_jax.interop.stylegan2.nvidia_options import init_kwargs
from noisytwins_jax.interop.torch_writer import Pickler, dump_call, dump_global, to_pickle
from noisytwins_jax.models.stylegan2.resolutions import block_resolutions
from noisytwins_jax.utils.files import replacing
from noisytwins_jax.utils.torch_file import MAGIC_NUMBER, PROTOCOL

_SIZES = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
_BUFFERS = ("resample_filter", "noise_const", "w_avg")
_HOOKS = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


def write_nvidia_snapshot(
    path: str | Path, networks: Mapping[str, Mapping[str, np.ndarray]], fields: Mapping[str, Any], ada_p: float
) -> None:
    """Write networks in the format of ``network-snapshot-*.pkl``.

    Args:
      path: of the file, which is replaced.
      networks: state dicts of ``G``, ``D`` and ``G_ema``, float32.
      fields: the run's configuration by dotted name.
      ada_p: probability of ADA's augmentations, the buffer ``p`` of ``augment_pipe``.
    """
    pickler = SnapshotPickler()
    modules = {part: pickler.dump_module(x, attributes=_attributes(x, fields)) for part, x in networks.items()}
    modules["augment_pipe"] = pickler.dump_module({"p": np.float32(ada_p)}, buffers=("p",))
    content = pickler.dump_dict(modules | {"training_set_kwargs": pickler.dump(None)})
    with replacing(path) as temporary:
        temporary.write_bytes(to_pickle(content))


def _attributes(tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> dict[str, Any]:
    architecture = detect_architecture({key: x.shape for key, x in tensors.items()})
    options = init_kwargs(architecture, fields)
    sizes = {name: options[name] for name in _SIZES if name in options}
    if architecture.role == "generator":
        sizes["num_ws"] = 2 * len(block_resolutions(architecture.resolution))
    return sizes | {"init_args": (), "init_kwargs": options}


class SnapshotPickler(Pickler):
    """A pickler of modules, in which each storage is a legacy ``torch.save`` file of its own."""

    def dump_dict(self, values: Mapping[str, bytes]) -> bytes:
        """Return the instructions that build a dict of values that are instructions themselves."""
        return b"}(" + b"".join(self.dump(key) + value for key, value in values.items()) + b"u"

    def dump_module(
        self,
        tensors: Mapping[str, np.ndarray],
        buffers: tuple[str, ...] = _BUFFERS,
        attributes: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Return the instructions that build a module with this state dict and attributes."""
        children: dict[str, dict[str, np.ndarray]] = {}
        own: dict[str, dict[str, bytes]] = {"_parameters": {}, "_buffers": {}}
        for key, x in tensors.items():
            first, dot, rest = key.partition(".")
            if dot:
                children.setdefault(first, {})[rest] = x
            elif first in buffers:
                own["_buffers"][first] = self.dump(np.asarray(x))
            else:
                own["_parameters"][first] = self._dump_parameter(x)
        state = {
            "training": self.dump(False),
            **{name: self.dump(value) for name, value in (attributes or {}).items()},
            **{members: self.dump_dict(values) for members, values in own.items()},
            "_non_persistent_buffers_set": dump_call("builtins", "set", self.dump([])),
            **{hooks: dump_call("collections", "OrderedDict") for hooks in _HOOKS},
            "_modules": self.dump_dict({name: self.dump_module(child, buffers) for name, child in children.items()}),
        }
        return dump_global("torch.nn.modules.module", "Module") + b")\x81" + self.dump_dict(state) + b"b"

    def _dump_parameter(self, x: np.ndarray) -> bytes:
        arguments = self.dump(np.asarray(x)), self.dump(True), dump_call("collections", "OrderedDict")
        return dump_call("torch._utils", "_rebuild_parameter", *arguments)

    @override
    def dump_storage(self, x: np.ndarray, storage_class: str) -> bytes:
        header = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        identifier = self.dump_persistent_id("0", storage_class, x.size, self.dump(None))
        pickles = [*map(self.dump, (MAGIC_NUMBER, PROTOCOL, header)), identifier, self.dump(["0"])]
        content = b"".join(map(to_pickle, pickles)) + struct.pack("<q", x.size) + x.tobytes()
        return dump_call("torch.storage", "_load_from_bytes", b"B" + struct.pack("<I", len(content)) + content)
