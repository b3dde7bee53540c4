"""A trained generator in a program's hands: three lines from a directory to images.

from noisytwins_jax import load

model = load("runs/inat19-noisytwins")
images = model.sample(classes=[3, 7], psi=0.7, seed=0)
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from noisytwins_jax.config import RunConfig, parse_flat
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
from noisytwins_jax.training.workdir import cache_dir, read_classes, read_config, use_compilation_cache
from noisytwins_jax.utils.config_fields import objection
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.logging import quiet_libraries
from noisytwins_jax.utils.multihost import local_copy
from noisytwins_jax.utils.platform import expect_no_tpu, has_tpu

_OF_A_CLASS = 2**20  # indices of samples that each class has to itself
_BATCHES = (1, 8, 64)  # images that a device makes at once


@dataclass(frozen=True, eq=False)
class TrainedGenerator:
    """A generator with its weights. Images are uint8 ``[n, H, W, C]``.

    An image depends on (seed, class, number within the class, truncation, noise) only: up to
    rounding, not on the number of devices or the other images asked for.

    Attributes:
      config: what it was trained with.
      variables: Flax collections of the averaged generator, whole in this process.
      channels: of its images.
      class_names: the name of every class.
      step: generator updates done, 0 where that is not known.
      instances: the training images' features, where it is conditioned on such.
      moments: moments of activations that came with a converted BigGAN.
    """

    config: RunConfig
    variables: dict[str, Any]
    channels: int
    class_names: tuple[str, ...]
    step: int = 0
    instances: InstanceTable | None = None
    moments: StoredStatistics | None = None

    @functools.cached_property
    def model(self) -> Model:
        """The networks."""
        return build_model(self.config, self.channels, len(self.class_names))

    def sample(
        self,
        classes: Sequence[int] | int | None = None,
        per_class: int = 1,
        psi: float | None = None,
        truncation: str | None = None,
        seed: int = 0,
        noise_mode: str | None = None,
    ) -> np.ndarray:
        """Images of some classes, `per_class` of each, class by class.

        Args:
          classes: class ids, or one; every class by default.
          per_class: images of each.
          psi: truncation in W; None or 1 for none.
          truncation: another kind and its strength, as ``"threshold:0.5"``; see `latents.TRUNCATIONS`.
          seed: of the latents, 0 to 2³² - 1.
          noise_mode: per-pixel noise ``"random"``, ``"const"`` or ``"none"``; as trained by default. StyleGAN2 only.

        Raises:
          UserError: no such class, kind of truncation or noise, or a number out of range.
        """
        labels, indices = self.rows(classes, per_class)
        sampler = self.sampler(self.truncation(psi, truncation), seed, noise_mode, len(labels))
        return sampler(labels, indices)[0]

    def w(
        self,
        classes: Sequence[int] | int | None = None,
        per_class: int = 1,
        seed: int = 0,
        truncation: str | None = None,
    ) -> np.ndarray:
        """The w of the images that `sample` draws: float32 ``[n, D]``, untruncated in W."""
        labels, indices = self.rows(classes, per_class)
        cut = self.truncation(None, truncation)
        in_z = cut if cut and cut.kind != "psi" else None
        return self.sampler(in_z, seed, images=len(labels))(labels, indices)[1]

    def synthesize(
        self, ws: np.ndarray, psi: float | None = None, noise_mode: str = "const", seed: int = 0
    ) -> np.ndarray:
        """Images of points in W: StyleGAN2's synthesis network alone.

        Args:
          ws: float ``[n, w_dim]``, or ``[n, num_ws, w_dim]`` with each layer's own, as after mixing styles.
          psi: see `sample`.
          noise_mode: see `sample`; by default the stored noise, so that an edit changes only what it changes.
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
        rows = [program(self.variables, w, strength, np.uint32(seed), np.int32(i)) for i, w in enumerate(ws)]
        return np.stack(jax.device_get(rows)) if rows else np.zeros((0, *self.model.image_shape), np.uint8)

    def rows(self, classes: Sequence[int] | int | None, per_class: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels and sample indices ``[n]`` of `per_class` images of each of the classes (or of one), all by default.

        Raises:
          UserError: no class, an unknown one, or no image.
        """
        count = len(self.class_names)
        classes = list(range(count)) if classes is None else np.atleast_1d(classes).tolist()
        if not classes:
            raise UserError("There are no classes to draw; give class ids, for example 0,9, or none of them for all.")
        unknown = [c for c in classes if c not in range(count)]
        if unknown:
            raise UserError(f"There is no class {unknown[0]!r}; classes are 0 to {count - 1}.")
        if per_class not in range(1, _OF_A_CLASS + 1):
            raise UserError(f"{per_class} images a class cannot be drawn; ask for 1 to {_OF_A_CLASS}.")
        labels = np.repeat(np.asarray(classes, np.int64), per_class)
        return labels, labels * _OF_A_CLASS + np.tile(np.arange(per_class), len(classes))

    def truncation(self, psi: float | None, text: str | None = None) -> Truncation | None:
        """What `sample`'s arguments say, None for no truncation.

        Raises:
          UserError: they say two things, or what this generator cannot do.
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
        self, truncation: Truncation | None = None, seed: int = 0, noise_mode: str | None = None, images: int = 64
    ) -> Sampler:
        """What draws the images, for any labels and indices; in a run of several processes to be made by all.

        `images` says how many are wanted, about: few are then made in smaller batches.

        Raises:
          UserError: the seed is out of range, or there is no such noise.
        """
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
            raise UserError(f"The seed {seed!r} must be an integer from 0 to {2**32 - 1}.")
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
        )

    def variables_with_statistics(self, truncation: Truncation | None) -> dict[str, Any]:
        """The variables, with BigGAN's moments of activations for this truncation."""
        if self.moments is not None and (stored := self.moments.at(truncation)) is not None:
            return {**self.variables, **stored}
        counts = self.config.evaluation.standing_passes, self.config.evaluation.standing_batch
        return standing_statistics(self.model, self.config.z, self.variables, truncation, *counts, self.instances)

    def stylegan2_generator(self, purpose: str) -> Any:
        """The Flax module, for what is done in StyleGAN2's W.

        Raises:
          UserError: this generator has no such W.
        """
        if not self.config.has_mapping_network:
            raise UserError(f"{purpose} works in StyleGAN2's W, which a {self.config.network} generator does not have.")
        return self.model.generator

    def _model_with(self, noise_mode: str | None) -> Model:
        if noise_mode is None:
            return self.model
        self.stylegan2_generator("noise_mode")
        field = {entry.name: entry for entry in dataclasses.fields(self.config.generator)}["noise_mode"]
        if words := objection(field.metadata, noise_mode):
            raise UserError(f"noise_mode {words}")
        return dataclasses.replace(self.model, noise_mode=noise_mode)


@functools.lru_cache(maxsize=8)
def _synthesis_program(model: Any) -> Any:
    """(variables, ws ``[num_ws, w_dim]``, ψ, seed, number) → an image uint8 ``[H, W, C]``."""

    @jax.jit
    def program(variables: dict, ws: jax.Array, psi: jax.Array, seed: jax.Array, number: jax.Array) -> jax.Array:
        ws = truncate(ws[None], variables["buffers"]["mapping"]["w_avg"], psi)
        key = jax.random.fold_in(jax.random.key(seed), number)
        images = model.generator.apply(variables, ws, model.noise_mode, method="synthesize", rngs={"noise": key})
        return quantize(images)[0]

    return program


def load(path: str | Path, checkpoint: str | int = "latest", config: RunConfig | None = None) -> TrainedGenerator:
    """The averaged generator of a run, or of a directory that ``noisytwins_jax.convert`` made.

    The images that it was trained with are not needed, unless it is conditioned on them (IC-GAN).

    Args:
      path: the run's workdir.
      checkpoint: ``"latest"``, ``"best"`` or a step.
      config: the run's configuration, which is otherwise that of the workdir.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    quiet_libraries()
    if not has_tpu():
        expect_no_tpu()
    workdir = Path(path).absolute()
    check_has_checkpoint(workdir, checkpoint)
    if config is None:
        fields = read_config(workdir)
        if fields is None:
            raise UserError(f"{workdir} has checkpoints but no config.json, which says what of; restore it.")
        config = parse_flat(fields)
    channels, class_names = read_classes(workdir)
    use_compilation_cache(workdir)
    step, ema = restore_ema(config, workdir, checkpoint, build_model(config, channels, len(class_names)))
    instances = None
    if config.instances.neighbours > 0:
        instances = with_instances(config, load_data(config.data), cache_dir(workdir)).instances
    moments = read_stored_statistics(workdir, step)
    return TrainedGenerator(config, local_copy(ema), channels, class_names, step, instances, moments)
