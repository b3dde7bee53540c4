"""Orthogonal regularisation against the official implementation, and what it acts on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close
from loss_contexts import generator_context, jit

from noisytwins_jax.losses.orthogonal import Orthogonal, filters, orthogonal_penalty
from noisytwins_jax.models.biggan import Generator as BigGAN
from noisytwins_jax.models.stylegan2 import Generator

STRENGTH = 1e-4  # of the reference numbers


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_penalty_and_gradient(name):
    golden = Golden("biggan_spectral_norm")
    last = np.moveaxis(golden[f"in/{name}/W"], 0, -1)  # filters first to filters last
    value, gradient = jit(jax.value_and_grad(lambda w: STRENGTH * orthogonal_penalty(w)))(last)
    gradient = np.moveaxis(gradient, -1, 0)
    assert_close(value, golden[f"out/{name}/ortho_true_loss"], 1e-6)
    assert_close(gradient, golden[f"out/{name}/ortho_true_grad"], 2e-6)
    assert_close(gradient / 2, golden[f"out/{name}/ortho_update"], 2e-6)  # the release adds half of it


def test_filters_may_have_any_length():
    rows, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 4)))
    lengths = np.array([0.1, 1.0, 5.0, 20.0])
    assert float(jit(orthogonal_penalty)((rows * lengths).astype(np.float32))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_of_stylegan2_the_convolutions_and_affines(architecture):
    generator = Generator(
        8, 1, 3, z_dim=6, w_dim=6, mapping_layers=2, channel_base=64, channel_max=8, architecture=architecture
    )
    abstract = jax.eval_shape(
        lambda: generator.init(jax.random.key(0), jnp.zeros((1, 6)), jnp.zeros(1, jnp.int32), noise_mode="const")
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), abstract["params"])
    names = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in jax.tree.leaves_with_path(params)}
    chosen = [n for n in names if n.startswith("synthesis/") and n.endswith("/weight")]
    assert any("affine" in n for n in chosen) and any("conv0/weight" in n for n in chosen)

    def penalty(params):
        return Orthogonal().generator(generator_context(params=params), ())[0]

    value, gradients = jit(jax.value_and_grad(penalty))(params)
    expected = 0.0
    for name in chosen:
        rows = np.moveaxis(names[name], -1, 0).reshape(names[name].shape[-1], -1).astype(np.float64)
        products = rows @ rows.T / rows.shape[1]  # with the run-time gain
        expected += (products**2).sum() - (np.diag(products) ** 2).sum()
    assert float(value) == pytest.approx(expected, rel=1e-5)
    for name, gradient in zip(names, jax.tree.leaves(gradients), strict=True):
        alone = gradient.shape[-1:] == (1,)  # one filter, with none to be orthogonal to
        assert bool(np.any(gradient)) == (name in chosen and not alone), name


@pytest.mark.parametrize("gradient", ["true", "published"])
def test_the_release_adds_half_of_the_gradient(gradient):
    golden = Golden("biggan_spectral_norm")
    names = ["conv", "linear"]
    params = {name: {"weight": np.moveaxis(golden[f"in/{name}/W"], 0, -1)} for name in names}
    objective = Orthogonal(gradient=gradient)
    loss = jit(
        jax.value_and_grad(lambda params: STRENGTH * objective.generator(generator_context(params=params), ())[0])
    )
    value, gradients = loss(params)
    assert_close(value, sum(golden[f"out/{name}/ortho_true_loss"] for name in names), 1e-6)
    for name in names:
        expected = golden[f"out/{name}/{'ortho_true_grad' if gradient == 'true' else 'ortho_update'}"]
        assert_close(np.moveaxis(gradients[name]["weight"], -1, 0), expected, 2e-6)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("deep", [True, False])
def test_of_biggan_everything_but_class_embeddings(shared, deep):
    options = {"deep": deep, "shared_embedding": shared, "embedding_dim": 5, "attention": (8,)}
    generator = BigGAN(resolution=8, num_classes=3, z_dim=4, width=8, **options)
    params = jax.eval_shape(
        lambda: generator.init(jax.random.key(0), jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32))["params"]
    )
    leaves = jax.tree.leaves_with_path(params)
    names = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    matrices = [name for name, x in names.items() if x.ndim > 1]
    classes = [name for name in matrices if name == "shared/weight" or "_table/" in name]
    norms = {name.rpartition("/")[0] for name in names if name.endswith("gain/weight")}
    assert len(norms) == (8 if deep else 2)
    assert len(classes) == (1 if shared else 2 * len(norms))
    params = jax.tree.unflatten(jax.tree.structure(params), [jnp.full(x.shape, i) for i, (_, x) in enumerate(leaves)])
    chosen = {list(names)[int(x.ravel()[0])] for x in filters(params)}
    assert chosen == set(matrices) - set(classes)
    assert {"linear/weight", "output_conv/weight", f"blocks_{int(deep)}/attention/theta/weight"} <= chosen
