"""A trained generator for use in a program: three lines from a directory to images.

from noisytwins_jax import load

model = load("runs/inat19-noisytwins")
images = model.sample(classes=[3, 7], psi=0.7, seed=0)
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.aspect import Aspect
from noisytwins_jax.data.instance_table import InstanceTable
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.generation.sample_programs import quantize
from noisytwins_jax.generation.sampler import Sampler
from noisytwins_jax.generation.standing_statistics import standing_statistics
from noisytwins_jax.generation.stored_statistics import StoredStatistics, read_stored_statistics
from noisytwins_jax.models.latents import Truncation, check_truncation, parse_truncation
from noisytwins_jax.models.model import Model
from noisytwins_jax.models.stylegan2 import truncate
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.instance_conditioning import with_instances
from noisytwins_jax.training.restore import check_has_checkpoint, restore_ema
from noisytwins_jax.training.workdir import cache_dir, read_aspect, read_run, use_compilation_cache
from noisytwins_jax.utils.config_fields import validate
from noisytwins_jax.utils.errors import UserError, did_you_mean
from noisytwins_jax.utils.logging import quiet_libraries
from noisytwins_jax.utils.multihost import local_copy
from noisytwins_jax.utils.platform import expect_no_tpu, has_tpu

_INDICES_PER_CLASS = 2**20  # sample indices reserved for each class
_BATCHES = (1, 8, 64)  # possible per_device_batch


@dataclass(frozen=True, eq=False)
class TrainedGenerator:
    """A generator with its weights. Images are uint8 ``[n, H, W, C]``, squares as for networks and metrics.

    ``data.aspect.restore_aspect(images, trained.aspect)`` shows them in the shape of the training pictures.
    An image depends on (seed, class, number within the class, truncation, noise) only: up to
    rounding, not on the number of devices or the other images asked for.

    Attributes:
      config: the configuration it was trained with.
      variables: Flax collections of the averaged generator, whole in this process.
      channels: image channels.
      class_names: the name of every class.
      step: number of generator updates, 0 if unknown.
      instances: features of the training images, where it is conditioned on them.
      stored_statistics: BatchNorm statistics from a converted BigGAN checkpoint.
      aspect: the aspect ratio of the training pictures where they were padded or stretched; None if they share none.
    """

    config: RunConfig
    variables: dict[str, Any]
    channels: int
    class_names: tuple[str, ...]
    step: int = 0
    instances: InstanceTable | None = None
    stored_statistics: StoredStatistics | None = None
    aspect: Aspect | None = None

    @functools.cached_property
    def model(self) -> Model:
        """The networks."""
        return build_model(self.config, self.channels, len(self.class_names))

    def sample(
        self,
        classes: Sequence[int | str] | int | None = None,
        per_class: int = 1,
        psi: float | None = None,
        truncation: str | None = None,
        seed: int = 0,
        noise_mode: str | None = None,
        style_seed: int | None = None,
    ) -> np.ndarray:
        """Generate `per_class` images of each class, class by class.

        Args:
          classes: class ids or names, or a single id; every class by default.
          per_class: images per class.
          psi: truncation in W; None or 1 for none.
          truncation: another kind and its strength, as ``"threshold:0.5"``; see `latents.TRUNCATIONS`.
          seed: of the latents, 0 to 2³² - 1.
          noise_mode: per-pixel noise ``"random"``, ``"const"`` or ``"none"``; as trained by default. StyleGAN2 only.
          style_seed: of the half of the latents that the class's style takes, `seed` by default. Content–Style only.

        Raises:
          UserError: the class, kind of truncation or noise does not exist, or a number is out of range.
        """
        labels, indices = self.labels_and_indices(classes, per_class)
        sampler = self.sampler(self.truncation(psi, truncation), seed, noise_mode, len(labels), style_seed)
        return sampler(labels, indices)[0]

    def w(
        self,
        classes: Sequence[int | str] | int | None = None,
        per_class: int = 1,
        seed: int = 0,
        truncation: str | None = None,
    ) -> np.ndarray:
        """Compute w of the images that `sample` generates: float32 ``[n, D]``, untruncated in W."""
        labels, indices = self.labels_and_indices(classes, per_class)
        cut = self.truncation(None, truncation)
        in_z = cut if cut and cut.kind != "psi" else None
        return self.sampler(in_z, seed, images=len(labels))(labels, indices)[1]

    def synthesize(
        self, ws: np.ndarray, psi: float | None = None, noise_mode: str = "const", seed: int = 0
    ) -> np.ndarray:
        """Generate images from points in W with StyleGAN2's synthesis network.

        Args:
          ws: float ``[n, w_dim]``, or ``[n, num_ws, w_dim]`` with each layer's own, as after style mixing.
          psi: see `sample`.
          noise_mode: see `sample`; by default the stored noise, so that edits of w are the only change.
          seed: of random noise.

        Raises:
          UserError: the generator is no StyleGAN2, or `ws` has another shape.
        """
        generator = self.stylegan2_generator("synthesize")
        ws = np.asarray(ws, np.float32)
        if ws.ndim == 2 and ws.shape[1] == generator.w_dim:
            ws = np.broadcast_to(ws[:, None], (len(ws), generator.num_ws, generator.w_dim))
        if ws.ndim != 3 or ws.shape[1:] != (generator.num_ws, generator.w_dim):
            raise UserError(
                f"ws of shape {list(ws.shape)} are no points in W; give [n, {generator.w_dim}], or "
                f"[n, {generator.num_ws}, {generator.w_dim}] with each layer's own."
            )
        strength = np.float32(1.0 if psi is None else psi)
        program = _synthesis_program(self._model_with(noise_mode))
        images = [program(self.variables, w, strength, np.uint32(seed), np.int32(i)) for i, w in enumerate(ws)]
        return np.stack(jax.device_get(images)) if images else np.zeros((0, *self.model.image_shape), np.uint8)

    def labels_and_indices(
        self, classes: Sequence[int | str] | int | None, per_class: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return labels and sample indices ``[n]`` of `per_class` images of each class (or of a single one); default: all.

        Raises:
          UserError: there are no classes, an unknown one, or no images.
        """
        classes = find_class_ids(classes, self.class_names)
        if per_class not in range(1, _INDICES_PER_CLASS + 1):
            raise UserError(f"{per_class} images per class cannot be sampled; ask for 1 to {_INDICES_PER_CLASS}.")
        labels = np.repeat(np.asarray(classes, np.int64), per_class)
        return labels, labels * _INDICES_PER_CLASS + np.tile(np.arange(per_class), len(classes))

    def truncation(self, psi: float | None, text: str | None = None) -> Truncation | None:
        """Return the truncation that the arguments of `sample` mean, None for none.

        Raises:
          UserError: both arguments are given, or this generator cannot truncate like that.
        """
        if psi is not None and text:
            raise UserError("psi and truncation both truncate; give one of them.")
        cut = (
            Truncation("psi", float(psi))
            if psi is not None
            else parse_truncation(text or "", self.config.truncation_kind)
        )
        if cut is not None:
            check_truncation(*cut, self.config.latents.kind, self.config.has_mapping_network)
        return None if cut == Truncation("psi", 1.0) else cut

    def sampler(
        self,
        truncation: Truncation | None = None,
        seed: int = 0,
        noise_mode: str | None = None,
        images: int = 64,
        style_seed: int | None = None,
    ) -> Sampler:
        """Build the sampler, for any labels and indices; with several processes to be called by all.

        `images` is the approximate number of images: a few are generated in smaller batches.

        Raises:
          UserError: a seed is out of range or has no effect, or the kind of noise does not exist.
        """
        check_seed(seed)
        check_seed(0 if style_seed is None else style_seed)
        if style_seed is not None and not self.config.content_style.active:
            raise UserError("style_seed is for generators that divide z into content and style (content_style).")
        model, variables = self._model_with(noise_mode), self.variables_with_statistics(truncation)
        batch = next((size for size in _BATCHES if images <= size), _BATCHES[-1])
        return Sampler(
            model,
            self.config.z,
            variables,
            seed=seed,
            truncation=truncation,
            per_device_batch=batch,
            instances=self.instances,
            style_seed=style_seed,
        )

    def variables_with_statistics(self, truncation: Truncation | None) -> dict[str, Any]:
        """Return the variables, with BigGAN's BatchNorm statistics for this truncation."""
        if self.stored_statistics is not None and (stored := self.stored_statistics.at(truncation)) is not None:
            return {**self.variables, **stored}
        counts = self.config.evaluation.standing_passes, self.config.evaluation.standing_batch
        return standing_statistics(self.model, self.config.z, self.variables, truncation, *counts, self.instances)

    def stylegan2_generator(self, purpose: str) -> Any:
        """Return the Flax module, for operations in StyleGAN2's W.

        Raises:
          UserError: this generator is no StyleGAN2; the message begins with `purpose`.
        """
        if not self.config.has_mapping_network:
            raise UserError(f"{purpose} works in StyleGAN2's W, which a {self.config.network} generator does not have.")
        return self.model.generator

    def _model_with(self, noise_mode: str | None) -> Model:
        if noise_mode is None:
            return self.model
        self.stylegan2_generator("noise_mode")
        field = {entry.name: entry for entry in dataclasses.fields(self.config.generator)}["noise_mode"]
        if problem := validate(field.metadata, noise_mode):
            raise UserError(f"noise_mode {problem}")
        return dataclasses.replace(self.model, noise_mode=noise_mode)


@functools.lru_cache(maxsize=8)
def _synthesis_program(model: Any) -> Any:
    """Build the program (variables, ws ``[num_ws, w_dim]``, ψ, seed, number) → an image uint8 ``[H, W, C]``."""

    @jax.jit
    def program(variables: dict, ws: jax.Array, psi: jax.Array, seed: jax.Array, number: jax.Array) -> jax.Array:
        ws = truncate(ws[None], variables["buffers"]["mapping"]["w_avg"], psi)
        key = jax.random.fold_in(jax.random.key(seed), number)
        images = model.generator.apply(variables, ws, model.noise_mode, method="synthesize", rngs={"noise": key})
        return quantize(images)[0]

    return program


def check_seed(seed: int) -> None:
    """Raise a `UserError` unless a seed of latents is an integer from 0 to 2³² - 1."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise UserError(f"The seed {seed!r} must be an integer from 0 to {2**32 - 1}.")


def find_class_ids(classes: Sequence[int | str] | int | None, class_names: Sequence[str]) -> list[int]:
    """Return the ids of classes that are given by id, as a number or its text, or by name; a text of both is an id.

    Args:
      classes: ids or names, or a single id; None for every class.
      class_names: the name of every class.

    Raises:
      UserError: there are no classes, or an unknown one.
    """
    ids = {name: c for c, name in reversed([*enumerate(class_names)])}  # of classes of one name, the first
    ids |= {str(c): c for c in range(len(class_names))}
    if classes is None:
        return list(range(len(class_names)))
    texts = [str(c) for c in ([classes] if np.ndim(classes) == 0 else classes)]
    if not texts:
        raise UserError("There are no classes to sample; give class ids, for example 0,9, or none of them for all.")
    for text in texts:
        if text not in ids:
            hint = "." if re.fullmatch(r"-?\d+", text) else f"; {did_you_mean(text, class_names)}"
            raise UserError(f"There is no class {text}; classes are 0 to {len(class_names) - 1}{hint}")
    return [ids[text] for text in texts]


def load(path: str | Path, checkpoint: str | int = "latest", config: RunConfig | None = None) -> TrainedGenerator:
    """Load the averaged generator of a run, or of a directory written by ``noisytwins_jax.convert``.

    The training images are not needed, unless it is conditioned on them (IC-GAN).

    Args:
      path: the run's workdir.
      checkpoint: ``"latest"``, ``"best"`` or a step.
      config: the run's configuration; that in the workdir by default.

    Raises:
      UserError: the run or checkpoint does not exist.
    """
    quiet_libraries()
    if not has_tpu():
        expect_no_tpu()
    workdir = Path(path).absolute()
    check_has_checkpoint(workdir, checkpoint)
    config, channels, class_names = read_run(workdir, config)
    use_compilation_cache(workdir)
    step, ema = restore_ema(config, workdir, checkpoint, build_model(config, channels, len(class_names)))
    instances = None
    if config.instances.neighbours > 0:
        instances = with_instances(config, load_data(config.data), cache_dir(workdir)).instances
    statistics = read_stored_statistics(workdir, step)
    shown = read_aspect(workdir)
    return TrainedGenerator(config, local_copy(ema), channels, class_names, step, instances, statistics, shown)
