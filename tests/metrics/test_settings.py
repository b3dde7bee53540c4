"""Numbers of images and extractors of an evaluation."""

import numpy as np
import pytest

from noisytwins_jax.metrics.protocols import PROTOCOLS, parse_extractors
from noisytwins_jax.metrics.settings import Settings
from noisytwins_jax.utils.errors import UserError


def test_pooled_images_are_as_many_of_each_class_as_can_be():
    counts = Settings(samples_per_class=5000, pooled_images=50_000).counts(1010)
    assert counts.each.sum() == 5_050_000 and counts.pooled.sum() == 50_000
    assert set(counts.pooled) == {49, 50}
    assert counts.start.tolist() == [5000 * c for c in range(1010)]
    more = np.flatnonzero(counts.pooled == 50)
    assert len(more) == 510 and more.tolist() != list(range(510))  # not the first classes, which may be the head
    again = Settings(samples_per_class=5000).counts(1010)
    np.testing.assert_array_equal(again.pooled, counts.pooled)


def test_all_are_pooled_if_they_are_few():
    counts = Settings(samples_per_class=180).counts(10)
    assert counts.pooled.tolist() == counts.each.tolist() == [180] * 10


def test_images_from_files_are_taken_as_they_come():
    counts = Settings().counts(3, np.array([1, 0, 100]))
    assert counts.each.tolist() == counts.pooled.tolist() == [1, 0, 100] and counts.start.tolist() == [0, 1, 1]
    assert Settings(pooled_images=10).counts(3, np.array([1, 2, 100])).pooled.tolist() == [1, 2, 7]


def test_extractors_by_protocol():
    assert parse_extractors(PROTOCOLS["embedded"]) == {"classifier": ""}
    assert parse_extractors(PROTOCOLS["noisytwins"]) == {"inception": "inception", "clip": "clip-vit-b32"}
    chosen = parse_extractors(PROTOCOLS["tf1"], "dinov2, clip-vit-l14,classifier")
    assert list(chosen.items()) == [("dinov2", "dinov2-vitl14"), ("clip", "clip-vit-l14"), ("classifier", "")]
    assert parse_extractors(PROTOCOLS["embedded"], "file:a:b/own.jax,classifier") == {
        "file": "a:b/own.jax",
        "classifier": "",
    }


@pytest.mark.parametrize(
    ("protocol", "names", "message"),
    [
        ("tf1", "inceptoin", "has no 'inceptoin'; did you mean 'inception'?"),
        ("tf1", "inception,clip,clip-vit-l14", "names two networks of the kind clip"),
        ("tf1", "classifier,inception", "does not go with config.evaluation.protocol=tf1"),
        ("embedded", "inception", "does not go with config.evaluation.protocol=embedded"),
        ("embedded", "classifier,clip", "does not go with config.evaluation.protocol=embedded"),
        ("embedded", "classifier,file:own.jax", "from a file is the one of FID and comes first"),
        ("embedded", "file:own.jax,clip", "the protocol embedded can have classifier"),
        ("tf1", "file:own.jax,inception", "the protocol tf1 can have classifier, clip, dinov2"),
    ],
)
def test_extractors_that_do_not_go_together(protocol, names, message):
    with pytest.raises(UserError, match=message):
        parse_extractors(PROTOCOLS[protocol], names)


def test_every_protocol_says_what_each_network_sees():
    from noisytwins_jax.metrics.extractors import clip, dinov2, inception

    for protocol in PROTOCOLS.values():
        if protocol.name != "embedded":
            assert protocol.preprocessing["inception"] in inception.PREPROCESSINGS
            assert protocol.preprocessing["clip"] in clip.PREPROCESSINGS
            assert protocol.preprocessing["dinov2"] in dinov2.PREPROCESSINGS
