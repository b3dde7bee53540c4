"""Adversarial losses against the official implementation: values and gradients."""

import jax
import numpy as np
import pytest
from golden_numbers import Golden, assert_close

from noisytwins_jax.losses.adversarial import ADVERSARIAL_LOSSES, adversarial_loss

# Ours and the official name. "vanilla" is the cross-entropy of a sigmoid: the logistic loss by another formula.
NAMES = [
    ("logistic", "logistic"),
    ("logistic", "vanilla"),
    ("hinge", "hinge"),
    ("wasserstein", "wasserstein"),
    ("least_squares", "ls"),
]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("losses")


@pytest.mark.parametrize(("name", "official"), NAMES)
def test_discriminator_loss(golden, name, official):
    real, fake = golden["in/logit_real"][:, 0], golden["in/logit_fake"][:, 0]
    loss = ADVERSARIAL_LOSSES[name].discriminator
    value, gradients = jax.value_and_grad(lambda r, f: loss(r, f).mean(), argnums=(0, 1))(real, fake)
    # The Wasserstein loss is a small difference: float32's rounding is that of its terms, which are near 1.
    assert_close(value, golden[f"out/d_{official}/value"], 3e-6 if name == "wasserstein" else 1e-6)
    for gradient, side in zip(gradients, ("real", "fake"), strict=True):
        assert_close(gradient, golden[f"out/d_{official}/grad_{side}"][:, 0], 1e-6)


@pytest.mark.parametrize(("name", "official"), NAMES)
def test_generator_loss(golden, name, official):
    fake = golden["in/logit_fake"][:, 0]
    value, gradient = jax.value_and_grad(lambda f: ADVERSARIAL_LOSSES[name].generator(f).mean())(fake)
    assert_close(value, golden[f"out/g_{official}/value"], 1e-6)
    assert_close(gradient, golden[f"out/g_{official}/grad_fake"][:, 0], 1e-6)


def test_every_loss_is_checked():
    assert {name for name, _ in NAMES} | {"relativistic"} == set(ADVERSARIAL_LOSSES)


def test_relativistic_against_reference_numbers():
    """Of the specification; each real image with the generated one of its place."""
    real, fake, loss = np.float32([1, -0.5, 2]), np.float32([0.2, 0.3, -1]), ADVERSARIAL_LOSSES["relativistic"]
    assert loss.pairs and float(loss.discriminator(real, fake).mean()) == pytest.approx(0.5302628944897658, rel=1e-6)
    assert float(loss.generator(fake, real).mean()) == pytest.approx(1.5302628944897656, rel=1e-6)
    assert not any(other.pairs for name, other in ADVERSARIAL_LOSSES.items() if name != "relativistic")


@pytest.mark.parametrize("name", sorted(ADVERSARIAL_LOSSES))
def test_losses_are_unreduced_and_finite(name):
    extreme = np.float32([-1e4, 0.0, 1e4])
    loss = ADVERSARIAL_LOSSES[name]
    for values in (loss.discriminator(extreme, -extreme), loss.generator(extreme, -extreme)):
        assert values.shape == (3,) and np.isfinite(values).all()


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
def test_margin_of_the_hinge_loss(margin):
    loss = adversarial_loss("hinge", margin)
    real, fake = np.float32([-4, -1, 0, 0.4, 0.6, 2, 5]), np.float32([-5, -2, -0.6, -0.4, 0, 1, 4])
    expected = np.maximum(0, margin - real) + np.maximum(0, margin + fake)
    np.testing.assert_allclose(loss.discriminator(real, fake), expected, rtol=1e-6)
    # A margin is a change of the logits' scale.
    scaled = margin * ADVERSARIAL_LOSSES["hinge"].discriminator(real / margin, fake / margin)
    np.testing.assert_allclose(loss.discriminator(real, fake), scaled, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loss.generator(fake), -fake)


@pytest.mark.parametrize("name", sorted(ADVERSARIAL_LOSSES))
def test_without_a_margin_every_loss_is_the_listed_one(name):
    real, fake = np.float32([-2, 0.5, 3]), np.float32([-3, -0.5, 2])
    loss = adversarial_loss(name)
    np.testing.assert_array_equal(loss.discriminator(real, fake), ADVERSARIAL_LOSSES[name].discriminator(real, fake))
    np.testing.assert_array_equal(loss.generator(fake, real), ADVERSARIAL_LOSSES[name].generator(fake, real))


@pytest.mark.parametrize(
    ("name", "margin", "message"),
    [
        *[(name, 2.0, "only the hinge loss") for name in sorted(ADVERSARIAL_LOSSES) if name != "hinge"],
        ("hinges", 1.0, "no adversarial loss"),
        ("hinge", 0.0, "above 0"),
        ("hinge", float("nan"), "above 0"),
    ],
)
def test_what_no_loss_can_be_made_of(name, margin, message):
    with pytest.raises(ValueError, match=message):
        adversarial_loss(name, margin)
