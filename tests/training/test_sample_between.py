"""Images between two classes: the classes' own at the ends, and what conditions them between them in the middle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from biggan_networks import quick_jit, random_variables

from noisytwins_jax.models import biggan, stylegan2
from noisytwins_jax.models.biggan_model import BigGANModel
from noisytwins_jax.models.model import lerp
from noisytwins_jax.models.stylegan2 import truncate
from noisytwins_jax.models.stylegan2_model import StyleGAN2Model

N, KEY = 3, jax.random.key(5)
Z = np.random.default_rng(0).standard_normal((N, 8)).astype(np.float32)
LABELS = np.array([[0, 1], [2, 0], [1, 1]])


def stylegan2_model(low=0):
    sizes = {"resolution": 8, "channels": 1, "num_classes": 3, "channel_base": 64, "channel_max": 8}
    generator = stylegan2.Generator(**sizes, z_dim=8, w_dim=8, mapping_layers=1, low_resolution=low)
    model = StyleGAN2Model(generator, stylegan2.Discriminator(**sizes, mapping_layers=1, low_resolution=low))
    variables = random_variables(generator, Z[:1], LABELS[:1, 0], None, None, "const")
    # The mapping's own gain is 1/100.
    variables["params"]["mapping"] = jax.tree.map(lambda x: 100 * x, variables["params"]["mapping"])
    return model, variables


def biggan_model(**options):
    sizes = {"resolution": 8, "channels": 1, "num_classes": 3}
    generator = biggan.Generator(**sizes, z_dim=8, width=4, embedding_dim=5, **options)
    return BigGANModel(generator, biggan.Discriminator(**sizes, width=4)), random_variables(
        generator, Z[:1], LABELS[:1, 0]
    )


MODELS = {
    "stylegan2": stylegan2_model,
    "utlo": lambda: stylegan2_model(low=4),
    "biggan": biggan_model,
    "biggan deep": lambda: biggan_model(deep=True),
    "class tables": lambda: biggan_model(shared_embedding=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_ends_are_the_classes(name):
    model, variables = MODELS[name]()
    rows, labels = np.tile(Z, (2, 1)), LABELS.T.reshape(-1)
    noiseless = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if "noise_strength" in jax.tree_util.keystr(path) else x, variables
    )
    sample = quick_jit(lambda: model.sample(noiseless, rows, labels, KEY)[0])
    made = quick_jit(lambda t: model.sample_between(noiseless, Z, LABELS, t, KEY))
    first, second = np.split(np.asarray(sample()), 2)
    scale = np.abs(first).max()
    for t, expected in ((0.0, first), (1.0, second), (np.array([0.0, 1.0, 0.3]), [first[0], second[1], first[2]])):
        images = np.asarray(made(jnp.full(N, t, jnp.float32)))
        np.testing.assert_allclose(images, expected, atol=1e-4 * scale)
    middle = np.asarray(made(jnp.full(N, 0.5)))
    assert all(np.abs(middle[:2] - x[:2]).max() > 1e-2 * scale for x in (first, second))


def test_biggan_takes_the_embedding_on_the_line():
    model, variables = biggan_model()
    table = variables["params"]["shared"]["weight"]
    embedding = 0.75 * table[LABELS[:, 0]] + 0.25 * table[LABELS[:, 1]]
    images, expected = quick_jit(
        lambda: (
            model.sample_between(variables, Z, LABELS, jnp.full(N, 0.25), KEY),
            model.generator.apply(variables, Z, embedding, method="synthesize"),
        )
    )()
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_stylegan2_takes_w_on_the_line_and_truncates_it():
    model, variables = stylegan2_model()

    @quick_jit
    def both():
        first, second = (model.latent_w(variables, Z, LABELS[:, i]) for i in (0, 1))
        w = truncate(0.75 * first + 0.25 * second, variables["buffers"]["mapping"]["w_avg"], 0.3)
        ws = model.generator.apply(variables, w, method="broadcast")
        images = model.sample_between(variables, Z, LABELS, jnp.full(N, 0.25), KEY, 0.3)
        return images, model.generator.apply(variables, ws, method="synthesize", rngs={"noise": KEY})

    images, expected = both()
    np.testing.assert_allclose(images, expected, atol=1e-4 * np.abs(expected).max())


def test_between_is_exact_at_its_ends():
    a, b = np.random.default_rng(1).standard_normal((2, 4, 2, 3)).astype(np.float32) * 1e3
    np.testing.assert_array_equal(lerp(a, b, jnp.zeros(4)), a)
    np.testing.assert_array_equal(lerp(a, b, jnp.ones(4)), b)
    np.testing.assert_allclose(lerp(a, b, jnp.array([0.0, 0.5, 1.0, 0.5]))[1], (a[1] + b[1]) / 2, rtol=1e-6)
