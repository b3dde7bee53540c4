import numpy as np
import pytest
from matplotlib.collections import PathCollection

from noisytwins_jax.evaluation.report.w_projection import (
    balanced_subset,
    pca_projection,
    tsne_projection,
    w_comparison_figure,
    w_projection_figure,
)
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import figure_image, figure_png, rank_colours


def clusters(classes=3, each=20, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(classes), each)
    return rng.normal(size=(classes, dim))[labels] * 4 + 0.3 * rng.normal(size=(len(labels), dim)), labels


def test_pca_agrees_with_the_singular_values():
    w, _ = clusters()
    points, shares = pca_projection(w)
    singular = np.linalg.svd(w - w.mean(0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), singular[:2], rtol=1e-10)
    np.testing.assert_allclose(shares, singular[:2] ** 2 / (singular**2).sum(), rtol=1e-10)


def test_pca_of_a_single_point():
    points, shares = pca_projection(np.full((5, 4), 2.5))
    assert not points.any() and not shares.any()


def test_tsne_keeps_clusters_apart_and_repeats_itself():
    w, labels = clusters()
    points = tsne_projection(w)
    np.testing.assert_array_equal(points, tsne_projection(w))
    centres = np.stack([points[labels == c].mean(0) for c in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(1)
    np.testing.assert_array_equal(nearest, labels)


@pytest.mark.parametrize("w", [np.zeros((4, 3)), np.eye(3)])
def test_tsne_of_tiny_and_collapsed_sets_is_finite(w):
    points = tsne_projection(w)
    assert points.shape == (len(w), 2) and np.isfinite(points).all()


def test_balanced_subset():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 3)
    chosen = balanced_subset(labels, 15)
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 3]
    np.testing.assert_array_equal(balanced_subset(labels, 63), np.arange(63))
    assert len(balanced_subset(np.arange(8), 4)) == 8  # at least one of each class


def scatters(axes):
    return [item for item in axes.collections if isinstance(item, PathCollection) and len(item.get_offsets())]


def test_figure_draws_every_class_from_dark_head_to_bright_tail():
    w, labels = clusters()
    figure = w_projection_figure(w, labels, ["a", "b", "c"], class_counts=[5, 100, 20])
    assert len(figure.axes) == 2
    drawn = scatters(figure.axes[0])
    assert sum(len(item.get_offsets()) for item in drawn) == len(w)
    np.testing.assert_allclose([item.get_facecolor()[0] for item in drawn], rank_colours(3))
    brightness = rank_colours(3)[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness) > 0).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "c", "a"]
    points, _ = pca_projection(w)
    np.testing.assert_allclose(drawn[0].get_offsets(), points[labels == 1])


def test_figure_is_the_same_twice():
    w, labels = clusters(each=10)
    first, second = (figure_png(w_projection_figure(w, labels, "abc")) for _ in range(2))
    assert first == second


def test_sets_are_columns():
    sets = {"baseline": clusters(each=8), "NoisyTwins": clusters(each=12, dim=4, seed=1)}
    figure = w_comparison_figure(sets, "abc")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["baseline", "NoisyTwins", "", ""]
    assert figure_image(figure).width > 600


def test_many_classes_are_thinned_and_said():
    w, labels = clusters(classes=50, each=4)
    figure = w_projection_figure(w, labels, [str(i) for i in range(50)])
    assert len(scatters(figure.axes[0])) == 20
    assert "20 of 50 classes" in figure.axes[1].get_xlabel()
    assert not figure.legends


def test_errors():
    w, labels = clusters()
    with pytest.raises(UserError, match="labels"):
        w_projection_figure(w, labels[:-1], "abc")
    with pytest.raises(UserError, match="not finite"):
        w_projection_figure(np.where(w > 3, np.nan, w), labels, "abc")
    with pytest.raises(UserError, match="at least one set"):
        w_comparison_figure({}, "abc")
