"""Writes snapshots as StyleGAN2-ADA for PyTorch does: modules pickle as a call with their source code. Needs PyTorch."""

import pickle
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np

SOURCE = "raise SystemExit('the source code of the file was run')\n" * 20


def reconstruct(meta):
    """What the call of a file would be, which these tests never come to."""
    raise AssertionError("the file was run")


class EasyDict(dict):
    """A dict of that code's own class."""


@contextmanager
def as_theirs():
    """Within it `reconstruct` and `EasyDict` are pickled by the names that they have in that code."""
    theirs = {"torch_utils.persistence._reconstruct_persistent_obj": reconstruct, "dnnlib.util.EasyDict": EasyDict}
    old = {name: (x.__module__, x.__qualname__) for name, x in theirs.items()}
    for name, x in theirs.items():
        x.__module__, _, x.__qualname__ = name.rpartition(".")
        x.__name__ = x.__qualname__
        package, _, _ = x.__module__.partition(".")
        sys.modules[package] = types.ModuleType(package)
        sys.modules[x.__module__] = types.ModuleType(x.__module__)
        setattr(sys.modules[x.__module__], x.__qualname__, x)
    try:
        yield
    finally:
        for name, x in theirs.items():
            del sys.modules[x.__module__], sys.modules[name.partition(".")[0]]
            x.__module__, x.__qualname__ = old[name]
            x.__name__ = x.__qualname__


def module_of(class_name, tensors, init_kwargs=None):
    """A torch.nn.Module with these tensors, that pickles as its modules do."""
    import torch

    class Persistent(torch.nn.Module):
        def __reduce__(self):
            meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name}
            return reconstruct, (meta | {"state": self.__dict__},), None

        def __reduce_ex__(self, protocol):
            return self.__reduce__()

    def made(name):
        module = Persistent()
        module.class_name = name
        module.act_gain = np.sqrt(np.float64(2))  # as their layers have it
        return module

    root = made(class_name)
    root._init_args, root._init_kwargs = (), EasyDict(init_kwargs or {})
    for key, value in tensors.items():
        *parents, last = key.split(".")
        place = root
        for parent in parents:
            if parent not in place._modules:
                place.add_module(parent, made(f"Part_{parent}"))
            place = place._modules[parent]
        value = torch.from_numpy(np.array(value))
        if last in ("resample_filter", "noise_const", "w_avg"):
            place.register_buffer(last, value)
        else:
            place.register_parameter(last, torch.nn.Parameter(value, requires_grad=False))
    root.register_buffer("unsaved", torch.zeros(2), persistent=False)
    root.register_buffer("none", None)
    root.hooks = OrderedDict()
    return root


def write_snapshot(path, content, protocol=4):
    """Pickles the content of a snapshot; Python 3.8, as that code mostly ran with, writes protocol 4, older ones 3."""
    with as_theirs(), open(path, "wb") as file:
        pickle.dump(content, file, protocol)
