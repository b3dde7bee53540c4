"""`Sampler.interpolate`: its ends are the sampler's own images, and no image depends on the others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noisytwins_jax.generation.sampler import Sampler
from noisytwins_jax.models.latents import Latents, Truncation
from noisytwins_jax.models.model import lerp

LABELS, INDICES = np.array([[0, 1], [2, 2], [1, 0]]), np.array([[4, 9], [7, 3], [5, 5]])
VARIABLES = {"table": np.array([-0.5, 0.0, 0.5], np.float32)}


class Linear(NamedTuple):
    """A model whose images show what they are made of: z / 16 plus a number of the class, times psi, plus noise."""

    noise: float = 0.0

    def sample(self, variables, z, labels, key, psi=None, features=None):
        return self._images(z, variables["table"][labels], key, psi), z

    def sample_between(self, variables, z, labels, t, key, psi=None, features=None):
        return self._images(z, lerp(*(variables["table"][labels[:, i]] for i in (0, 1)), t), key, psi)

    def _images(self, z, number, key, psi):
        images = (z / 16 + number[:, None]).reshape(-1, 8, 8, 1) * (1.0 if psi is None else psi)
        return images + self.noise * jax.random.uniform(key, images.shape)


def sampler(truncation=None, per_device_batch=2, noise=0.0):
    return Sampler(
        Linear(noise), Latents(64), VARIABLES, seed=3, truncation=truncation, per_device_batch=per_device_batch
    )


@pytest.mark.parametrize("truncation", [None, Truncation("psi", 0.5), Truncation("threshold", 1.0)])
def test_ends_are_the_images_of_the_sampler_and_the_way_is_straight(truncation):
    make = sampler(truncation)
    first, second = (make(LABELS[:, i], INDICES[:, i])[0].astype(int) for i in (0, 1))
    for t in (0.0, 0.25, 1.0):
        images = make.interpolate(LABELS, INDICES, np.full(3, t))
        assert images.dtype == np.uint8 and images.shape == (3, 8, 8, 1)
        np.testing.assert_allclose(images, (1 - t) * first + t * second, atol=1 if t in (0, 1) else 2)  # of rounding
    assert (np.abs(first - second).max((1, 2, 3)) > 5).all()  # both ways differ, and either alone


def test_truncation_is_that_of_the_sampler():
    whole, cut = (sampler(x).interpolate(LABELS, INDICES, np.full(3, 0.5)) for x in (None, Truncation("psi", 0.5)))
    np.testing.assert_allclose(cut.astype(int) - 128, (whole.astype(int) - 128) / 2, atol=1)
    near = sampler(Truncation("threshold", 0.01)).interpolate(LABELS[:1], INDICES[:1], np.full(1, 0.5))
    assert np.ptp(near) <= 1 and np.ptp(whole[0]) > 10


def test_noise_is_that_of_the_first_index_all_the_way():
    quiet, noisy = sampler(), sampler(noise=0.2)
    expected = noisy(LABELS[:, 0], INDICES[:, 0])[0].astype(int) - quiet(LABELS[:, 0], INDICES[:, 0])[0]
    assert np.ptp(expected) > 10
    for t in (0.0, 0.5, 1.0):
        first, second = (make.interpolate(LABELS, INDICES, np.full(3, t)).astype(int) for make in (noisy, quiet))
        np.testing.assert_allclose(first - second, expected, atol=2)


@pytest.mark.parametrize("per_device_batch", [1, 4])
def test_an_image_depends_on_its_own_row_alone(per_device_batch):
    make, t = sampler(per_device_batch=per_device_batch), np.array([0.2, 0.7, 0.9])
    together = make.interpolate(LABELS, INDICES, t)
    for i in range(3):
        np.testing.assert_array_equal(
            make.interpolate(LABELS[i : i + 1], INDICES[i : i + 1], t[i : i + 1])[0], together[i]
        )


def test_between_takes_a_row_each():
    rows = np.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(lerp(jnp.zeros((3, 2)), rows, jnp.array([0.0, 0.5, 1.0])), [[0, 0], [1, 1.5], [4, 5]])
