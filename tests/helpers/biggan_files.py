"""BigGAN tensors as files have them, small, for the tests of conversions."""

import dataclasses

import numpy as np

from noisytwins_jax.interop.biggan.architecture import Architecture
from noisytwins_jax.interop.biggan.layers import Naming, compute_sigma_and_v, to_file_layout
from noisytwins_jax.interop.biggan.reading import MODULES, matches
from noisytwins_jax.interop.biggan.statistics import NUM_TRUNCATIONS


def empty(entries: list) -> dict[str, np.ndarray]:
    """Tensors of a list, which take no memory."""
    return {key: np.broadcast_to(np.zeros((), dtype), shape) for key, shape, _, dtype in entries}


def listed(naming: Naming, architecture: Architecture) -> list:
    """Entries ``[key, shape, "param" or "buffer", dtype]`` of a file with a network."""
    shapes, entries, weights = architecture.shapes(), [], {}
    for tensor in naming.tensors(architecture.structure):
        kind = "buffer" if tensor.role in ("u", "mean", "var", "sigma", "v", "counter", "batches") else "param"
        dtype = "int64" if tensor.role == "batches" else "float32"
        if tensor.role in ("sigma", "v", "counter", "batches"):
            size = {"v": [int(np.prod(weights.get(tensor.path, ())[1:]))], "batches": []}.get(tensor.role, [1])
        else:
            size = to_file_layout(naming, tensor, np.broadcast_to(0.0, shapes[tensor.path])).shape
            size = (NUM_TRUNCATIONS, *size) if naming.grid and tensor.role in ("mean", "var") else size
        if tensor.role == "weight":
            weights[tensor.path[1:-1]] = size
        entries.append([tensor.key, list(size), kind, dtype])
    return entries


def small(entries: list) -> dict[str, np.ndarray]:
    """Random tensors of a list's network with few channels and classes, whose derived tensors follow from the others."""
    shapes = empty(entries)
    naming, structure = MODULES[matches(shapes)].recognise(shapes)
    architecture = Architecture(structure, width=8, channels=3, num_classes=5)
    if structure.is_generator:
        chunks = 1 if structure.deep else len(structure.blocks) + 1
        latents = {"z_dim": 3 * chunks, "embedding_dim": 4, "wide_rgb": naming.wide_rgb}
        architecture = dataclasses.replace(architecture, **latents)
    rng, tensors, weights, vectors = np.random.default_rng(0), {}, {}, {}
    sizes = {key: (shape, dtype) for key, shape, _, dtype in listed(naming, architecture)}
    for tensor in naming.tensors(architecture.structure):
        shape, dtype = sizes[tensor.key]
        x = rng.standard_normal(shape).astype(dtype)
        if tensor.role == "u":
            x = (x / np.linalg.norm(x)).astype(np.float32)
            vectors[tensor.path[1:-1]] = x
        elif tensor.role == "weight":
            weights[tensor.path[1:-1]] = x
        elif tensor.role in ("sigma", "v"):
            x = compute_sigma_and_v(weights[tensor.path], vectors[tensor.path])[tensor.role == "v"]
        elif tensor.role in ("counter", "batches"):
            x = np.full(shape, tensor.role == "counter", dtype)
        elif tensor.role == "var":
            x = 0.5 + np.abs(x)
        tensors[tensor.key] = x
    return tensors


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same keys in the same order, with the same bits."""
    assert list(found) == list(expected)
    for key, x in expected.items():
        assert found[key].dtype == x.dtype and found[key].shape == x.shape, key
        assert found[key].tobytes() == np.ascontiguousarray(x).tobytes(), key
