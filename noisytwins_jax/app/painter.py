"""The pictures of the page, from a trained generator and plain values."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from noisytwins_jax.app.class_list import ClassList
from noisytwins_jax.app.truncation import TruncationSlider, truncation_slider
from noisytwins_jax.app.uploads import read_upload
from noisytwins_jax.data.aspect import restore_aspect
from noisytwins_jax.generation.animation import loop_ends, save_animation
from noisytwins_jax.generation.projection import project
from noisytwins_jax.generation.sampler import Sampler
from noisytwins_jax.generation.sefa import directions, style_weights
from noisytwins_jax.generation.sheet_frame import GAP, describe_scale, displayed_size, draw_frame, resize_for_display
from noisytwins_jax.generation.sheets import image_grid
from noisytwins_jax.generation.style_mixing import layer_ws, mixing_images
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.utils.errors import UserError

MAX_IMAGES = 256  # in a picture
MAX_FRAMES = 480  # images in an animation
MAX_MIXED = 8  # rows and columns
MAX_EDITED = 8
DIRECTIONS = 5  # sliders
PARTS = ("All layers", "Coarse", "Middle", "Fine")
_BATCH = 8  # images in a call, of one compiled program whatever the number asked for
_RUNS = 4  # samples on the way within a class
# Side of an image in pixels, about: in a sheet, of eight in a row, in an animation, and alone.
_CELL, _EDITED, _MOVING, _LARGE = 64, 96, 112, 320


@dataclass(frozen=True, eq=False)
class Painter:
    """Pictures of one generator. Images are those that `TrainedGenerator.sample` gives for the same class, seed and truncation.

    Attributes:
      trained: the generator, its variables on the device.
      classes: the classes.
    """

    trained: TrainedGenerator
    classes: ClassList

    @functools.cached_property
    def slider(self) -> TruncationSlider:
        """The slider of truncation."""
        return truncation_slider(self.trained.config)

    @property
    def has_w(self) -> bool:
        """Whether the generator is a StyleGAN2, which alone has what works in W."""
        return self.trained.config.has_mapping_network

    @property
    def side(self) -> int:
        """Width of the images in pixels."""
        return self.trained.model.image_shape[1]

    def warm_up(self, report: Callable[[str], None] = lambda name: None) -> float:
        """Compile the programs of all pictures but projections; return the seconds that an image then takes."""
        labels, indices = self.trained.labels_and_indices([self.classes.order[0]], _BATCH)
        for strength in (self.slider.low, self.slider.high):  # two programs where the right end is no truncation
            sampler = self._sampler(self.slider.truncation(strength), 0)
            report(f"samples, {self.slider.label.lower()} {strength:g}")
            sampler(labels, indices)
            report(f"interpolations, {self.slider.label.lower()} {strength:g}")
            sampler.interpolate(*loop_ends(labels, indices, 1))
        start = time.perf_counter()
        sampler(labels, indices)
        seconds = (time.perf_counter() - start) / _BATCH
        if self.has_w:
            report("images of W")
            self._synthesize(layer_ws(self.trained, labels[:1], indices[:1]), None)
        return seconds

    def samples(self, classes: Sequence[int], per_class: int, strength: float, seed: int) -> Image.Image:
        """Draw a row of images for each class, from head to tail."""
        chosen, per_class = self.chosen_classes(classes), int(per_class)
        _check_count(len(chosen) * per_class, MAX_IMAGES, "images")
        images = self._generate(chosen, per_class, strength, seed)
        return self._sheet(chosen, images.reshape(len(chosen), per_class, *images.shape[1:]))

    def mixed(self, classes: Sequence[int], layers: Sequence[int], strength: float, seed: int) -> Image.Image:
        """Draw mixed styles of one image a class: a column replaces these layers of each row's image by its own."""
        chosen = self.few(classes, MAX_MIXED)
        ws, psi = self._ws(chosen, strength, seed)
        cells = self._shown(mixing_images(self.trained, ws, layers, psi, seed=int(seed)))
        return image_grid(cells, len(chosen) + 1, self._scale(_CELL), smooth=False)

    def edited(
        self, classes: Sequence[int], part: str, amounts: Sequence[float], strength: float, seed: int
    ) -> Image.Image:
        """Draw one image a class, and below it the same moved along SeFa's directions.

        Args:
          classes: ids.
          part: of `PARTS`, the layers that are moved and whose directions these are.
          amounts: of each direction, in standard deviations of w along it.
          strength: of truncation.
          seed: of the latents.
        """
        chosen = self.few(classes, MAX_EDITED)
        ws, psi = self._ws(chosen, strength, seed)
        layers, steps = self._directions(part)
        moved = ws.copy()
        moved[:, layers] += (np.asarray(amounts, np.float32) @ steps[: len(amounts)])[None, None]
        pairs = np.stack([self._synthesize(x, psi) for x in (ws, moved)])
        names = [self.classes.names[c] for c in chosen]
        rows = [("Sample", None), ("Edited", None)]
        caption = f"Classes {', '.join(names)}." if len(names) > 1 else f"Class {names[0]}."
        return self._rows(rows, pairs, caption, _EDITED)

    def animation(
        self, classes: Sequence[int], within: bool, frames: int, strength: float, seed: int, path: Path
    ) -> Path:
        """Write an animation: one image that goes from class to class, or every class at once from sample to sample.

        Args:
          classes: ids.
          within: whether every class has an image, which goes through samples of its class; one that has collapsed stands
            still.
          frames: from a sample to the next.
          strength: of truncation.
          seed: of the latents.
          path: of the file.

        Returns:
          The path.

        Raises:
          UserError: these are too many images, or a single class to go from class to class.
        """
        chosen, sampler = self.chosen_classes(classes), self._sampler(self.slider.truncation(strength), int(seed))
        if not within and len(chosen) < 2:
            raise UserError("Going from class to class needs two classes or more; choose another one.")
        ways = [[c] * _RUNS for c in chosen] if within else [chosen]
        _check_count(sum(map(len, ways)) * int(frames), MAX_FRAMES, "frames")
        ends = []
        for way in ways:
            labels, indices = self.trained.labels_and_indices(way, 1)
            ends.append(loop_ends(labels, indices + np.arange(len(way)) * within, int(frames)))
        images = self._shown(sampler.interpolate(*(np.concatenate(x) for x in zip(*ends, strict=True))))
        images = images.reshape(len(ways), -1, *images.shape[1:])
        cells = np.stack([_tile(x, self._scale(_MOVING if within else _LARGE)) for x in images.swapaxes(0, 1)])
        return save_animation(cells, path, scale=1.0)

    def projection(
        self,
        data: bytes,
        label: int | None,
        steps: int,
        per_layer: bool,
        report: Callable[[int, float], None] | None = None,
    ) -> tuple[Image.Image, float]:
        """Draw an uploaded picture beside the generator's nearest image; return the distance too.

        Raises:
          UserError: the file is no picture; see `uploads.read_upload`.
        """
        height, _, channels = self.trained.model.image_shape
        target = read_upload(data, height, channels, self.trained.config.data.preprocessing)
        per_layer = per_layer or bool(self.trained.stylegan2_generator("Projection").low_resolution)
        found = project(self.trained, target, int(steps), label, per_layer, report=report)
        pair = self._shown(np.stack([target, found.image]))
        return image_grid(pair, 2, self._scale(_LARGE), smooth=False), float(found.losses[-1])

    def image_of_ws(self, ws: np.ndarray, strength: float) -> Image.Image:
        """Draw the image of each layer's w ``[num_ws, w_dim]``."""
        cut = self.slider.truncation(strength)
        images = self._synthesize(ws[None], cut.strength if cut and cut.kind == "psi" else None)
        return resize_for_display(images[0], self._scale(_LARGE), smooth=False)

    def chosen_classes(self, classes: Sequence[int]) -> list[int]:
        """Sort chosen classes from head to tail; raises `UserError` if there are none."""
        if not classes:
            raise UserError("No class is chosen; choose one on the left.")
        return self.classes.sorted([int(c) for c in classes])

    def few(self, classes: Sequence[int], most: int) -> list[int]:
        """Return at most `most` of the chosen classes, at even distances."""
        chosen = self.chosen_classes(classes)
        return [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(most, len(chosen))).round().astype(int)]

    def _sampler(self, cut: Truncation | None, seed: int) -> Sampler:
        return self.trained.sampler(cut, seed, images=_BATCH)

    def _generate(self, classes: Sequence[int], per_class: int, strength: float, seed: int) -> np.ndarray:
        labels, indices = self.trained.labels_and_indices(classes, per_class)
        return self._shown(self._sampler(self.slider.truncation(strength), int(seed))(labels, indices)[0])

    def _ws(self, classes: Sequence[int], strength: float, seed: int) -> tuple[np.ndarray, float | None]:
        """Return each layer's w of one sample a class, and ψ."""
        cut = self.slider.truncation(strength)
        ws = layer_ws(self.trained, *self.trained.labels_and_indices(classes, 1), int(seed), cut)
        return ws, cut.strength if cut and cut.kind == "psi" else None

    def _synthesize(self, ws: np.ndarray, psi: float | None) -> np.ndarray:
        return self._shown(self.trained.synthesize(ws, psi))

    def _shown(self, images: np.ndarray) -> np.ndarray:
        """Return images in the aspect ratio of the pictures that the generator was trained on."""
        return restore_aspect(images, self.trained.aspect)

    @functools.cache  # noqa: B019  a painter lives as long as the program
    def _directions(self, part: str) -> tuple[list[int], np.ndarray]:
        """Return the layers of a part, and the directions times the standard deviation of w along them."""
        convolutions = np.arange(len(style_weights(self.trained.variables)))
        index = PARTS.index(part)
        chosen = convolutions if index == 0 else np.array_split(convolutions, len(PARTS) - 1)[index - 1]
        if not len(chosen):
            raise UserError(f"This generator has too few layers to have any for {part.lower()}; choose All layers.")
        found, _ = directions(self.trained.variables, chosen.tolist(), DIRECTIONS)
        few = self.classes.spread(32)
        ws = layer_ws(self.trained, *self.trained.labels_and_indices(few, -(-512 // len(few))))[:, -1]
        generator = self.trained.stylegan2_generator("SeFa")
        first = generator.num_low_ws or generator.num_ws  # from here on there is one more w than convolutions
        layers = range(generator.num_ws) if index == 0 else [int(c) + int(c >= first - 1) for c in chosen]
        return list(layers), (found * (ws @ found.T).std(axis=0)[:, None]).astype(np.float32)

    def _scale(self, target: int) -> float:
        """Return the enlargement of an image to about `target` pixels: a whole number, or a reduction of large images."""
        largest = max(256, 2 * target)
        return largest / self.side if self.side > largest else float(max(1, round(target / self.side)))

    def _sheet(self, classes: Sequence[int], images: np.ndarray) -> Image.Image:
        counts = self.classes.counts
        rows = [(self.classes.names[c], None if counts is None else counts[c]) for c in classes]
        order = "" if counts is None else "From head to tail by number of training images. "
        return self._rows(rows, images, order)

    def _rows(
        self, rows: list[tuple[str, int | None]], images: np.ndarray, caption: str, target: int = _CELL
    ) -> Image.Image:
        """Draw named rows of images ``[rows, columns, H, W, C]``."""
        height, width = images.shape[2:4]
        scale = self._scale(target)
        cell_w, cell_h = displayed_size(width, height, scale)
        caption = f"{caption} {describe_scale(height, width, scale, smooth=False)}"
        frame = draw_frame(rows, [""], [images.shape[1] * (cell_w + GAP) - GAP], cell_h, 0, caption)
        for y, row in zip(frame.tops, images, strict=True):
            for column, image in enumerate(row):
                frame.sheet.paste(
                    resize_for_display(image, scale, smooth=False), (frame.lefts[0] + column * (cell_w + GAP), y)
                )
        return frame.sheet


def _check_count(count: int, most: int, what: str) -> None:
    if count > most:
        raise UserError(
            f"These are {count} {what}, and at most {most} are drawn at once; choose fewer, or fewer classes."
        )


def _tile(images: np.ndarray, scale: float) -> np.ndarray:
    """Lay the images of a frame out in a grid: uint8 ``[n, H, W, C] → [H', W', 3]``."""
    return np.asarray(image_grid(images, scale=scale, smooth=False))
