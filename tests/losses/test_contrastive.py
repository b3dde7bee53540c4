"""2C against the official implementation, and which images it compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close
from loss_contexts import discriminator_context, generator_context, jit

from noisytwins_jax.losses.contrastive import Contrastive, contrastive_loss
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput

LOSS = jit(contrastive_loss, static_argnums=3)


def unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["cond_a", "cond_b"])
def test_values_and_gradients(name):
    golden = Golden("losses")
    labels = golden[f"in/{name}/labels"]

    def loss(embedding, proxy):  # the official function takes vectors of any length
        return contrastive_loss(unit(embedding), unit(proxy), labels, golden.config[name]["temperature"])

    arguments = golden[f"in/{name}/embed"], golden[f"in/{name}/proxy"]
    value, gradients = jit(jax.value_and_grad(loss, argnums=(0, 1)))(*arguments)
    assert_close(value, golden[f"out/{name}/2C/value"], 1e-6)
    for gradient, side in zip(gradients, ("embed", "proxy"), strict=True):
        assert_close(gradient, golden[f"out/{name}/2C/grad_{side}"], 1e-5)


def random_batch(labels):
    vectors = np.random.default_rng(0).standard_normal((2, len(labels), 6)).astype(np.float32)
    embedding, proxy = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return embedding, proxy, np.array(labels, np.int32)


def test_against_its_sums():
    embedding, proxy, labels = random_batch([0, 1, 1, 2, 0])
    e, p = np.asarray(embedding, np.float64), np.asarray(proxy, np.float64)
    total = 0.0
    for i in range(5):
        others = {j: np.exp(e[i] @ e[j] / 0.3) for j in range(5) if j != i}
        same = sum(x for j, x in others.items() if labels[j] == labels[i])
        to_proxy = np.exp(e[i] @ p[i] / 0.3)
        total -= np.log((to_proxy + same) / (to_proxy + sum(others.values())))
    assert_close(LOSS(embedding, proxy, labels, 0.3), total / 5, 1e-6)


def test_one_class_has_nothing_to_be_told_from():
    embedding, proxy, labels = random_batch([3] * 5)
    assert float(LOSS(embedding, proxy, labels, 0.25)) == pytest.approx(0.0, abs=1e-6)


def test_small_temperatures_stay_finite():
    embedding, proxy, labels = random_batch([0, 1, 1, 2, 0])
    value, gradient = jit(jax.value_and_grad(lambda e: contrastive_loss(e, proxy, labels, 0.005)))(embedding)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_acts_on_real_images_in_the_discriminator_and_on_generated_ones_in_the_generator():
    embedding, proxy, labels = random_batch([0, 1, 1, 2])
    other = DiscriminatorOutput(np.zeros(4), embedding=-embedding[::-1], proxy=embedding)
    mine = DiscriminatorOutput(np.zeros(4), embedding=embedding, proxy=proxy)
    objective, gathered = Contrastive(temperature=0.5), []

    def replicate(x):
        gathered.append(x.shape)
        return x

    seen = discriminator_context(
        real=mine, real_labels=labels, fake=other, fake_labels=labels[::-1], replicate=replicate
    )
    expected = LOSS(embedding, proxy, labels, 0.5)
    for value, state in (
        jit(lambda: objective.discriminator(seen, ()))(),
        jit(lambda: objective.generator(generator_context(fake=mine, labels=labels, replicate=replicate), ()))(),
    ):
        assert float(value) == pytest.approx(float(expected)) and state == ()
    assert gathered == [(4, 6), (4,)] * 2
