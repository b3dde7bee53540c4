"""BigGAN beyond the reference sets: published sizes, initial values, and every option."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from biggan_networks import quick_jit, random_variables, shapes
from flax.traverse_util import flatten_dict
from golden_numbers import assert_close

from noisytwins_jax.losses.r1 import r1_penalty
from noisytwins_jax.models.biggan import Discriminator, Generator, default_z_dim
from noisytwins_jax.models.biggan.architectures import discriminator_blocks, generator_blocks
from noisytwins_jax.models.biggan.attention import SelfAttention
from noisytwins_jax.models.biggan.batch_norm import BatchNorm
from noisytwins_jax.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("fast_compilation")

Z, LABELS = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32), np.arange(4) % 3
MOVED = ["spectral", "batch_stats"]


def make_generator(**options) -> Generator:
    return Generator(**{"resolution": 8, "num_classes": 3, "z_dim": 8, "width": 4, "embedding_dim": 5} | options)


def make_discriminator(**options) -> Discriminator:
    return Discriminator(**{"resolution": 8, "num_classes": 3, "width": 8} | options)


def count_generator(resolution, deep=False, z_dim=None, **options) -> int:
    z_dim = z_dim or default_z_dim(resolution, deep)
    options = {"num_classes": 1000, "width": 128 if deep else 96} | options
    generator = Generator(resolution=resolution, deep=deep, z_dim=z_dim, **options)
    params = shapes(generator, jnp.zeros((1, z_dim)), jnp.zeros(1, int))["params"]
    return sum(x.size for x in jax.tree.leaves(params))


def count_discriminator(resolution, deep=False, **options) -> int:
    options = {"num_classes": 1000, "width": 128 if deep else 96} | options
    discriminator = Discriminator(resolution=resolution, deep=deep, **options)
    params = shapes(discriminator, jnp.zeros((1, resolution, resolution, 3)), jnp.zeros(1, int))["params"]
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("resolution", "options", "count"),
    [
        (32, {"num_classes": 10}, 9_416_196),  # StudioGAN
        (32, {"z_dim": 128, "attention": False}, 9_487_619),  # BigGAN-PyTorch
        (64, {"z_dim": 120}, 70_377_348),  # BigGAN-PyTorch
        (128, {}, 70_433_988),
        (256, {}, 82_097_604),
        (512, {}, 82_468_068),
        (512, {"z_dim": 128}, 82_296_804),  # as released
        (128, {"deep": True}, 50_244_484),
        (128, {"deep": True, "wide_rgb": True}, 50_388_609),  # as released; likewise below
        (256, {"deep": True}, 55_736_708),
        (256, {"deep": True, "wide_rgb": True}, 55_880_833),
        (512, {"deep": True}, 56_019_780),
        (512, {"deep": True, "wide_rgb": True}, 56_163_905),
    ],
)
def test_parameters_of_the_generator(resolution, options, count):
    assert count_generator(resolution, **options) == count


@pytest.mark.parametrize(
    ("resolution", "options", "count"),
    [
        (32, {"num_classes": 10}, 2_415_170),
        (64, {"attention": False}, 45_500_449),
        (128, {}, 87_982_370),
        (256, {}, 99_225_890),
        (512, {}, 99_401_282),
        (128, {"deep": True}, 34_590_210),
        (256, {"deep": True}, 38_247_426),
        # Two blocks of 128 channels more: 1×1 to 32, twice 3×3, 1×1 back.
        (512, {"deep": True}, 38_247_426 + 2 * (129 * 32 + 2 * (9 * 32 + 1) * 32 + 33 * 128)),
    ],
)
def test_parameters_of_the_discriminator(resolution, options, count):
    assert count_discriminator(resolution, **options) == count


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256, 512])
def test_blocks_double_and_halve_the_resolution(resolution, deep):
    up, down = (make(resolution, deep, True) for make in (generator_blocks, discriminator_blocks))
    assert [b.resolution for b in up if b.resample] == [2**i for i in range(3, resolution.bit_length())]
    halved = [b.resolution for b in down if b.resample]
    assert halved == [resolution >> i for i in range(1, len(halved) + 1)]
    assert down[-1].resolution == (8 if resolution == 32 else 4)
    for blocks in (up, down):
        assert all(a.out_channels == b.in_channels for a, b in itertools.pairwise(blocks))
        attended = {b.resolution for b in blocks if b.attention}
        special = {8: set(), 256: {128} if blocks is up and not deep else {64}}
        assert attended == special.get(resolution, {min(resolution // 2, 64)})
    assert default_z_dim(resolution, deep) == (128 if deep else 20 * (len(up) + 1))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("resolution", "channels"), [(8, 1), (16, 3)])
def test_shapes(resolution, channels, deep):
    generator = make_generator(resolution=resolution, channels=channels, deep=deep, z_dim=12)
    discriminator = make_discriminator(resolution=resolution, channels=channels, deep=deep)

    def forward(key):
        z = jnp.zeros((4, 12))
        images = generator.apply(generator.init(key, z, LABELS), z, LABELS)
        variables = discriminator.init(key, images, LABELS)
        return images, discriminator.apply(variables, images, LABELS)

    images, found = jax.eval_shape(forward, jax.random.key(0))
    assert images.shape == (4, resolution, resolution, channels) and images.dtype == jnp.float32
    assert found.logits.shape == (4,) and found.conditional_logits is None


@pytest.mark.parametrize("deep", [False, True])
def test_weights_start_orthogonal_and_biases_zero(deep):
    key, image = jax.random.key(0), jnp.zeros((1, 8, 8, 3))
    g = quick_jit(make_generator(deep=deep, attention=(8,)).init)(key, Z[:1], LABELS[:1])
    d = quick_jit(make_discriminator(deep=deep).init)(key, image, LABELS[:1])
    for variables in (g, d):
        for path, value in flatten_dict(variables["params"]).items():
            value = np.asarray(value)
            assert value.dtype == np.float32
            if path[-1] == "weight":
                matrix = value.reshape(-1, value.shape[-1])
                singular = np.linalg.svd(matrix, compute_uv=False)
                assert_close(singular, np.ones_like(singular), 1e-5)
            else:
                assert (value == (path == ("output_bn", "gain"))).all()
        lengths = [np.linalg.norm(u) for u in jax.tree.leaves(variables["spectral"])]
        assert_close(lengths, np.ones(len(lengths)), 1e-5)
    weights = [path[:-1] for path in flatten_dict(g["params"]) if path[-1] == "weight"]
    assert {path[:-1] for path in flatten_dict(g["spectral"])} == set(weights) - {("shared",)}
    assert "embed" in d["spectral"]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"shared_embedding": False},
        {"skip_z": False},
        {"shared_embedding": False, "skip_z": False},
        {"spectral_norm": False},
        {"wide_rgb": True},
    ],
)
def test_options_of_the_generator(options, deep):
    generator = make_generator(**options, deep=deep, attention=False)
    variables = random_variables(generator, Z[:1], LABELS[:1])

    def generate(z, labels):
        return generator.apply(variables, z, labels, train=True, update_stats=True, mutable=MOVED)[0]

    generate = quick_jit(generate)
    images = generate(Z, LABELS)
    assert images.shape == (4, 8, 8, 3) and np.isfinite(images).all() and np.abs(images).max() <= 1
    assert np.abs(generate(-Z, LABELS) - images).max() > 1e-3 < np.abs(generate(Z, 2 - LABELS) - images).max()
    params = variables["params"]
    assert ("shared" in params) == options.get("shared_embedding", True)
    assert ("spectral" in variables) == options.get("spectral_norm", True)
    assert params["output_conv"]["weight"].shape[-1] == (4 if "wide_rgb" in options else 3)
    bn = params["blocks_0"]["bn1"]
    latents = 0 if not options.get("skip_z", True) else 8 if deep else 4
    if "shared_embedding" in options:
        assert bn["gain_table"]["weight"].shape[0] == 3
        assert "gain_table" not in variables["spectral"]["blocks_0"].get("bn1", {})
        assert ("gain" in bn) == (latents > 0)
    else:
        assert bn["gain"]["weight"].shape[0] == 5 + latents


def test_embed_and_synthesize_are_the_call():
    generator = make_generator(attention=False)
    variables = random_variables(generator, Z[:1], LABELS[:1])
    noise = 0.1 * np.ones((4, 5), np.float32)
    embedding = generator.apply(variables, LABELS, noise, method="embed")
    assert_close(embedding, variables["params"]["shared"]["weight"][LABELS] + noise, 1e-6)
    images = generator.apply(variables, Z, embedding, method="synthesize")
    assert_close(generator.apply(variables, Z, LABELS, noise), images, 1e-6)
    one_hot = make_generator(shared_embedding=False).apply({}, LABELS, method="embed")
    assert_close(one_hot, np.eye(3)[LABELS], 0)


def test_statistics_change_only_with_update_stats():
    generator = make_generator(attention=False)
    variables = random_variables(generator, Z[:1], LABELS[:1])

    def moved(**options):
        return generator.apply(variables, Z, LABELS, mutable=MOVED, **options)[1]

    for options in ({}, {"train": True}):
        jax.tree.map(np.testing.assert_array_equal, moved(**options), {name: variables[name] for name in MOVED})
    found = moved(update_stats=True)  # outside training there are no batch statistics
    jax.tree.map(np.testing.assert_array_equal, found["batch_stats"], variables["batch_stats"])
    found = moved(train=True, update_stats=True)
    for name in MOVED:
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), found[name], variables[name])))


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_batch_norm(decay):
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 2)).astype(np.float32) * [1, 2] + [10, 0]
    x, gain = x.astype(np.float32), np.array([2.0, 3.0], np.float32)
    old = {"mean": np.array([1.0, 2.0], np.float32), "var": np.array([3.0, 4.0], np.float32)}
    variables = {"params": {"gain": gain, "bias": np.array([0.0, 1.0], np.float32)}, "batch_stats": old}
    y, moved = BatchNorm(1e-4, decay).apply(variables, x, True, True, mutable=["batch_stats"])
    statistics = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
    expected = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-4) * gain + [0, 1]
    assert_close(y, expected, 1e-5)
    for name, batch in statistics.items():
        assert_close(moved["batch_stats"][name], decay * old[name] + (1 - decay) * batch, 1e-6)
    stored = BatchNorm(1e-4, decay).apply(variables, x, False, False)
    assert_close(stored, (x - old["mean"]) / np.sqrt(old["var"] + 1e-4) * gain + [0, 1], 1e-5)


@pytest.mark.parametrize("deep", [False, True])
def test_bfloat16_keeps_everything_but_activations(deep):
    images = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        generator = make_generator(deep=deep, dtype=dtype, attention=(8,))
        variables = random_variables(generator, Z[:1], LABELS[:1])
        forward = quick_jit(lambda v, g=generator: g.apply(v, Z, LABELS, train=True, update_stats=True, mutable=MOVED))
        images[dtype], moved = forward(variables)
        assert {x.dtype for x in jax.tree.leaves((variables, moved, images[dtype]))} == {jnp.dtype("float32")}
    error = np.abs(images[jnp.bfloat16] - images[jnp.float32])
    assert error.max() > 0 and error.mean() < 0.05
    discriminator = make_discriminator(deep=deep, dtype=jnp.bfloat16, attention=(4,))
    variables = random_variables(discriminator, images[jnp.float32][:1], LABELS[:1])
    discriminate = quick_jit(lambda v, x: discriminator.apply(v, x, LABELS, True, mutable=["spectral"]))
    found, moved = discriminate(variables, images[jnp.float32])
    assert {x.dtype for x in jax.tree.leaves((variables, moved, found))} == {jnp.dtype("float32")}


def test_dropout_is_of_features_in_training():
    discriminator = make_discriminator(dropout=0.5, attention=False)
    images = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    variables = random_variables(discriminator, images[:1], LABELS[:1])

    def logits(**options):
        return discriminator.apply(variables, images, LABELS, **options).logits

    h = discriminator.apply(variables, images, method="features")
    assert h.shape == (4, 16) and (h >= 0).all()
    dropped = [logits(train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-3
    assert_close(make_discriminator(attention=False).apply(variables, images, LABELS, train=True).logits, logits(), 0)


@pytest.mark.parametrize("deep", [False, True])
def test_r1_reaches_every_weight_of_the_discriminator(deep):
    discriminator = make_discriminator(deep=deep, attention=(4,))
    images = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    variables = random_variables(discriminator, images[:1], LABELS[:1])

    def penalty(params):
        v = {**variables, "params": params}
        return r1_penalty(lambda x: discriminator.apply(v, x, LABELS).logits, images)[0]

    gradients = flatten_dict(quick_jit(jax.grad(penalty))(variables["params"]))
    assert all(np.isfinite(g).all() for g in gradients.values())
    assert all(np.abs(g).max() > 0 for path, g in gradients.items() if path[-1] == "weight")


def test_attention():
    """Against its definition, pixel by pixel; and it can be differentiated twice."""
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 8)).astype(np.float32)
    layer = SelfAttention(None)
    variables = random_variables(layer, x, False)
    of = {name: value["weight"][0, 0] for name, value in variables["params"].items() if name != "gamma"}

    def pool(y):
        return y.reshape(2, 2, 2, 2, 2, -1).max(axis=(2, 4)).reshape(2, 4, -1)

    queries = (x @ of["theta"]).reshape(2, 16, 1)
    scores = np.exp(queries @ pool(x @ of["phi"]).transpose(0, 2, 1))
    shares = scores / scores.sum(axis=-1, keepdims=True)
    found = (shares @ pool(x @ of["g"])) @ of["o"]
    expected = x + variables["params"]["gamma"] * found.reshape(x.shape)
    assert_close(layer.apply(variables, x, False), expected, 1e-5)

    def penalty(x):
        return jnp.square(jax.grad(lambda x: layer.apply(variables, x, False).sum())(x)).sum()

    direction, step = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32), 1e-6
    with jax.enable_x64(True):
        wide, along = x.astype(np.float64), direction.astype(np.float64)
        variables = jax.tree.map(lambda v: np.asarray(v, np.float64), variables)
        slope = (penalty(wide + step * along) - penalty(wide - step * along)) / (2 * step)
        assert_close((jax.grad(penalty)(jnp.asarray(wide)) * along).sum(), slope, 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 48}, "no networks for 48 px; choose among 8, 16, 32"),
        ({"z_dim": 9}, "z_dim=9 does not make 2 equal chunks"),
        ({"attention": (64,)}, "no block at 64 px for attention to follow; choose among 4, 8"),
        ({"deep": True, "width": 6}, "a multiple of 4 as width, not 6"),
        ({"width": 1}, "at least 8 channels, not 4"),
        ({"wide_rgb": True, "width": 2}, "an image of 3 channels from width=2"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(UserError, match=message) as error:
        shapes(make_generator(**{"attention": (4, 8)} | options), Z[:1], LABELS[:1])
    assert str(error.value)[-1] == "."
