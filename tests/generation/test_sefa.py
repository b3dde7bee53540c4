"""SeFa's directions: against the singular value decomposition, and by what they do to the styles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noisytwins_jax.generation.sefa import directions, style_weights
from noisytwins_jax.models.stylegan2 import Generator
from noisytwins_jax.utils.errors import UserError

GENERATOR = Generator(16, 1, num_classes=3, z_dim=6, w_dim=7, mapping_layers=1, channel_base=128, channel_max=10)


@pytest.fixture(scope="module")
def variables():
    labels = jnp.zeros((1,), jnp.int32)
    shapes = jax.eval_shape(lambda: GENERATOR.init(jax.random.key(0), jnp.zeros((1, 6)), labels, noise_mode="const"))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), shapes)


@jax.jit
def affine_maps(variables, ws):
    def is_affine(module, _):
        return module.name == "affine"

    return GENERATOR.apply(variables, ws, "none", method="synthesize", capture_intermediates=is_affine)[1]


def styles(variables, ws):
    """What the affine map of every modulated convolution gives, from 4 px up."""
    seen = affine_maps(variables, ws)["intermediates"]["synthesis"]
    names = [("b4", "conv1"), ("b8", "conv0"), ("b8", "conv1"), ("b16", "conv0"), ("b16", "conv1")]
    return [np.asarray(seen[block][conv]["affine"]["__call__"][0], np.float64) for block, conv in names]


@pytest.mark.parametrize("layers", [None, [0], [1, 3]])
def test_directions_are_the_right_singular_vectors(variables, layers):
    found, strengths = directions(variables, layers, count=4)
    weights = style_weights(variables)
    assert [w.shape for w in weights] == [(10, 7), (10, 7), (10, 7), (10, 7), (8, 7)]
    affine = np.concatenate([weights[i] for i in layers or range(5)])
    _, values, vectors = np.linalg.svd(affine)
    np.testing.assert_allclose(strengths, values[:4], rtol=1e-9)
    np.testing.assert_allclose(np.abs((found * vectors[:4]).sum(axis=1)), 1.0, atol=1e-9)
    np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-12)
    assert (found.max(axis=1) == np.abs(found).max(axis=1)).all()  # the sign


@pytest.mark.parametrize("layers", [None, [0], [1, 3]])
def test_strength_is_the_change_of_the_styles(variables, layers):
    chosen = list(range(5)) if layers is None else layers
    found, strengths = directions(variables, layers, count=7)
    ws = np.random.default_rng(1).standard_normal((1, GENERATOR.num_ws, 7)).astype(np.float32)
    before = styles(variables, ws)
    for direction, strength in zip(found, strengths, strict=True):
        edited = ws.copy()
        edited[:, chosen] += direction
        changes = [np.linalg.norm(b - a) for a, b in zip(before, styles(variables, edited), strict=True)]
        np.testing.assert_allclose(np.linalg.norm([changes[i] for i in chosen]), strength, rtol=1e-4, atol=1e-5)
        assert max((changes[i] for i in range(5) if i not in chosen), default=0.0) == 0.0
    assert (np.diff(strengths) <= 0).all() and strengths[0] > 1.5 * strengths[-1]


def test_errors(variables):
    with pytest.raises(UserError, match="no modulated convolution 5; they are 0 to 4"):
        directions(variables, [0, 5])
    with pytest.raises(UserError, match="no layers"):
        directions(variables, [])
    for count in (0, 8):
        with pytest.raises(UserError, match="7 dimensions"):
            directions(variables, count=count)
    with pytest.raises(UserError, match="StyleGAN2"):
        directions({"params": {"shared": {}}})
