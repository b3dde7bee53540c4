"""The protocol of UTLO: natural class frequencies, the few classes alone, and which images are real."""

import dataclasses

import numpy as np
import pytest
from extracting import features_of

from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.evaluation.evaluate_generator import evaluate_generator
from noisytwins_jax.evaluation.few_classes import choose_few_classes, choose_reference, natural_counts
from noisytwins_jax.metrics.features import HostFakes
from noisytwins_jax.metrics.protocols import PROTOCOLS
from noisytwins_jax.metrics.settings import Settings
from noisytwins_jax.utils.errors import UserError

FEW, POOLED, EACH = (6, 7, 8, 9), 700, 40
GROUPS = {"head": np.arange(3), "medium": np.arange(3, 6), "tail": np.arange(6, 10)}
# Its numbers, of the digits' classifier in place of Inception.
PROTOCOL = dataclasses.replace(PROTOCOLS["utlo"], kid_subsets=5, kid_subset_size=50)


def test_counts():
    counts = natural_counts(Settings(pooled_images=10), np.array([3, 3, 1]), start=100)
    assert counts.each.tolist() == counts.pooled.tolist() == [4, 4, 2]  # 4.29, 4.29 and 1.43
    assert counts.start.tolist() == [100, 104, 108]


@pytest.fixture(scope="module")
def evaluation(digits, digits_extractor):
    """An evaluation of real digits of fewer grey levels, the fewest in the few classes, and all (label, index) that were generated, in order."""
    reference, made = digits.reference, []

    def generate(labels, indices):
        made.extend(zip(labels.tolist(), indices.tolist(), strict=True))
        rows = [np.flatnonzero(reference.labels == c)[i * 7 % 150] for c, i in zip(labels, indices, strict=True)]
        step = np.where(np.isin(labels, FEW), 128, 32)[:, None, None, None]
        images = (reference.images[rows] // step * step).astype(np.uint8)
        return images, np.zeros((len(labels), 4), np.float32)

    result = evaluate_generator(
        HostFakes(generate),
        reference=reference,
        extractors={"inception": dataclasses.replace(digits_extractor)},
        class_groups=GROUPS,
        settings=Settings(protocol=PROTOCOL, samples_per_class=EACH, pooled_images=POOLED),
        few=FEW,
    )
    return result, np.array(made), generate


def straightforward(real, fake):
    """FID and KID by their formulas."""
    real, fake = (x.astype(np.float64) for x in (real, fake))
    covariances = [np.cov(x, rowvar=False) for x in (real, fake)]
    values = np.linalg.eigvals(covariances[0] @ covariances[1]).real
    means = np.square(real.mean(axis=0) - fake.mean(axis=0)).sum()
    distance = means + np.trace(covariances[0] + covariances[1]) - 2 * np.sqrt(np.maximum(values, 0)).sum()
    random, kernel_distances = np.random.RandomState(2020), []
    for _ in range(PROTOCOL.kid_subsets):
        x, y = (s[random.choice(len(s), PROTOCOL.kid_subset_size, replace=False)] for s in (real, fake))
        within = [
            (((s @ s.T / s.shape[1] + 1) ** 3).sum() - ((np.square(s).sum(axis=1) / s.shape[1] + 1) ** 3).sum())
            / (len(s) * (len(s) - 1))
            for s in (x, y)
        ]
        kernel_distances.append(sum(within) - 2 * ((x @ y.T / x.shape[1] + 1) ** 3).mean())
    return distance, np.mean(kernel_distances)


def test_against_a_straightforward_computation(evaluation, digits, digits_extractor):
    result, made, generate = evaluation
    reference = digits.reference
    _, in_all, few = np.split(made, [10 * EACH, 10 * EACH + POOLED])
    real, _ = features_of(digits_extractor, reference.images)
    fake, of_few = (features_of(digits_extractor, generate(*rows.T)[0])[0] for rows in (in_all, few))
    metrics = result["metrics"]
    fid, kid = straightforward(real, fake)
    assert metrics["fid"] == pytest.approx(fid, rel=1e-3) and metrics["kid"] == pytest.approx(kid, rel=1e-3)
    few_fid, few_kid = straightforward(real[np.isin(reference.labels, FEW)], of_few)
    assert metrics["few_fid"] == pytest.approx(few_fid, rel=1e-3)
    assert metrics["few_kid"] == pytest.approx(few_kid, rel=1e-3)
    assert metrics["few_fid"] != pytest.approx(metrics["fid"], rel=0.05)


def test_labels_have_the_real_frequencies_and_no_image_is_made_twice(evaluation, digits):
    result, made, _ = evaluation
    balanced, in_all, few = np.split(made[:, 0], [10 * EACH, 10 * EACH + POOLED])
    assert np.bincount(balanced).tolist() == [EACH] * 10
    shares = digits.reference.class_counts / digits.reference.class_counts.sum()
    assert np.abs(np.bincount(in_all) - POOLED * shares).max() < 1
    assert np.bincount(few, minlength=10).tolist() == [0] * 6 + [175] * 4
    assert made[:, 1].tolist() == list(range(10 * EACH + 2 * POOLED))
    protocol = result["protocol"]
    assert protocol["few_classes"] == list(FEW) and protocol["n_fake_pooled"] == POOLED
    assert protocol["n_fake_per_class"] == EACH and "class frequencies of the real images" in protocol["headline"]


def test_which_images_are_real(digits):
    full = DataSplits(digits.train, digits.reference, digits.classifier, full=digits.classifier, few_classes=(8, 9))
    assert choose_reference(full, PROTOCOLS["utlo"]) == (digits.classifier, "full")
    assert choose_reference(full, PROTOCOLS["tf1"]) == (digits.reference, "reference")
    assert choose_reference(digits, PROTOCOLS["utlo"]) == (digits.reference, "reference")
    assert choose_few_classes(full, PROTOCOLS["utlo"], [7, 8, 9]) == (8, 9)
    assert choose_few_classes(digits, PROTOCOLS["utlo"], np.array([7, 8, 9])) == (7, 8, 9)
    assert choose_few_classes(full, PROTOCOLS["tf1"], [7, 8, 9]) == ()
    with pytest.raises(UserError, match=r"no class of the data is in the tail; raise config\.data\.tail_below"):
        choose_few_classes(digits, PROTOCOLS["utlo"], [])
