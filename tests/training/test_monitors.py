"""The memorisation monitor: which images it gives the discriminator, and the accuracies it computes of the logits."""

import jax.numpy as jnp
import numpy as np

from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.data.source import ArraySource, DataSplits
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.training import monitors
from noisytwins_jax.training.monitors import memorisation_monitor

NAMES = ("a", "b", "c")


class Brightness:
    """A discriminator that takes bright images for real, and records its inputs."""

    class_noise_dims = (0, 5)

    def __init__(self):
        self.inputs = []

    def low_images(self, images):
        return None

    def discriminate(self, variables, inputs):
        images, labels, class_noise, low_images, *_ = inputs
        assert class_noise.shape == (len(images), 5) and not class_noise.any() and low_images is None
        self.inputs.append((np.asarray(images), np.asarray(labels)))
        return DiscriminatorOutput(images.mean(axis=(1, 2, 3)) - variables["bias"]), {}


def source(levels, labels):
    """Flat images of these levels."""
    images = np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 8, 8, 1))
    return ArraySource(np.array(images), np.array(labels), NAMES, "flat")


def test_accuracies_are_shares_of_positive_logits():
    """Every image is used: three of class a, one of b and one of c, on both sides."""
    train = source([200, 210, 220, 40, 230], [0, 0, 0, 1, 2])
    reference = source([10, 205, 30, 240, 50, 60], [0, 0, 0, 1, 2, 2])
    model = Brightness()
    metrics = memorisation_monitor(model, DataSplits(train, reference, train))({"bias": jnp.float32(0.0)})
    (known, known_labels), (unknown, unknown_labels) = model.inputs
    np.testing.assert_array_equal(np.sort(known_labels), [0, 0, 0, 1, 2])
    np.testing.assert_array_equal(np.sort(unknown_labels), [0, 0, 0, 1, 2])
    np.testing.assert_allclose([known.min(), unknown.max()], [40 / 127.5 - 1, 240 / 127.5 - 1], rtol=1e-6)
    assert len(metrics) == 4
    np.testing.assert_allclose(metrics["discriminator_logit/train"], 180 / 127.5 - 1, rtol=1e-5)
    np.testing.assert_allclose(metrics["discriminator_logit/held_out"], unknown.mean(), rtol=1e-5)
    assert float(metrics["discriminator_accuracy/train"]) == np.float32(4 / 5)  # all but 40
    assert float(metrics["discriminator_accuracy/held_out"]) == np.float32(2 / 5)  # 205 and 240
    strict = memorisation_monitor(model, DataSplits(train, reference, train))({"bias": jnp.float32(0.62)})  # above 206
    shares = [float(strict[f"discriminator_accuracy/{name}"]) for name in ("train", "held_out")]
    assert shares == [np.float32(3 / 5), np.float32(1 / 5)]


def test_training_images_in_the_reference_are_not_held_out():
    """As in the long-tailed digits, whose reference is all digits."""
    splits, model = digits_splits(8, imbalance_factor=0.05, largest=174), Brightness()
    memorisation_monitor(model, splits)({"bias": jnp.float32(0.0)})
    (known, known_labels), (unknown, unknown_labels) = model.inputs
    trained = {image.tobytes() for image in splits.train.images}

    def pixels(images):
        return [np.round((x + 1) * 127.5).astype(np.uint8).tobytes() for x in images]

    assert trained.issuperset(pixels(known)) and trained.isdisjoint(pixels(unknown))
    counts = [np.bincount(labels, minlength=10) for labels in (known_labels, unknown_labels)]
    np.testing.assert_array_equal(*counts)
    of_digit = np.bincount(splits.reference.labels)
    most = np.minimum(splits.train.class_counts, of_digit - splits.train.class_counts)
    assert (counts[0] <= most).all() and counts[0].sum() == most.sum() // 32 * 32  # whole minibatch-std groups


def test_at_most_so_many(monkeypatch):
    monkeypatch.setattr(monitors, "MAX_IMAGES", 20)
    splits, model = digits_splits(8, imbalance_factor=0.05, largest=174), Brightness()
    memorisation_monitor(model, splits)({"bias": 0.0})
    (_, known), (_, unknown) = model.inputs
    assert len(known) == len(unknown) == 20
    np.testing.assert_array_equal(np.sort(known), np.sort(unknown))


def test_there_may_be_nothing_held_out():
    train = source([200, 40, 230], [0, 1, 2])
    assert memorisation_monitor(Brightness(), DataSplits(train, train, train)) is None
    copy = source([230, 200, 40], [2, 0, 1])
    assert memorisation_monitor(Brightness(), DataSplits(train, copy, train)) is None
