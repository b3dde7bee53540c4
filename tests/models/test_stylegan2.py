"""StyleGAN2 networks beyond the reference sets: every architecture, size and dtype they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close

from noisytwins_jax.models.stylegan2 import Discriminator, Generator

SMALL = {"channel_base": 64, "channel_max": 8}


def init_generator(**options):
    """A small generator of three classes: its variables, and its images from (z, labels) with fixed per-pixel noise."""
    generator = Generator(**(SMALL | {"z_dim": 6, "w_dim": 5, "mapping_layers": 2, "num_classes": 3} | options))
    labels = jnp.zeros((1,), jnp.int32)
    shapes = jax.eval_shape(lambda: generator.init(jax.random.key(0), jnp.zeros((1, 6)), labels, noise_mode="const"))
    rng = np.random.default_rng(0)  # drawing initial values in JAX would take longer to compile than the network
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), shapes)
    return variables, jax.jit(lambda v, z, y: generator.apply(v, z, y, noise_mode="const"))


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("resolution, channels", [(8, 1), (32, 3)])
def test_shapes(architecture, resolution, channels):
    options = {"resolution": resolution, "channels": channels, "architecture": architecture, **SMALL}
    generator = Generator(**options, num_classes=7, z_dim=6, w_dim=5)
    discriminator = Discriminator(**options, num_classes=7, mbstd_group_size=2)

    def forward(key):
        z, labels = jnp.zeros((4, 6)), jnp.arange(4)
        variables = generator.init(key, z, labels, noise_mode="const")
        images = generator.apply(variables, z, labels, psi=0.5, rngs={"noise": key})
        return images, discriminator.apply(discriminator.init(key, images, labels), images, labels).logits

    images, logits = jax.eval_shape(forward, jax.random.key(0))
    assert images.shape == (4, resolution, resolution, channels) and images.dtype == jnp.float32
    assert logits.shape == (4,)


def test_unconditional_networks():
    generator = Generator(8, 1, num_classes=0, z_dim=6, w_dim=5, **SMALL)
    discriminator = Discriminator(8, 1, num_classes=0, mbstd_group_size=1, **SMALL)

    def forward(key):
        variables = generator.init(key, jnp.zeros((1, 6)), None, noise_mode="const")
        images = generator.apply(variables, jnp.ones((2, 6)), None, noise_mode="const")
        return variables, discriminator.apply(discriminator.init(key, images, None), images, None).logits

    variables, logits = jax.eval_shape(forward, jax.random.key(0))
    assert "embed" not in variables["params"]["mapping"] and logits.shape == (2,)


@pytest.mark.parametrize("architecture", ["resnet", "skip"])
def test_both_formulations_make_the_same_images(architecture):
    with jax.enable_x64(True):
        images = {}
        for impl in ("conv", "shift"):
            options = {"architecture": architecture, "up_impl": impl, "dtype": jnp.float64}
            variables, generate = init_generator(resolution=8, channels=1, **options)
            images[impl] = generate(variables, jax.random.normal(jax.random.key(1), (3, 6)), jnp.arange(3))
        assert_close(images["conv"], images["shift"], 1e-12)


def test_bfloat16_stays_near_float32_and_keeps_its_parameters():
    z, labels = jax.random.normal(jax.random.key(1), (4, 6)), jnp.arange(4) % 3
    images = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        variables, generate = init_generator(resolution=8, channels=3, dtype=dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        images[dtype] = generate(variables, z, labels)
        assert images[dtype].dtype == jnp.float32
    error = np.abs(images[jnp.bfloat16] - images[jnp.float32]).max() / np.abs(images[jnp.float32]).max()
    assert 0 < error < 0.03


def test_a_generated_image_depends_on_nothing_else_in_its_batch():
    variables, generate = init_generator(resolution=8, channels=1)
    z, labels = jax.random.normal(jax.random.key(1), (4, 6)), jnp.arange(4) % 3
    whole = generate(variables, z, labels)
    other = generate(variables, z.at[:2].set(0.0), labels.at[3].set(1))
    assert_close(other[2], whole[2], 1e-6)


def test_unknown_noise_mode_is_refused():
    generator = Generator(8, 1, num_classes=3, z_dim=6, w_dim=5, **SMALL)
    with pytest.raises(ValueError, match="noise_mode"):
        labels = jnp.zeros((1,), jnp.int32)
        jax.eval_shape(
            lambda key: generator.init(key, jnp.zeros((1, 6)), labels, noise_mode="fixed"), jax.random.key(0)
        )
