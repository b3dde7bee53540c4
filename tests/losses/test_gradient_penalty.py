"""R1 and R2 in every update: values against a linear discriminator's, and γ over training."""

import jax.numpy as jnp
import numpy as np
import pytest
from loss_contexts import discriminator_context, progress

from noisytwins_jax.losses.gradient_penalty import GradientPenalty


def test_it_is_the_sum_of_both_penalties():
    """Logits of real images are a·x, of generated ones b·x²/2, so gradients are a and b·x."""
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
    a, b = 2.0, 3.0
    ctx = discriminator_context(
        real_images=real,
        discriminate=lambda x: a * x.sum(axis=(1, 2, 3)),
        fake_images=fake,
        discriminate_fake=lambda x: b * jnp.square(x).sum(axis=(1, 2, 3)) / 2,
    )
    term = GradientPenalty(gamma=1.0).discriminator(ctx, ())
    expected = 0.5 * a**2 * 32 + 0.5 * np.square(b * fake).sum(axis=(1, 2, 3)).mean()
    assert float(term.value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(term.real_logits, a * real.sum(axis=(1, 2, 3)), rtol=1e-4, atol=1e-4)


def test_gamma_over_training():
    loss = GradientPenalty(gamma=0.05, final_gamma=0.005, anneal_kimg=20_000.0)
    values = [float(loss.scale(progress(0, kimg))) for kimg in (0, 10_000, 20_000, 250_000)]
    np.testing.assert_allclose(values, [0.05, 0.0275, 0.005, 0.005], rtol=1e-5)  # 0.0275: the specification's
    assert GradientPenalty(gamma=0.05).scale(progress(0, 10_000)) == 0.05
    assert not GradientPenalty().active and GradientPenalty(gamma=0.1).active
