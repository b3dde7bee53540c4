"""Reference numbers computed with the official implementations, and the weights they were computed with."""

import json
import zlib

import numpy as np
from paths import GOLDEN


class Golden:
    """One set: ``golden["in/z"]`` is an array, ``golden.config`` the constants, ``golden.weights("G")`` a state dict."""

    def __init__(self, name: str):
        self.arrays = np.load(GOLDEN / f"{name}.npz")
        self.info = json.loads((GOLDEN / f"{name}.json").read_text())
        self.config = self.info["config"]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def order(self, name: str) -> list[str]:
        return self.info["orders"][name]

    def weights(self, module: str) -> dict[str, np.ndarray]:
        """The module's tensors in PyTorch layout, regenerated from their names."""
        prefix = self.info["seed_prefix"]
        return {entry[0]: weight(*entry, prefix=prefix) for entry in self.info["weights"][module]["entries"]}


def weight(key: str, shape: list[int], kind: str, scale: float, shift: float, prefix: str = "") -> np.ndarray:
    seed = zlib.crc32((prefix + key).encode()) & 0xFFFFFFFF
    normal = np.asarray(np.random.RandomState(seed).standard_normal(tuple(shape)), np.float32)
    if kind == "normal":
        return (normal * np.float32(scale) + np.float32(shift)).astype(np.float32)
    if kind == "abs":  # running variances
        return (np.abs(normal) * np.float32(scale) + np.float32(shift)).astype(np.float32)
    if kind == "unit":  # singular vectors
        return normal / np.sqrt(np.square(normal, dtype=np.float64).sum()).astype(np.float32)
    fixed = {"fir": np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64, "zeros": np.zeros(shape), "ones": np.ones(shape)}
    return fixed[kind].astype(np.float32)


def nhwc(images: np.ndarray) -> np.ndarray:
    return np.transpose(images, (0, 2, 3, 1))


def assert_close(actual, expected, rtol: float) -> None:
    """Largest difference relative to the largest expected magnitude."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)
    assert error <= rtol, f"relative error {error:.2e} > {rtol:.0e}"
