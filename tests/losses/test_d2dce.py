"""D2D-CE against the official implementation, and which images it compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close
from loss_contexts import discriminator_context, generator_context, jit

from noisytwins_jax.losses.d2dce import D2DCE, d2dce_loss
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput

LOSS = jit(d2dce_loss, static_argnums=(3, 4))


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("losses")


def unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["cond_a", "cond_b"])
def test_values_and_gradients(golden, name):
    config, labels = golden.config[name], golden[f"in/{name}/labels"]

    def loss(embedding, proxy):  # the official function takes vectors of any length
        return d2dce_loss(unit(embedding), unit(proxy), labels, config["temperature"], config["m_p"])

    embedding, proxy = golden[f"in/{name}/embed"], golden[f"in/{name}/proxy"]
    value, gradients = jit(jax.value_and_grad(loss, argnums=(0, 1)))(embedding, proxy)
    assert_close(value, golden[f"out/{name}/D2DCE/value"], 1e-6)
    for gradient, side in zip(gradients, ("embed", "proxy"), strict=True):
        assert_close(gradient, golden[f"out/{name}/D2DCE/grad_{side}"], 1e-5)
    assert_close(jit(loss)(embedding, embedding), golden[f"out/{name}/D2DCE_self/value"], 1e-6)


def random_batch(labels):
    vectors = np.random.default_rng(0).standard_normal((2, len(labels), 6)).astype(np.float32)
    embedding, proxy = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return embedding, proxy, np.array(labels, np.int32)


def test_against_its_sums():
    embedding, proxy, labels = random_batch([0, 1, 1, 2, 0])
    e, p = np.asarray(embedding, np.float64), np.asarray(proxy, np.float64)
    total = 0.0
    for i in range(5):
        positive = max((0.7 - e[i] @ p[i]) / 0.3, 0.0)
        s = {j: (e[i] @ e[j] + 0.7 - 1.0) / 0.3 for j in range(5) if j != i}
        negatives = sum(np.exp(max(s[j], 0.0) - max(s.values())) for j in s if labels[j] != labels[i])
        total += positive + np.log(np.exp(-positive) + negatives)
    assert_close(LOSS(embedding, proxy, labels, 0.3, 0.7), total / 5, 1e-6)


def test_images_of_the_same_class_are_no_negatives():
    embedding, proxy, _ = random_batch([0] * 6)
    assert float(LOSS(embedding, proxy, np.zeros(6, np.int32), 0.25, 0.98)) == pytest.approx(0.0, abs=1e-6)
    assert float(LOSS(embedding, proxy, np.arange(6), 0.25, 0.98)) > 1.0


def test_easy_positives_are_left_alone():
    embedding, _, labels = random_batch([0, 1, 2])
    gradient = jit(jax.grad(lambda proxy: d2dce_loss(embedding, proxy, labels, 0.25, 0.98)))(embedding)
    np.testing.assert_array_equal(gradient, 0.0)


def test_acts_on_real_images_in_the_discriminator_and_on_generated_ones_in_the_generator():
    embedding, proxy, labels = random_batch([0, 1, 1, 2])
    other = DiscriminatorOutput(np.zeros(4), embedding=-embedding[::-1], proxy=embedding)
    mine = DiscriminatorOutput(np.zeros(4), embedding=embedding, proxy=proxy)
    objective, gathered = D2DCE(temperature=0.5, margin=0.9), []

    def replicate(x):
        gathered.append(x.shape)
        return x

    seen = discriminator_context(
        real=mine, real_labels=labels, fake=other, fake_labels=labels[::-1], replicate=replicate
    )
    expected = LOSS(embedding, proxy, labels, 0.5, 0.9)
    for value, state in (
        jit(lambda: objective.discriminator(seen, ()))(),
        jit(lambda: objective.generator(generator_context(fake=mine, labels=labels, replicate=replicate), ()))(),
    ):
        assert float(value) == pytest.approx(float(expected)) and state == ()
    assert gathered == [(4, 6), (4,)] * 2
