"""Tables of instances and batches of neighbours, against NumPy."""

import numpy as np
import pytest

from noisytwins_jax.data.instance_table import build_instance_table, neighbourhoods, unit_features
from noisytwins_jax.data.pipeline import training_batches
from noisytwins_jax.data.source import ArraySource
from noisytwins_jax.training.instance_conditioning import nearest_others
from noisytwins_jax.utils.errors import UserError

N, K = 37, 4


def make_source() -> ArraySource:
    """Images that are filled with their number."""
    images = np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None, None], (N, 8, 8, 1)).copy()
    return ArraySource(images, np.arange(N) % 5, list("abcde"), "numbered")


def features() -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((N, 6)).astype(np.float32)
    found[9] = found[3]  # an exact duplicate
    return found


NEIGHBOURS = neighbourhoods(unit_features(features()), K, nearest_others)
OPTIONS = {"batch_size": 8, "seed": 3, "mirror": False, "neighbours": NEIGHBOURS}


def test_features_have_unit_length():
    found = unit_features(np.concatenate([features(), np.zeros((1, 6))]))
    assert found.dtype == np.float32 and not found[-1].any()
    np.testing.assert_allclose(np.linalg.norm(found[:-1], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[5], features()[5] / np.linalg.norm(features()[5]), rtol=1e-6)


def test_neighbourhoods_hold_the_image_and_its_nearest_others():
    unit = unit_features(features()).astype(float)
    distances = ((unit[:, None] - unit) ** 2).sum(axis=2)
    np.testing.assert_array_equal(NEIGHBOURS[:, 0], np.arange(N))
    assert NEIGHBOURS.dtype == np.int32 and NEIGHBOURS.shape == (N, K)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(NEIGHBOURS[:, 1:], np.argsort(distances, axis=1, kind="stable")[:, : K - 1])
    assert NEIGHBOURS[3, 1] == 9 and NEIGHBOURS[9, 1] == 3
    np.testing.assert_array_equal(neighbourhoods(unit, 1, nearest_others), np.arange(N)[:, None])


def test_the_table_lists_the_instances_of_each_class():
    labels = np.array([2, 0, 2, 1, 0, 2])
    table = build_instance_table(np.zeros((6, 3)), np.zeros((6, 2)), labels, num_classes=4)  # one class is empty
    of_class = [table.members[table.starts[c] : table.starts[c + 1]].tolist() for c in range(4)]
    assert of_class == [[1, 4], [3], [0, 2, 5], []]
    assert {x.dtype for x in table[1:]} == {np.dtype(np.int32)}


def stream(count: int, start: int = 0, **options) -> dict[str, np.ndarray]:
    with training_batches(make_source(), **OPTIONS | options) as batches:
        batches.restore({"next_index": start})
        taken = [next(batches) for _ in range(count)]
    return {name: np.stack([batch[name] for batch in taken]) for name in taken[0]}


def test_every_instance_stands_once_an_epoch_for_one_of_its_neighbours():
    epochs = 40
    found = stream(-(-epochs * N // 8))
    instances, shown = found["instance"].ravel()[: epochs * N], found["image"][..., 0, 0, 0].ravel()[: epochs * N]
    assert found["instance"].dtype == np.int32
    np.testing.assert_array_equal(found["label"], found["image"][..., 0, 0, 0] % 5)  # the label is the shown image's
    np.testing.assert_array_equal(np.sort(instances.reshape(epochs, N)), np.tile(np.arange(N), (epochs, 1)))
    is_shown = NEIGHBOURS[instances] == shown[:, None]
    assert (is_shown.sum(axis=1) == 1).all()
    share = is_shown.mean(axis=0)  # 1480 draws: a standard deviation of .011
    np.testing.assert_allclose(share, 1 / K, atol=0.05)
    pairs = [set(zip(*half, strict=True)) for half in zip(np.split(instances, 2), np.split(shown, 2), strict=True)]
    assert pairs[0] & pairs[1] and len(pairs[0]) > 2 * N  # drawn anew in each epoch


def test_the_order_is_that_without_neighbourhoods():
    plain = stream(12, neighbours=None)
    assert "instance" not in plain
    np.testing.assert_array_equal(stream(12)["instance"], plain["image"][..., 0, 0, 0])


@pytest.mark.parametrize("start", [0, 7])
def test_processes_share_the_pairs_and_resume(start):
    whole = stream(12)
    parts = [stream(12 - start, start, process_count=2, process_index=p) for p in range(2)]
    for name in ("image", "label", "instance"):
        together = np.concatenate([part[name] for part in parts], axis=1)
        np.testing.assert_array_equal(together, whole[name][start:])


def test_refuses_neighbourhoods_of_other_images():
    with pytest.raises(UserError, match="37 training images and neighbourhoods of shape \\[36, 4\\]"):
        stream(1, neighbours=NEIGHBOURS[1:])
