import colorsys
import itertools

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from noisytwins_jax.data.petals import FACTORS, PATTERNS, TEXTURE_SHAPE, Species, draw, render, species
from noisytwins_jax.utils.errors import UserError

PLAIN = Species(
    petals=5,
    rings=1,
    width=0.3,
    widest=0.6,
    point=0.5,
    notch=0.0,
    hue=0.6,
    saturation=0.8,
    value=0.9,
    centre=0.12,
    centre_hue=0.1,
    centre_value=0.8,
    pattern="plain",
    accent=0.0,
)


def texture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(TEXTURE_SHAPE)


def factors(**values: float) -> np.ndarray:
    return np.array([values.get(name, 0.5) for name in FACTORS], np.float32)


def picture(flower: Species = PLAIN, resolution: int = 64, **values: float) -> np.ndarray:
    return render(flower, factors(**values), resolution, texture()).astype(np.float64)


def foreground(flower: Species = PLAIN, **values: float) -> np.ndarray:
    """Where flower and stem are: bool ``[64, 64]``; there the background does not matter."""
    dark, light = (picture(flower, **values, background=b) for b in (0.0, 1.0))
    return np.abs(dark - light).max(-1) < 2


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return np.abs(first.astype(np.float64) - second).mean()


@pytest.mark.parametrize("resolution", [8, 64, 128])
def test_draw(resolution):
    image, truth = draw(2, 3, resolution, seed=1)
    assert image.shape == (resolution, resolution, 3) and image.dtype == np.uint8
    assert truth.shape == (len(FACTORS),) and truth.dtype == np.float32
    again, same_truth = draw(2, 3, resolution, seed=1)
    assert (image == again).all() and (truth == same_truth).all()
    for other in [(1, 3, resolution, 1), (2, 4, resolution, 1), (2, 3, resolution, 0)]:
        other_image, other_truth = draw(*other)
        assert (other_image != image).any() and (other_truth != truth).all()


def test_draw_has_the_same_factors_at_every_resolution():
    np.testing.assert_array_equal(draw(0, 7, 8)[1], draw(0, 7, 64)[1])


def test_draw_renders_its_factors():
    image, truth = draw(4, 0, 64)
    same_factors = render(species(4), truth, 64, texture())
    assert difference(image, same_factors) < difference(image, draw(4, 1, 64)[0]) / 3  # only the texture differs


def test_factors_are_uniform_and_independent_in_every_class():
    for label in (0, 1):
        truth = np.stack([draw(label, i, 8)[1] for i in range(400)])
        assert truth.min() >= 0 and truth.max() < 1
        for values in truth.T:
            assert kstest(values, "uniform").pvalue > 1e-3
        assert np.abs(np.corrcoef(truth.T) - np.eye(len(FACTORS))).max() < 0.2


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("label", range(4))
def test_every_factor_shows(name, label):
    low, middle, high = (picture(species(label), 32, **{name: value}) for value in (0.2, 0.5, 0.8))
    assert difference(low, middle) > 0.3 and difference(middle, high) > 0.3  # grey levels, over the whole picture
    assert difference(low, high) > 0.6


def test_place():
    for name, axis in (("x", 1), ("y", 0)):
        # The stem reaches the lower edge from every place, so only rows of petals count.
        centres = [np.argwhere(foreground(**{name: v}, size=0.0)[:42]).mean(0)[axis] for v in (0.0, 0.5, 1.0)]
        assert np.diff(centres).min() > 4


def test_size_and_tilt():
    sizes = [foreground(size=value).sum() for value in np.linspace(0, 1, 6)]
    assert np.diff(sizes).min() > 0 and sizes[-1] > 2 * sizes[0]
    flat = [foreground(tilt=value).any(1).argmax() for value in np.linspace(0, 1, 6)]  # highest row of the petals
    assert np.diff(flat).min() >= 0 and flat[-1] > flat[0] + 5
    widths = [foreground(tilt=value).any(0).sum() for value in (0, 1)]
    assert abs(widths[0] - widths[1]) <= 2


def test_turn_shows_whatever_the_symmetry_of_the_petals():
    for flower in (PLAIN, PLAIN._replace(petals=3), PLAIN._replace(petals=8, rings=2), *map(species, range(10))):
        # The long petals swing from left to right, and with them the middle of the flower.
        middles = [np.argwhere(foreground(flower, turn=value)).mean(0)[1] for value in np.linspace(0, 1, 6)]
        assert np.diff(middles).min() > 0
        assert middles[0] < 31 and middles[-1] > 32


def test_hue():
    for value, expected in ((0.0, 0.56), (0.5, 0.6), (1.0, 0.64)):
        pixels = picture(hue=value, size=1.0)[foreground(hue=value, size=1.0)] / 255
        hues = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels]
        assert np.median(hues) == pytest.approx(expected, abs=0.01)


def test_background():
    corners = [picture(background=value)[:8, :8].mean() for value in np.linspace(0, 1, 9)]
    assert np.diff(corners).min() > 5
    spread = [picture(background=value)[:8].std() for value in (0.2, 0.8)]
    assert min(spread) > 1  # it has a texture


def test_mirroring_mirrors_x_and_turn():
    waves = texture()
    mirrored = waves * (-1.0) ** np.arange(TEXTURE_SHAPE[1])
    flower = species(1)
    image = render(flower, factors(x=0.2, turn=0.3), 64, waves)
    same = render(flower, factors(x=0.8, turn=0.7), 64, mirrored)[:, ::-1]
    assert difference(image, same) < 0.1


@pytest.mark.parametrize("label", range(3))
def test_resolutions_show_the_same_picture(label):
    def shrink(image: np.ndarray, resolution: int) -> np.ndarray:
        k = len(image) // resolution
        return image.reshape(resolution, k, resolution, k, 3).mean((1, 3))

    large = draw(label, 5, 256)[0].astype(np.float64)
    other = draw(label, 6, 256)[0].astype(np.float64)
    for resolution in (8, 32, 64, 128):
        image = draw(label, 5, resolution)[0]
        assert difference(image, shrink(large, resolution)) < 3
        assert difference(image, shrink(other, resolution)) > 10


def test_classes_can_be_told_apart():
    def colours(image: np.ndarray) -> np.ndarray:
        """Histogram of colours, 4 levels a channel: knows nothing of place and form."""
        levels = image.reshape(-1, 3) // 64
        return np.sqrt(np.bincount(levels @ [16, 4, 1], minlength=64))

    def features(indices: range) -> tuple[np.ndarray, list[int]]:
        pairs = [(c, i) for c in range(10) for i in indices]
        return np.array([colours(draw(*pair, 32)[0]) for pair in pairs]), [c for c, _ in pairs]

    classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(*features(range(40)))
    assert classifier.score(*features(range(40, 60))) > 0.9  # chance is 0.1


def test_species_cover_their_ranges_and_differ():
    flowers = [species(label) for label in range(1010)]
    assert {f.petals for f in flowers} == set(range(3, 14))
    assert {f.rings for f in flowers} == {1, 2, 3}
    assert {f.pattern for f in flowers} == set(PATTERNS)
    assert min(f.width for f in flowers) > 0.07 and max(f.width for f in flowers) <= 0.5
    hues = np.array([f.hue for f in flowers])
    assert hues.min() >= 0 and hues.max() < 1 and not ((hues > 0.18) & (hues < 0.55)).any()  # no green petals
    table = np.array([[*f[:12], PATTERNS.index(f.pattern)] for f in flowers], np.float64)
    table[:, 6] = (table[:, 6] + 0.5) % 1  # blue to yellow without a jump
    table = (table - table.min(0)) / np.ptp(table, axis=0)
    distances = np.linalg.norm(table[:, None] - table, axis=-1) + np.eye(len(table))
    assert distances.min() > 0.3


def test_first_species_are_clearly_different():
    images = [render(species(label), factors(), 64, texture()).astype(np.float64) for label in range(12)]
    assert min(difference(a, b) for a, b in itertools.combinations(images, 2)) > 5


def test_species_depend_on_the_seed():
    assert species(3) == species(3, seed=0) != species(3, seed=1)


@pytest.mark.filterwarnings("error")
def test_extreme_factors_raise_no_warning():
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        for label, corner in enumerate(itertools.product((0.0, 1.0), repeat=len(FACTORS))):
            image = render(species(label), np.array(corner), 8, texture(label))
            assert image.std() > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 12), "power of two"),
        ((-1, 0, 8), "label of a drawn flower must not be negative"),
        ((0, -1, 8), "index of a drawn flower must not be negative"),
        ((0, 0, 8, -1), "seed of a drawn flower must not be negative"),
    ],
)
def test_draw_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        draw(*arguments)
