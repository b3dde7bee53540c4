"""What every loss keeps to: precision, `jit`, finite gradients, and a clear word where a network lacks a part."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_contexts import BARE, discriminator_context, generator_context, jit, progress

from noisytwins_jax.config.run_config import Losses
from noisytwins_jax.losses.base import Loss
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.utils.config_fields import validate

EVERY = {f.name: f.default for f in dataclasses.fields(Losses)}
# Of every update, with a weight; `test_gradient_penalty` has the one that has γ.
DEFAULTS = {name: loss for name, loss in EVERY.items() if not loss.lazy and name != "gradient_penalty"}
PASSES = {"generator": generator_context, "discriminator": discriminator_context}
TERMS = [(n, side) for n, x in DEFAULTS.items() for side in PASSES if getattr(type(x), side) is not getattr(Loss, side)]
ACTING = {"spectrum": {"sigma": 0.1, "network": "both"}}  # where the default leaves small weights alone
N, C, D = 8, 3, 12


def parts(dtype: Any) -> dict[str, dict]:
    """Everything a pass can have, but functions."""
    rng = np.random.default_rng(0)

    def random(*shape: int):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    def discrimination() -> DiscriminatorOutput:
        unit = random(2, N, D)
        unit = unit / jnp.linalg.norm(unit, axis=-1, keepdims=True)
        return DiscriminatorOutput(random(N), random(N), random(N), unit[0], unit[1])

    shared = {
        "class_counts": jnp.asarray([90, 9, 1], dtype),
        "progress": progress(10)._replace(kimg=jnp.asarray(5000.0, dtype)),
    }
    params = {
        "mapping": {"embed": {"weight": random(C, D)}},
        "synthesis": {"b4": {"conv1": {"weight": random(3, 3, 4, 5)}}},
    }
    labels = jnp.arange(N, dtype=jnp.int32) % C
    generator = {"params": params, "w": random(N, D), "fake": discrimination(), "images": random(N, 4, 4, 1)}
    generator["style"] = random(N, D)
    discriminator = {
        "params": {"b4": {"conv": {"weight": random(3, 3, 4, 5)}}},
        "real": discrimination(),
        "fake": discrimination(),
    }
    return {
        "generator": shared | generator | {"labels": labels},
        "discriminator": shared | discriminator | {"real_labels": labels, "fake_labels": labels},
    }


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(("name", "side"), TERMS)
def test_terms(name, side, x64):
    loss, make = dataclasses.replace(DEFAULTS[name], weight=0.5, **ACTING.get(name, {})), PASSES[side]
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        state = jit(loss.init)(*(parts(dtype)[network]["params"] for network in ("generator", "discriminator")))
        given = parts(dtype)[side]
        inputs = {k: given.pop(k) for k in ("params", "w", "style", "fake", "real") if k in given}

        def term(inputs, given, state):
            value, after = getattr(loss, side)(make(**inputs, **given), state)
            return loss.scale(given["progress"]) * value, after

        (value, after), gradients = jit(jax.value_and_grad(term, has_aux=True))(inputs, given, state)
    assert value.shape == () and value.dtype == dtype and np.isfinite(value)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert all(x.dtype == dtype for x in jax.tree.leaves((state, after)))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert any(np.any(g) for g in jax.tree.leaves(gradients))


def test_every_loss_has_a_term():
    assert {name for name, _ in TERMS} == set(DEFAULTS)


@pytest.mark.parametrize("name", ["d2dce", "contrastive", "transitional", "utlo"])
def test_a_discriminator_that_lacks_a_head(name):
    with pytest.raises(ValueError, match="needs a discriminator with"):
        DEFAULTS[name].generator(generator_context(fake=BARE, labels=jnp.zeros(4, jnp.int32)), ())
    with pytest.raises(ValueError, match="needs a discriminator with"):
        labels = jnp.zeros(4, jnp.int32)
        DEFAULTS[name].discriminator(discriminator_context(real=BARE, fake=BARE, real_labels=labels), ())


@pytest.mark.parametrize("name", EVERY)
def test_is_off_by_default_and_says_which_values_its_fields_take(name):
    assert EVERY[name].active == (name == "r1")  # R1 is part of every published run
    for field in dataclasses.fields(EVERY[name]):
        assert isinstance(field.default, bool) or field.metadata, field.name
        assert validate(field.metadata, field.default) is None, field.name


@pytest.mark.parametrize("name", [name for name, loss in EVERY.items() if loss.lazy])
def test_lazy_losses_act_on_the_network_that_they_name(name):
    loss = EVERY[name]
    assert [side for side in PASSES if getattr(type(loss), side) is not getattr(Loss, side)] == [loss.lazy]
    assert loss.interval > 1


def test_the_term_counts_from_its_start_step():
    loss = dataclasses.replace(DEFAULTS["noisytwins"], weight=0.25, start_step=3)
    assert [float(loss.scale(progress(step))) for step in (0, 2, 3, 9)] == [0.0, 0.0, 0.25, 0.25]
