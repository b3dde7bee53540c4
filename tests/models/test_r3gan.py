"""R3GAN against its definition in NumPy: published sizes, initial values, forward passes, gradients, and the interface."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from biggan_networks import quick_jit, random_variables, shapes
from flax.traverse_util import flatten_dict
from golden_numbers import assert_close

from noisytwins_jax.generation.sample_programs import interpolation_program, quantize, sample_program
from noisytwins_jax.losses.r1 import r1_penalty
from noisytwins_jax.models.latents import Latents
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs
from noisytwins_jax.models.r3gan import Discriminator, Generator, default_cardinality, default_widths
from noisytwins_jax.models.r3gan.architectures import block_gain, stage_dtypes
from noisytwins_jax.models.r3gan.layers import ResidualBlock, grouped_conv3x3, merge_groups
from noisytwins_jax.models.r3gan_model import R3GANModel
from noisytwins_jax.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("fast_compilation")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Z, LABELS = RNG.standard_normal((4, 6)).astype(np.float32), np.arange(4) % 3
IMAGES = RNG.uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
SIZES = {"resolution": 8, "num_classes": 3, "widths": (8, 4), "cardinality": (2, 2)}


def make_generator(**options) -> Generator:
    return Generator(**SIZES | {"z_dim": 6} | options)


def make_discriminator(**options) -> Discriminator:
    return Discriminator(**SIZES | options)


def make_model(**options) -> R3GANModel:
    return R3GANModel(make_generator(**options), make_discriminator(**options))


def model_variables(model) -> tuple[dict, dict]:
    """Random variables, smaller than those of `random_variables` so that activations are of the order of one."""
    networks = (model.generator, Z[:1], LABELS[:1]), (model.discriminator, IMAGES[:1], LABELS[:1])
    return tuple(jax.tree.map(lambda x: 0.3 * x, random_variables(*network)) for network in networks)


def noise(dim) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((4, dim)).astype(np.float32)


PRESETS = {
    "CIFAR-10": (32, 10, default_widths(32), default_cardinality(default_widths(32)), 20_781_952, 21_280_512),
    "ImageNet-32": (32, 1000, (1536,) * 4, (96,) * 4, 82_914_304, 86_548_992),
    "ImageNet-64": (64, 1000, (1536,) * 5, (96,) * 5, 103_570_432, 107_205_120),
    "FFHQ-64": (64, 0, (768,) * 4 + (384,), (96,) * 4 + (48,), 22_429_824, 22_381_440),
    "FFHQ-256": (256, 0, (768,) * 4 + (384, 192, 96), (96,) * 4 + (48, 24, 12), 23_057_952, 23_009_568),
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameters(name):
    resolution, num_classes, widths, cardinality, *counts = PRESETS[name]
    sizes = {
        "resolution": resolution,
        "num_classes": num_classes,
        "widths": widths,
        "cardinality": cardinality,
    }
    labels = jnp.zeros(1, int) if num_classes else None
    generator = shapes(Generator(**sizes), jnp.zeros((1, 64)), labels)
    discriminator = shapes(Discriminator(**sizes), jnp.zeros((1, resolution, resolution, 3)), labels)
    assert [sum(x.size for x in jax.tree.leaves(v)) for v in (generator, discriminator)] == counts


def test_default_sizes_are_the_published():
    for name in ("CIFAR-10", "FFHQ-64", "FFHQ-256"):
        resolution, _, widths, cardinality, *_ = PRESETS[name]
        assert (default_widths(resolution), default_cardinality(widths)) == (widths, cardinality)
    assert default_widths(8, 16) == (16, 16) and default_cardinality((16, 4)) == (2, 1)
    assert block_gain(4, 2) == pytest.approx(0.824567, abs=1e-6)


def test_highest_resolutions_take_the_dtype():
    assert stage_dtypes(5, jnp.bfloat16, 3) == (jnp.float32, jnp.float32, jnp.bfloat16, jnp.bfloat16, jnp.bfloat16)
    assert stage_dtypes(2, jnp.bfloat16, 3) == (jnp.bfloat16,) * 2
    assert stage_dtypes(2, jnp.float64, 1) == (jnp.float64,) * 2


def test_initial_values():
    sizes = {"widths": (64, 32), "cardinality": (8, 4), "num_classes": 40}
    networks = make_generator(**sizes, z_dim=24), make_discriminator(**sizes)
    g, d = (
        flatten_dict(quick_jit(network.init)(KEY, inputs, LABELS[:1])["params"], sep="/")
        for network, inputs in zip(networks, (np.zeros((1, 24), np.float32), IMAGES[:1]), strict=True)
    )
    gain = np.sqrt(2 / 1.04) * 4**-0.25  # four blocks
    blocks = {}
    for resolution, width in ((4, 64), (8, 32)):
        for i in range(2):
            name = f"b{resolution}/block{i}"
            blocks |= {f"{name}/bias1": 0, f"{name}/bias2": 0, f"{name}/conv3/weight": 0}
            blocks[f"{name}/conv1/weight"] = gain / np.sqrt(width)
            blocks[f"{name}/conv2/weight"] = gain / np.sqrt(9 * 16)
    of_generator = {
        "embedding/weight": 1 / np.sqrt(40),
        "linear/weight": 1 / np.sqrt(48),
        "basis": 1,
        "b8/resize/weight": 1 / np.sqrt(64),
        "torgb/weight": 1 / np.sqrt(32),
    }
    of_discriminator = {
        "embedding/weight": 1 / np.sqrt(64 * 40),
        "linear/weight": 1 / np.sqrt(64),
        "pixel_weights": 1 / np.sqrt(16),
        "b8/resize/weight": 1 / np.sqrt(32),
        "fromrgb/weight": 1 / np.sqrt(3),
    }
    for params, others in ((g, of_generator), (d, of_discriminator)):
        assert params.keys() == (blocks | others).keys()
        for name, std in (blocks | others).items():
            value = np.asarray(params[name])
            assert value.dtype == np.float32
            # Five standard errors of the estimate.
            assert np.sqrt(np.square(value).mean()) == pytest.approx(std, rel=5 / np.sqrt(2 * value.size)), name


def test_blocks_start_as_the_identity():
    x = RNG.standard_normal((2, 4, 4, 8)).astype(np.float32)
    block = ResidualBlock(cardinality=2, gain=1.0)
    variables = quick_jit(block.init)(KEY, x)
    np.testing.assert_array_equal(block.apply(variables, x), x)
    assert np.abs(variables["params"]["conv2"]["weight"]).min() > 0


# The definition, pixel by pixel, in float64.


def numpy_conv3x3(x, weight, groups):
    n, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = []
    for inputs, kernel in zip(np.split(padded, groups, axis=3), np.split(weight, groups, axis=3), strict=True):
        y = np.zeros((n, height, width, kernel.shape[3]))
        for i in range(3):
            for j in range(3):
                y += inputs[:, i : i + height, j : j + width] @ kernel[i, j]
        parts.append(y)
    return np.concatenate(parts, axis=3)


def numpy_filter(x, gain, before, after):
    taps = gain * np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    size = padded.shape[1] - 3
    return sum(taps[i, j] * padded[:, i : i + size, j : j + size] for i in range(4) for j in range(4))


def numpy_up(x):
    stuffed = np.zeros((x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]))
    stuffed[:, ::2, ::2] = x
    return numpy_filter(stuffed, 4, 2, 1)


def numpy_down(x):
    return numpy_filter(x, 1, 1, 1)[:, ::2, ::2]


def numpy_blocks(params, x):
    def activate(y):
        return np.where(y > 0, y, 0.2 * y)

    for block in (params["block0"], params["block1"]):
        y = activate(x @ block["conv1"]["weight"][0, 0] + block["bias1"])
        y = activate(numpy_conv3x3(y, block["conv2"]["weight"], 2) + block["bias2"])
        x = x + y @ block["conv3"]["weight"][0, 0]
    return x


def numpy_images(params, z, labels):
    w = np.concatenate([z, params["embedding"]["weight"][labels]], axis=1) if "embedding" in params else z
    x = params["basis"] * (w @ params["linear"]["weight"])[:, None, None]
    x = numpy_blocks(params["b4"], x)
    x = numpy_blocks(params["b8"], numpy_up(x @ params["b8"]["resize"]["weight"][0, 0]))
    return x @ params["torgb"]["weight"][0, 0]


def numpy_logits(params, images, labels):
    x = numpy_blocks(params["b8"], images @ params["fromrgb"]["weight"][0, 0])
    x = numpy_blocks(params["b4"], numpy_down(x) @ params["b8"]["resize"]["weight"][0, 0])
    h = (x * params["pixel_weights"]).sum(axis=(1, 2)) @ params["linear"]["weight"]
    return (h * params["embedding"]["weight"][labels]).sum(axis=1) if "embedding" in params else h[:, 0]


@pytest.mark.parametrize(("num_classes", "up_impl"), [(3, "conv"), (3, "shift"), (0, "conv")])
def test_networks_are_their_definition(num_classes, up_impl):
    model = make_model(num_classes=num_classes, up_impl=up_impl, dtype=jnp.float64)
    with jax.enable_x64(True):
        g, d = jax.tree.map(lambda x: np.asarray(x, np.float64), model_variables(model))
        z, images = Z.astype(np.float64), IMAGES.astype(np.float64)
        assert_close(model.generator.apply(g, z, LABELS), numpy_images(g["params"], z, LABELS), 1e-10)
        logits = model.discriminator.apply(d, images, LABELS).logits
        assert_close(logits, numpy_logits(d["params"], images, LABELS), 1e-10)


def test_grouped_convolutions_have_two_forms():
    x, g = (RNG.standard_normal((2, 4, 4, n)).astype(np.float32) for n in (12, 6))
    weight = RNG.standard_normal((3, 3, 4, 6)).astype(np.float32)
    results = []
    for form in ("conv", "shift"):
        y, transpose = jax.vjp(lambda x, w, form=form: grouped_conv3x3(x, w, 3, form), x, weight)
        results.append((y, *transpose(g)))
    assert_close(results[0][0], numpy_conv3x3(x, weight, 3), 1e-5)
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("together", [2, 3, 6])
def test_groups_convolved_together_are_the_same_convolution(together):
    x = RNG.standard_normal((2, 4, 4, 12)).astype(np.float32)
    weight = RNG.standard_normal((3, 3, 2, 18)).astype(np.float32)
    merged = merge_groups(weight, 6, together)
    assert merged.shape == (3, 3, 2 * together, 18)
    assert_close(numpy_conv3x3(x, np.asarray(merged), 6 // together), numpy_conv3x3(x, weight, 6), 1e-5)


def test_groups_are_convolved_together_on_tpus_alone():
    x, weight = jnp.ones((1, 4, 4, 192)), jnp.ones((3, 3, 16, 192))
    traced = jax.jit(lambda x, w: grouped_conv3x3(x, w, 12)).trace(x, weight)  # 6 of the groups make 96 channels
    for platform, groups in (("tpu", 2), ("cpu", 12), ("cuda", 12)):
        assert f"feature_group_count = {groups} :" in traced.lower(lowering_platforms=(platform,)).as_text(), platform


def test_class_noise_is_added_to_the_embeddings():
    model = make_model()
    g, d = model_variables(model)
    assert model.class_noise_dims == (6, 8) and make_model(num_classes=0).class_noise_dims == (0, 0)
    of_g, of_d = map(noise, model.class_noise_dims)
    inputs = GeneratorInputs(Z, LABELS, of_g, None, None, None, KEY)
    w, conditioning, stats = model.map(g, inputs)
    assert_close(w, np.concatenate([Z, g["params"]["embedding"]["weight"][LABELS] + of_g], axis=1), 1e-6)
    images, low_images, _ = model.synthesize(g, conditioning, KEY)
    assert low_images is None and stats == {}

    def moved(variables, rows):
        """A class for each row, whose embedding is that of its label plus noise."""
        table = variables["params"]["embedding"]["weight"][LABELS] + rows
        return {"params": {**variables["params"], "embedding": {"weight": table}}}

    labels = np.arange(4)
    expected = make_model(num_classes=4).sample(moved(g, of_g), Z, labels, KEY)[0]
    assert_close(images, expected, 1e-5)
    assert np.abs(images - model.sample(g, Z, LABELS, KEY)[0]).max() > 1e-2 * np.abs(images).max()
    logits = model.discriminate(d, DiscriminatorInputs(IMAGES, LABELS, of_d))[0].logits
    plain = DiscriminatorInputs(IMAGES, labels, 0 * of_d)
    in_units = of_d / np.sqrt(8)  # of the embedding's own initial size
    assert_close(logits, make_model(num_classes=4).discriminate(moved(d, in_units), plain)[0].logits, 1e-5)


def test_one_pass_over_both_is_two_passes():
    model = make_model()
    _, d = model_variables(model)
    real = DiscriminatorInputs(IMAGES, LABELS, noise(8), dropout=KEY)
    fake = DiscriminatorInputs(-IMAGES, 2 - LABELS, -noise(8), dropout=KEY)
    *both, stats = model.discriminate_both(d, real, fake)
    assert stats == {}
    for output, inputs in zip(both, (real, fake), strict=True):
        assert_close(output.logits, model.discriminate(d, inputs)[0].logits, 1e-5)


def test_samples_between_classes():
    model = make_model()
    g, _ = model_variables(model)
    ends = np.stack([LABELS, (LABELS + 1) % 3], axis=1)

    def between(t):
        return model.sample_between(g, Z, ends, jnp.full(4, t), KEY)

    for i in (0, 1):  # not compiled, so that rounding is the same
        images, w = model.sample(g, Z, ends[:, i], KEY)
        np.testing.assert_array_equal(between(float(i)), images)
        np.testing.assert_array_equal(w, model.latent_w(g, Z, ends[:, i]))
    table = g["params"]["embedding"]["weight"]
    embedding = 0.75 * table[ends[:, 0]] + 0.25 * table[ends[:, 1]]
    expected = model.generator.apply(g, np.concatenate([Z, embedding], axis=1), method="synthesize")
    assert_close(between(0.25), expected, 1e-5)


def test_programs_of_samplers():
    model = make_model(up_impl="shift")
    g, _ = model_variables(model)
    latents, labels, indices = Latents(6), jnp.array([0, 2, 1]), jnp.arange(3)
    images, w = sample_program(model, latents)(g, None, np.uint32(0), labels, indices)
    assert images.shape == (3, 8, 8, 3) and images.dtype == jnp.uint8 and w.shape == (3, 12)
    expected = np.asarray(quantize(model.generator.apply(g, w, method="synthesize")), int)
    assert np.abs(expected - images).max() <= 1
    pairs = jnp.stack([labels, labels[::-1]], axis=1), jnp.stack([indices, indices[::-1]], axis=1)
    program = interpolation_program(model, latents)
    found = np.asarray(program(g, None, np.uint32(0), *pairs, jnp.zeros(3)), int)
    assert np.abs(found - images).max() <= 1


def test_penalties_on_gradients_reach_every_weight():
    """R1 and R2: without a bias before the logits, all of the discriminator but its activations' biases has a gradient."""
    model = make_model()
    _, d = model_variables(model)
    assert model.parameters_without_r1 == ()

    def penalty(variables, network):
        return r1_penalty(lambda x: network.apply(variables, x, LABELS).logits, IMAGES)[0]

    plain, other = (
        flatten_dict(quick_jit(jax.grad(lambda v, network=network: penalty(v, network)))(d)["params"])
        for network in (make_discriminator(), make_discriminator(remat=True, up_impl="shift"))
    )
    for path, gradient in plain.items():
        assert np.isfinite(gradient).all()
        if "bias" in path[-1]:
            assert not np.asarray(gradient).any()  # the leaky ReLU is linear on either side
        else:
            assert np.abs(gradient).max() > 0
            assert_close(other[path], gradient, 1e-4)


def test_gradients_of_generated_images_reach_every_parameter():
    model = make_model()
    g, d = model_variables(model)

    def loss(variables):
        images = model.generator.apply(variables, Z, LABELS)
        return r1_penalty(lambda x: model.discriminator.apply(d, x, LABELS).logits, images)[1].sum()

    for gradient in jax.tree.leaves(quick_jit(jax.grad(loss))(g)):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize("half_resolutions", [1, 3])
def test_bfloat16_keeps_everything_but_activations(half_resolutions):
    g, d = model_variables(make_model())
    results = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = make_model(dtype=dtype, half_resolutions=half_resolutions)

        def forward(g, d, model=model):
            images = model.generator.apply(g, Z, LABELS)
            return images, model.discriminator.apply(d, IMAGES, LABELS).logits

        results.append(quick_jit(forward)(g, d))
    for a, b, shape in zip(*results, ((4, 8, 8, 3), (4,)), strict=True):
        assert a.dtype == b.dtype == jnp.float32 and a.shape == b.shape == shape
        error = np.abs(a - b) / np.abs(a).max()
        assert 0 < error.mean() < 0.05
    parameters = jax.eval_shape(lambda: model.init(KEY))
    assert {x.dtype for x in jax.tree.leaves(parameters)} == {jnp.dtype("float32")}
    assert jax.tree.structure(parameters) == jax.tree.structure((g, d))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 12}, "no networks for 12 px; give a power of two from 4"),
        ({"resolution": 16}, "has 3 stages, and widths has 2 values"),
        ({"cardinality": (2,)}, "has 2 stages, and cardinality has 1 values"),
        ({"cardinality": (2, 3)}, "3 does not divide the 8 channels of the 3×3 convolutions of a stage of width 4"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    for network, inputs in ((make_generator(**options), Z[:1]), (make_discriminator(**options), IMAGES[:1])):
        with pytest.raises(UserError, match=message):
            shapes(network, inputs, LABELS[:1])
