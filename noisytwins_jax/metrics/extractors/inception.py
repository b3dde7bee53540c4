"""InceptionV3 of the Fréchet Inception Distance: the network of 2015 with TensorFlow's weights and 1008 classes.

The architecture is that of Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567) in TensorFlow's graph of 2015-12-05.
It differs from torchvision's: average pools exclude the padding from the mean, the pool of Mixed_7c is a maximum, there
are 1008 outputs and no auxiliary head. Names are those of the graph's PyTorch conversions.

Batch normalisation is folded into the convolutions in float64 when the variables are built, so a unit is convolution,
bias and ReLU. Everything runs in float32 at full precision.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.extractors.resize import resize
from noisytwins_jax.metrics.extractors.state_dict import Shapes, State, float32
from noisytwins_jax.utils.errors import UserError, did_you_mean

Array = jax.Array
PyTree = Any

SIZE = 299  # input height and width, in pixels
FEATURE_DIM = 2048
NUM_LOGITS = 1008  # ImageNet's class c is logit c + 1
_BATCH_NORM_EPSILON = 1e-3

# From uint8 images to the network's input. None rounds the resized values.
PREPROCESSINGS = {  # filter; whether to clip to 0..255; m of (x - m) / m; description
    "noisytwins": ("torch_bilinear", True, 127.5, "half-pixel bilinear without antialiasing, clipped, x/127.5 - 1"),
    "tf1": ("tf1_bilinear", False, 128.0, "TensorFlow 1's bilinear (no half-pixel shift), (x - 128)/128"),
    "clean": ("pillow_bicubic", True, 128.0, "antialiased bicubic (Pillow's) in float, clipped, (x - 128)/128"),
    "studiogan_clean": ("pillow_bilinear", False, 127.5, "antialiased bilinear (Pillow's) in float, x/127.5 - 1"),
}


def inception_extractor(
    variables: PyTree,
    sha256: str,
    preprocessing: str = "noisytwins",
    origin: str = "",
    unbiased_logits: bool = False,
) -> FeatureExtractor:
    """Build an extractor of 2048 features and 1008 logits from the weights of InceptionV3.

    On a CPU, batches of 4 are fastest: 0.11 s of CPU time an image at 64x64, against 0.14 s in batches of 32.

    Args:
      variables: from `from_state_dict`.
      sha256: hexadecimal SHA-256 of the weights.
      preprocessing: one of `PREPROCESSINGS`; numbers of different ones cannot be compared.
      origin: of the weights, for the description.
      unbiased_logits: whether to omit the last layer's bias, as in torch-fidelity's Inception Score.

    Raises:
      UserError: an unknown preprocessing; at the call, images that are not ``[n, H, W, 1 or 3]`` of uint8.
    """
    if preprocessing not in PREPROCESSINGS:
        raise UserError(
            f"Inception has no preprocessing {preprocessing!r}; {did_you_mean(preprocessing, PREPROCESSINGS)}"
        )
    logits = "logits_unbiased" if unbiased_logits else "logits"

    @jax.jit
    def apply(variables: PyTree, images: Array) -> tuple[Array, Array]:
        taps = Inception().apply(variables, preprocess(images, preprocessing))
        return taps["2048"], taps[logits]

    return FeatureExtractor(
        name=f"inception-{preprocessing}-{sha256[:8]}",
        sha256=sha256,
        description={
            "architecture": "InceptionV3 of 2015 (FID)",
            "preprocessing": preprocessing,
            "preprocessing_in_words": f"to {SIZE}x{SIZE}: {PREPROCESSINGS[preprocessing][-1]}",
            "logits": "without bias" if unbiased_logits else "with bias",
            "origin": origin,
        },
        feature_dim=FEATURE_DIM,
        variables=variables,
        apply=apply,
    )


def preprocess(images: Array, preprocessing: str) -> Array:
    """Convert images to the network's input.

    Args:
      images: uint8 ``[n, H, W, C]``, C 1 or 3; a grey channel is repeated.
      preprocessing: one of `PREPROCESSINGS`.

    Returns:
      float32 ``[n, 299, 299, 3]``, about -1 to 1.

    Raises:
      UserError: the images have another shape or type.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
        raise UserError(
            f"Inception takes uint8 images [n, H, W, 1 or 3], but got {images.dtype} {list(images.shape)}: "
            "give grey or RGB images in this layout."
        )
    kind, clipped, middle, _ = PREPROCESSINGS[preprocessing]
    x = resize(images.astype(jnp.float32), SIZE, SIZE, kind)
    x = x.clip(0.0, 255.0) if clipped else x
    return jnp.broadcast_to((x - middle) / middle, (*x.shape[:3], 3))


def state_dict_shapes() -> Shapes:
    """Return the 566 names and shapes of a PyTorch file's tensors, some of which are optional (`is_optional`)."""
    shapes: Shapes = {}
    for name, leaves in _units().items():
        height, width, inputs, outputs = leaves["kernel"].shape
        shapes[f"{name}.conv.weight"] = (outputs, inputs, height, width)
        shapes |= {f"{name}.bn.{entry}": (outputs,) for entry in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    return shapes | {"fc.weight": (NUM_LOGITS, FEATURE_DIM), "fc.bias": (NUM_LOGITS,)}


def is_optional(key: str) -> bool:
    """Return whether a file may lack the tensor: batch normalisation's counters are not used in inference."""
    return key.endswith(".num_batches_tracked")


def from_state_dict(state: State) -> PyTree:
    """Build the module's variables, with batch normalisation folded in, from a PyTorch state dict.

    Args:
      state: tensors with the keys and shapes of `state_dict_shapes`, of any floating-point type.

    Returns:
      ``{"params": {block: {unit: {"kernel": float32 [h, w, in, out], "bias": float32 [out]}}}}``, NumPy arrays.

    Raises:
      UserError: a tensor is missing, unknown or of another shape; the message names the first one.
    """
    _check_state_dict(state)
    fc = {"kernel": float32(np.asarray(state["fc.weight"]).T), "bias": float32(state["fc.bias"])}
    params: dict[str, Any] = {"fc": fc}
    for name in _units():
        *blocks, unit = name.split(".")
        parent = functools.reduce(lambda tree, block: tree.setdefault(block, {}), blocks, params)
        weight, scale, shift, mean, variance = (
            np.asarray(state[f"{name}.{entry}"], np.float64)
            for entry in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        scale = scale / np.sqrt(variance + _BATCH_NORM_EPSILON)
        parent[unit] = {
            "kernel": float32(weight.transpose(2, 3, 1, 0) * scale),
            "bias": float32(shift - mean * scale),
        }
    return {"params": params}


def _check_state_dict(state: State) -> None:
    expected = state_dict_shapes()
    way_out = "convert the weights of TensorFlow's InceptionV3 of 2015-12-05 (torchvision's are others)"
    for key, shape in expected.items():
        if key not in state and not is_optional(key):
            raise UserError(f"The Inception weights lack {key}: {way_out}.")
        if key in state and np.shape(state[key]) != shape:
            found = "x".join(map(str, np.shape(state[key]))) or "a single number"
            wanted = "x".join(map(str, shape)) or "a single number"
            raise UserError(f"The Inception weights' {key} is {found} and should be {wanted}: {way_out}.")
    for key in state:
        if key not in expected:
            raise UserError(f"The Inception weights have {key}, which this network has not: {way_out}.")


@functools.cache
def _units() -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return kernel and bias shapes of every unit by its dotted name, in alphabetical order."""
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    units: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for block, leaves in params.items():
        if "kernel" in leaves:
            units[block] = leaves
        else:
            units |= {f"{block}.{unit}": unit_leaves for unit, unit_leaves in leaves.items()}
    return {name: leaves for name, leaves in units.items() if name != "fc"}


class Inception(nn.Module):
    """InceptionV3 with outputs at six places."""

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """Compute all outputs of images float32 ``[n, 299, 299, 3]``; ``jax.jit`` drops those that are not used.

        Returns:
          ``{"64", "192", "768": [n, d], spatial means after the pools and Mixed_6e; "2048": [n, 2048], the features;
          "logits", "logits_unbiased": [n, 1008]}``, float32.
        """
        taps = {}
        x = Unit(32, (3, 3), stride=2, name="Conv2d_1a_3x3")(x)
        x = Unit(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = Unit(64, (3, 3), padding=(1, 1), name="Conv2d_2b_3x3")(x)
        x = _max_pool(x, stride=2)
        taps["64"] = x.mean(axis=(1, 2))
        x = Unit(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = Unit(192, (3, 3), name="Conv2d_4a_3x3")(x)
        x = _max_pool(x, stride=2)
        taps["192"] = x.mean(axis=(1, 2))
        x = BlockA(pool_features=32, name="Mixed_5b")(x)
        x = BlockA(pool_features=64, name="Mixed_5c")(x)
        x = BlockA(pool_features=64, name="Mixed_5d")(x)
        x = BlockB(name="Mixed_6a")(x)
        x = BlockC(inner_features=128, name="Mixed_6b")(x)
        x = BlockC(inner_features=160, name="Mixed_6c")(x)
        x = BlockC(inner_features=160, name="Mixed_6d")(x)
        x = BlockC(inner_features=192, name="Mixed_6e")(x)
        taps["768"] = x.mean(axis=(1, 2))
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(pool=_avg_pool, name="Mixed_7b")(x)
        x = BlockE(pool=_max_pool, name="Mixed_7c")(x)
        taps["2048"] = x.mean(axis=(1, 2))
        taps["logits_unbiased"], bias = Logits(name="fc")(taps["2048"])
        taps["logits"] = taps["logits_unbiased"] + bias
        return taps


class Unit(nn.Module):
    """Convolution, bias and ReLU; `padding` is of height and width."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[n, H, W, C]`` to ``[n, H', W', features]``."""
        kernel = self.param("kernel", nn.initializers.he_normal(), (*self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return nn.relu(_conv(x, kernel, self.stride, self.padding) + bias)


class Logits(nn.Module):
    """Linear layer of the class logits."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Map features ``[n, d]`` to logits without bias ``[n, 1008]``, and return the bias ``[1008]`` beside them."""
        kernel = self.param("kernel", nn.initializers.he_normal(), (x.shape[-1], NUM_LOGITS))
        bias = self.param("bias", nn.initializers.zeros, (NUM_LOGITS,))
        return jnp.dot(x, kernel, precision="highest"), bias


class BlockA(nn.Module):
    """35x35: 1x1, 5x5, double 3x3 and average pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[n, 35, 35, C]`` to ``[n, 35, 35, 224 + pool_features]``."""
        one = Unit(64, (1, 1), name="branch1x1")(x)
        five = Unit(48, (1, 1), name="branch5x5_1")(x)
        five = Unit(64, (5, 5), padding=(2, 2), name="branch5x5_2")(five)
        double = Unit(64, (1, 1), name="branch3x3dbl_1")(x)
        double = Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        double = Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_3")(double)
        pool = Unit(self.pool_features, (1, 1), name="branch_pool")(_avg_pool(x))
        return jnp.concatenate([one, five, double, pool], axis=-1)


class BlockB(nn.Module):
    """35x35 → 17x17: 3x3, double 3x3 and maximum pool, all with stride 2."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[n, 35, 35, C]`` to ``[n, 17, 17, 480 + C]``."""
        three = Unit(384, (3, 3), stride=2, name="branch3x3")(x)
        double = Unit(64, (1, 1), name="branch3x3dbl_1")(x)
        double = Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        double = Unit(96, (3, 3), stride=2, name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _max_pool(x, stride=2)], axis=-1)


class BlockC(nn.Module):
    """17x17: 1x1, factorised 7x7 and double 7x7, and average pool."""

    inner_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[n, 17, 17, C]`` to ``[n, 17, 17, 768]``."""
        inner = self.inner_features
        one = Unit(192, (1, 1), name="branch1x1")(x)
        seven = Unit(inner, (1, 1), name="branch7x7_1")(x)
        seven = _row_unit(inner, 7, "branch7x7_2")(seven)
        seven = _column_unit(192, 7, "branch7x7_3")(seven)
        double = Unit(inner, (1, 1), name="branch7x7dbl_1")(x)
        double = _column_unit(inner, 7, "branch7x7dbl_2")(double)
        double = _row_unit(inner, 7, "branch7x7dbl_3")(double)
        double = _column_unit(inner, 7, "branch7x7dbl_4")(double)
        double = _row_unit(192, 7, "branch7x7dbl_5")(double)
        pool = Unit(192, (1, 1), name="branch_pool")(_avg_pool(x))
        return jnp.concatenate([one, seven, double, pool], axis=-1)


class BlockD(nn.Module):
    """17x17 → 8x8: 3x3, 7x7 with 3x3, and maximum pool, all with stride 2."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[n, 17, 17, C]`` to ``[n, 8, 8, 512 + C]``."""
        three = Unit(192, (1, 1), name="branch3x3_1")(x)
        three = Unit(320, (3, 3), stride=2, name="branch3x3_2")(three)
        seven = Unit(192, (1, 1), name="branch7x7x3_1")(x)
        seven = _row_unit(192, 7, "branch7x7x3_2")(seven)
        seven = _column_unit(192, 7, "branch7x7x3_3")(seven)
        seven = Unit(192, (3, 3), stride=2, name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _max_pool(x, stride=2)], axis=-1)


class BlockE(nn.Module):
    """8x8: 1x1, 3x3 and double 3x3 that end in parallel 1x3 and 3x1 convolutions, and a pool of stride 1."""

    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[n, 8, 8, C]`` to ``[n, 8, 8, 2048]``."""
        one = Unit(320, (1, 1), name="branch1x1")(x)
        three = Unit(384, (1, 1), name="branch3x3_1")(x)
        three_row = _row_unit(384, 3, "branch3x3_2a")(three)
        three_column = _column_unit(384, 3, "branch3x3_2b")(three)
        double = Unit(448, (1, 1), name="branch3x3dbl_1")(x)
        double = Unit(384, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        double_row = _row_unit(384, 3, "branch3x3dbl_3a")(double)
        double_column = _column_unit(384, 3, "branch3x3dbl_3b")(double)
        pool = Unit(192, (1, 1), name="branch_pool")(self.pool(x))
        return jnp.concatenate([one, three_row, three_column, double_row, double_column, pool], axis=-1)


def _row_unit(features: int, size: int, name: str) -> Unit:
    """Build a unit of 1 x `size` that keeps height and width."""
    return Unit(features, (1, size), padding=(0, size // 2), name=name)


def _column_unit(features: int, size: int, name: str) -> Unit:
    """Build a unit of `size` x 1 that keeps height and width."""
    return Unit(features, (size, 1), padding=(size // 2, 0), name=name)


def _max_pool(x: Array, stride: int = 1) -> Array:
    """Take the maximum over 3x3: unpadded with stride 2, keeping height and width with stride 1."""
    if stride == 1:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return _reduce_threes(_reduce_threes(x, 1, stride, jnp.maximum), 2, stride, jnp.maximum)


def _avg_pool(x: Array) -> Array:
    """Average over 3x3 without counting the padding, keeping height and width."""
    height, width = (np.convolve(np.ones(side), np.ones(3), "same") for side in x.shape[1:3])
    share = np.float32(1.0 / np.multiply.outer(height, width))[:, :, None]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return _reduce_threes(_reduce_threes(x, 1, 1, jnp.add), 2, 1, jnp.add) * share


def _reduce_threes(x: Array, axis: int, stride: int, combine: Callable[[Array, Array], Array]) -> Array:
    """Combine three neighbours along an axis by slices: XLA's CPU backend is 2 to 6 times slower at ``reduce_window``."""
    last = (x.shape[axis] - 3) // stride * stride
    first, second, third = (lax.slice_in_dim(x, i, last + i + 1, stride, axis) for i in range(3))
    return combine(combine(first, second), third)


def _conv(x: Array, kernel: Array, stride: int, padding: tuple[int, int]) -> Array:
    """Convolve at full precision; `padding` of height and width, on both sides."""
    if kernel.shape[:2] == (1, 1):
        return jnp.einsum("nhwi,io->nhwo", x, kernel[0, 0], precision="highest")
    rows = (x.shape[1] + 2 * padding[0] - kernel.shape[0]) // stride + 1
    pads = [(side, side) for side in padding]
    if padding == (0, 0):
        # XLA's CPU backend takes up to four times as long for a convolution without padding as for one with padding:
        # pad by a row below, and cut off the row that this may add to the result.
        pads[0] = (0, 1)
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    return y[:, :rows]
