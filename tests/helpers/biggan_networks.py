"""Small BigGAN networks for the tests, with random variables that take no time to draw."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def shapes(module: nn.Module, *inputs: Any) -> dict:
    """Shapes of a module's variables."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))


def random_variables(module: nn.Module, *inputs: Any) -> dict:
    """Variables of which none is zero; vectors u are singular vectors, variances are positive."""
    rng = np.random.default_rng(0)
    flat = {
        path: np.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
        for path, leaf in flatten_dict(shapes(module, *inputs)).items()
    }
    for path, value in flat.items():
        if path[-1] == "var":
            flat[path] = 0.5 + np.abs(value)
        elif path[-1] == "u":
            weight = flat["params", *path[1:-1], "weight"]
            matrix = weight.T if path[-2] == "embed" else weight.reshape(-1, value.size)
            flat[path] = np.linalg.svd(matrix, full_matrices=False)[2][0]
    return unflatten_dict(flat)


def quick_jit(function: Callable) -> Callable:
    """Compiled fast, to run slowly."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)
