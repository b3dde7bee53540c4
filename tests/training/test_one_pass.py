"""One pass of the discriminator over real and generated images says what two passes say, and costs no communication."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noisytwins_jax.models.model import DiscriminatorInputs
from noisytwins_jax.models.stylegan2 import Discriminator, Generator
from noisytwins_jax.models.stylegan2_model import StyleGAN2Model

pytestmark = pytest.mark.usefixtures("fast_compilation")

N, GROUP, LOW = 8, 4, 4


def model(group=GROUP, heads="projection"):
    sizes = {"resolution": 8, "channels": 1, "num_classes": 3, "channel_base": 64, "channel_max": 16}
    generator = Generator(**sizes, z_dim=8, w_dim=8, mapping_layers=1, low_resolution=LOW)
    return StyleGAN2Model(
        generator, Discriminator(**sizes, mbstd_group_size=group, mapping_layers=1, heads=heads, low_resolution=LOW)
    )


def inputs(seed, networks, n=N):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=(n, 8, 8, 1)), jnp.float32)
    noise = jnp.asarray(rng.normal(size=(n, networks.discriminator.embedding_dim)), jnp.float32)
    return DiscriminatorInputs(images, jnp.asarray(rng.integers(0, 3, n)), noise, networks.low_images(images))


HEADS, GROUPS = ("projection", "transitional", "embedding"), (1, GROUP, 2 * N)


@pytest.mark.parametrize(
    "group, heads",
    [
        pytest.param(group, heads, marks=[] if i == j else pytest.mark.slow)
        for i, group in enumerate(GROUPS)
        for j, heads in enumerate(HEADS)
    ],
)
def test_says_what_two_passes_say(group, heads):
    networks = model(group, heads)
    real, fake = inputs(0, networks), inputs(1, networks)

    @jax.jit
    def said():
        variables = networks.init(jax.random.key(0))[1]
        two = [networks.discriminate(variables, shown)[0] for shown in (real, fake)]
        return two, networks.discriminate_both(variables, real, fake)

    two, (*one, stats) = said()
    assert stats == {}
    for expected, found in zip(two, one, strict=True):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    assert np.abs(two[0].logits - two[1].logits).max() > 1e-2  # real and generated are told apart
