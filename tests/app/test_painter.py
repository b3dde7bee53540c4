"""The pictures of the page, of a tiny StyleGAN2 without training, and of a BigGAN."""

import jax
import numpy as np
import pytest
import tiny_biggan
import tiny_run
from PIL import Image

from noisytwins_jax.app.class_list import ClassList
from noisytwins_jax.app.painter import MAX_FRAMES, PARTS, Painter
from noisytwins_jax.app.truncation import truncation_slider
from noisytwins_jax.app.w_map import draw_w_map
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("fast_compilation")
CLASSES = ClassList(("a", "b", "c", "d"), (9, 70, 3, 20), {"head": [1], "medium": [3, 0], "tail": [2]})
CELL = 64  # pixels: 8-pixel images in sheets


def make_painter(config):
    trained = TrainedGenerator(config, {}, 1, CLASSES.names)
    variables = trained.model.init(jax.random.key(0))[0]
    return Painter(TrainedGenerator(config, variables, 1, CLASSES.names), CLASSES)


@pytest.fixture(scope="module")
def painter():
    return make_painter(tiny_run.tiny_config(**{"generator.noise_mode": "const"}))


def cells(picture, columns, rows, cell=CELL, gap=4):
    """The images of a grid, at its original 8 pixels: [rows, columns, 8, 8]."""
    assert picture.size == (columns * (cell + gap) + gap, rows * (cell + gap) + gap)
    pixels = np.asarray(picture)[..., 0]
    starts = [[(gap + y * (cell + gap), gap + x * (cell + gap)) for x in range(columns)] for y in range(rows)]
    return np.array([[pixels[y : y + cell : cell // 8, x : x + cell : cell // 8] for y, x in row] for row in starts])


def shows(picture, image, scale=8):
    """Whether a picture has an image, every pixel of it a square."""
    block = np.kron(image[..., 0], np.ones((scale, scale), np.uint8)).astype(int)
    pixels, side = np.asarray(picture)[..., 0].astype(int), 8 * scale
    windows = np.lib.stride_tricks.sliding_window_view(pixels, side, axis=1)
    for y in range(pixels.shape[0] - side + 1):
        for x in np.flatnonzero(np.abs(windows[y] - block[0]).max(axis=-1) <= 1):
            if np.abs(pixels[y : y + side, x : x + side] - block).max() <= 1:
                return True
    return False


def test_samples_are_those_of_the_generator(painter):
    picture = painter.samples([2, 0], 3, 0.5, seed=7)
    images = painter.trained.sample([0, 2], per_class=3, psi=0.5, seed=7)
    assert all(shows(picture, image) for image in images)
    assert not shows(picture, painter.trained.sample([1], psi=0.5, seed=7)[0])


def test_classes_are_from_head_to_tail(painter):
    assert painter.chosen_classes([0, 1, 2, 3]) == [1, 3, 0, 2]
    assert painter.few([0, 1, 2, 3], 2) == [1, 2] and CLASSES.spread(2) == [1, 2]


def test_mixing_takes_layers_from_the_column(painter):
    count = painter.trained.model.generator.num_ws
    none, every = (cells(painter.mixed([0, 1, 2], layers, 1.0, 0), 4, 4) for layers in ([], range(count)))
    for i in range(1, 4):
        for j in range(1, 4):
            np.testing.assert_array_equal(none[i, j], none[i, 0])
            np.testing.assert_array_equal(every[i, j], every[0, j])
    some = cells(painter.mixed([0, 1, 2], [0], 1.0, 0), 4, 4)
    assert (some[1, 2] != some[1, 0]).any() and (some[1, 2] != some[0, 2]).any()


def test_styles_are_those_of_the_samples(painter):
    picture = painter.mixed([1], [], 0.5, seed=3)
    sample = painter.trained.sample([1], psi=0.5, seed=3)[0]
    assert np.abs(cells(picture, 2, 2)[0, 1].astype(int) - sample[..., 0]).max() <= 1


@pytest.mark.parametrize("part", PARTS)
def test_directions_move_images(painter, part):
    still, moved = (np.asarray(painter.edited([0, 1], part, [amount, 0, 0], 1.0, 0)) for amount in (0, 4))
    sample = painter.trained.synthesize(painter.trained.w([1], seed=0))[0]
    assert shows(still, sample, 12) and shows(moved, sample, 12)
    assert still.shape == moved.shape and (still != moved).any()


def test_a_direction_is_in_standard_deviations_of_w(painter):
    layers, steps = painter._directions("All layers")
    w = np.concatenate([painter.trained.w([c], 200, seed=5) for c in range(4)])
    units = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    np.testing.assert_allclose((w @ units.T).std(axis=0), np.linalg.norm(steps, axis=1), rtol=0.15)
    assert layers == list(range(painter.trained.model.generator.num_ws))


@pytest.mark.parametrize(("within", "count"), [(False, 3 * 8), (True, 4 * 8)])
def test_animations(painter, within, count, tmp_path):
    path = painter.animation([0, 1, 2], within, 8, 1.0, 0, tmp_path / "way.webp")
    with Image.open(path) as animation:
        frames = []
        for number in range(animation.n_frames):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("L")).astype(int))
    assert len(frames) == count
    scale = 14 if within else 40  # of the images, 4 pixels from the edges
    sample = painter.trained.sample([1], seed=0)[0, ..., 0]
    first = frames[0][4 : 4 + 8 * scale : scale, 4 : 4 + 8 * scale : scale]
    assert np.abs(first - sample).max() <= 1
    steps = [np.abs(a - b).mean() for a, b in zip(frames, frames[1:] + frames[:1], strict=True)]
    assert 0 < steps[-1] < 3 * np.mean(steps[:-1])  # the end leads to the beginning


def test_map_of_w(painter):
    drawn = draw_w_map(painter, [0, 1, 2, 3], seed=0)
    for number in (0, 300):
        ws, label = drawn.at(*drawn.points[number])
        np.testing.assert_allclose(ws, drawn.ws[number], atol=1e-5)
        assert label == drawn.labels[number]
        assert painter.image_of_ws(ws, 1.0).size == (320, 320)
    # A point is drawn where it is: the ring covers it, and moving along the map moves w within its plane.
    x, y = drawn.points[5]
    assert 0 < x < drawn.image.width and 0 < y < drawn.image.height
    changed = np.argwhere((np.asarray(drawn.marked(x, y)) != np.asarray(drawn.image)).any(axis=-1))
    np.testing.assert_allclose(changed.mean(axis=0), [y, x], atol=6)
    other, _ = drawn.at(x + 0.1, y)
    axis = drawn.axes[0] / np.linalg.norm(drawn.axes[0])
    moved = (other - drawn.at(x, y)[0])[0]
    np.testing.assert_allclose(moved, (moved @ axis) * axis, atol=1e-5)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda p: p.samples([], 1, 1.0, 0), "No class is chosen"),
        (lambda p: p.samples([0, 1, 2, 3], 65, 1.0, 0), "These are 260 images"),
        (lambda p: p.samples([0], 1, 1.0, -1), "must be an integer from 0"),
        (lambda p: p.animation([0], False, 8, 1.0, 0, "way.webp"), "needs two classes"),
        (lambda p: p.animation([0, 1], True, MAX_FRAMES, 1.0, 0, "way.webp"), "frames, and at most"),
        (lambda p: p.projection(b"no picture", None, 10, False), "no picture that can be read"),
    ],
)
def test_what_cannot_be_drawn(painter, draw, message):
    with pytest.raises(UserError, match=message):
        draw(painter)


def test_programs_are_compiled_beforehand(painter):
    names = []
    assert painter.warm_up(names.append) > 0
    assert names == [
        "samples, truncation, ψ 0",
        "interpolations, truncation, ψ 0",
        "samples, truncation, ψ 1",
        "interpolations, truncation, ψ 1",
        "images of W",
    ]


def test_biggan_has_its_own_truncation_and_no_w(tmp_path):
    painter = make_painter(tiny_biggan.tiny_config(**{"evaluation.standing_passes": 1, "evaluation.standing_batch": 4}))
    assert (painter.slider.kind, painter.has_w) == ("threshold", False)
    assert painter.slider.truncation(painter.slider.high) is None and painter.slider.truncation(0).strength > 0
    picture = painter.samples([0], 1, 0.5, 1)
    assert shows(picture, painter.trained.sample([0], truncation="threshold:0.5", seed=1)[0])
    with pytest.raises(UserError, match="StyleGAN2's W"):
        painter.mixed([0], [0], 1.0, 0)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "psi"),
        ({"evaluation.truncation_kind": "threshold"}, "threshold"),
        ({**tiny_biggan.CHANGES, "latents.kind": "censored", "evaluation.truncation_kind": "std"}, "std"),
        ({**tiny_biggan.CHANGES, "latents.kind": "censored"}, "std"),
    ],
)
def test_truncation_of_the_right_kind(changes, kind):
    config = tiny_run.tiny_config(**changes)
    slider = truncation_slider(config)
    assert slider.kind == kind and slider.label and slider.info.endswith(".")
    for strength in (slider.low, slider.high):
        cut = slider.truncation(strength)
        assert cut is None or TrainedGenerator(config, {}, 1, ("a",)).truncation(
            None, f"{cut.kind}:{cut.strength}"
        ) in (
            cut,
            None,
        )
