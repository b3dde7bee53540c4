"""FLOPs of the networks, independent of the compiler: the numerator of model FLOPs utilisation (MFU).

They are the multiply-adds of convolutions and dense layers, times two. Filters (depthwise convolutions) and elementwise
operations do not count, and a convolution counts at the smaller of its input and its output: a transposed convolution at
the low resolution, without stuffed zeros and without padded borders.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from noisytwins_jax.config import RunConfig
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs
from noisytwins_jax.training.build_model import build_model


def network_flops(config: RunConfig, channels: int, num_classes: int) -> dict[str, float]:
    """Count forward FLOPs of one image for each network: ``generator`` and ``discriminator`` (without augmentation).

    The discriminator's include its pass over a low-resolution image, where a run has one.
    """
    # The result must not depend on the run's form of convolutions.
    model = build_model(dataclasses.replace(config, up_impl="conv"), channels, num_classes)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    n = config.discriminator.mbstd_group_size

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((n, *shape), dtype)

    labels = array(dtype=jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    noise = [array(dim) for dim in model.class_noise_dims]
    instances = array(model.instance_features) if model.instance_features else None
    inputs = GeneratorInputs(array(model.z_dim), labels, noise[0], None, None, None, key, instances)
    low_images = None if model.low_shape is None else array(*model.low_shape)

    def generate(variables: dict, inputs: GeneratorInputs) -> Any:
        _, conditioning, _ = model.map(variables, inputs)
        return model.synthesize(variables, conditioning, inputs.key)

    return {
        "generator": count_flops(generate, variables[0], inputs) / n,
        "discriminator": count_flops(
            model.discriminate,
            variables[1],
            DiscriminatorInputs(array(*model.image_shape), labels, noise[1], low_images, instances=instances),
        )
        / n,
    }


def program_flops(config: RunConfig, networks: dict[str, float]) -> dict[str, float]:
    """Compute FLOPs of one call of each training program, over all devices, from the result of `network_flops`.

    The gradients with respect to inputs and to parameters each cost as much as the forward pass: the generator's update is
    3 G (forward and both gradients) + 2 D (forward and the gradient of its input), the discriminator's G + 2 · 3 D; R1 and
    path length, which differentiate a gradient, 6 times their network.
    """
    g, d, n = networks["generator"], networks["discriminator"], config.batch_size
    return {
        "generator": n * (3 * g + 2 * d),
        "path_length": config.lazy_batch(config.path_length) * 6 * g,
        "average": 0.0,
        "discriminator": n * (g + 6 * d),
        "r1": n * 6 * d,
        "adapt": 0.0,
        "spectra": 0.0,
    }


def count_flops(function: Any, *arguments: Any) -> float:
    """Count FLOPs of a function of arrays or ``jax.ShapeDtypeStruct``, as the module's docstring defines them."""
    return 2.0 * _multiply_adds(jax.make_jaxpr(function)(*arguments).jaxpr)


def _multiply_adds(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            total += _convolution_multiply_adds(equation)
        elif name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        else:
            inner = [_multiply_adds(j) for value in parameters.values() for j in _jaxprs(value)]
            if name == "cond":  # of forms for different platforms, the one without zeros between groups
                total += (min if parameters.get("branches_platforms") else max)(inner)
            else:
                total += sum(inner) * (parameters["length"] if name == "scan" else 1)
    return total


def _convolution_multiply_adds(equation: Any) -> float:
    numbers = equation.params["dimension_numbers"]
    images, kernel = (v.aval.shape for v in equation.invars)
    if equation.params["feature_group_count"] > 1 and kernel[numbers.rhs_spec[1]] == 1:  # a filter of each channel
        return 0.0
    result = equation.outvars[0].aval.shape
    positions = min(
        math.prod(images[axis] for axis in numbers.lhs_spec[2:]),
        math.prod(result[axis] for axis in numbers.out_spec[2:]),
    )
    return float(images[numbers.lhs_spec[0]] * positions * math.prod(kernel))


def _jaxprs(value: Any) -> list[Any]:
    """Return the jaxprs in a parameter of an equation."""
    if isinstance(value, (tuple, list)):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    value = getattr(value, "jaxpr", value)  # opens a ClosedJaxpr
    return [value] if hasattr(value, "eqns") else []
