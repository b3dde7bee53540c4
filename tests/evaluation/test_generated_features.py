"""Which images of which classes go into a part, and that very large classes may be divided."""

import numpy as np
import pytest

from noisytwins_jax.evaluation import generated_features
from noisytwins_jax.evaluation.generated_features import Piece, split_into_parts


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(generated_features, "_PART", 10)
    monkeypatch.setattr(generated_features, "_MAX_UNDIVIDED", 25)


def test_small_classes_share_a_part():
    parts = split_into_parts(np.array([4, 4, 4, 0, 4]))
    assert parts == [[Piece(0, 0, 4, True), Piece(1, 0, 4, True), Piece(2, 0, 4, True)], [Piece(4, 0, 4, True)]]


def test_large_classes_have_one_of_their_own_and_very_large_ones_several():
    parts = split_into_parts(np.array([2, 25, 3, 26, 1]))
    assert [[tuple(piece) for piece in part] for part in parts] == [
        [(0, 0, 2, True), (1, 0, 25, True)],
        [(2, 0, 3, True)],
        [(3, 0, 10, False)],
        [(3, 10, 20, False)],
        [(3, 20, 26, False)],
        [(4, 0, 1, True)],
    ]


@pytest.mark.parametrize("each", [[30], [0, 30, 5], [5, 0, 40, 40, 0]])
def test_every_image_is_in_one_piece(each):
    seen = [
        (piece.label, i)
        for part in split_into_parts(np.array(each))
        for piece in part
        for i in range(piece.start, piece.stop)
    ]
    assert seen == [(label, i) for label, count in enumerate(each) for i in range(count)]
    assert all(len({piece.whole for piece in part}) == 1 for part in split_into_parts(np.array(each)))
