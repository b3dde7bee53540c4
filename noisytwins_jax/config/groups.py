"""The groups of configuration fields, one dataclass each; `config.RunConfig` combines them.

Units: ``kimg`` is thousands of real images seen by the discriminator; a ``step`` is one update of the generator.
"""

import math
import re
from dataclasses import dataclass

from noisytwins_jax.metrics.protocols import EXTRACTORS, PROTOCOLS
from noisytwins_jax.metrics.settings import Settings
from noisytwins_jax.models.latents import LATENTS, TRUNCATIONS
from noisytwins_jax.utils.config_fields import choice, number
from noisytwins_jax.utils.errors import UserError


@dataclass(frozen=True)
class GeneratorConfig:
    """StyleGAN2 generator; see `models.stylegan2.Generator`. BigGAN's uses `z_dim` alone."""

    z_dim: int = number(512, at_least=1)
    w_dim: int = number(512, at_least=1)
    mapping_layers: int = number(8, at_least=1)
    channel_base: int = number(16384, at_least=1)  # channels at resolution r: min(channel_base / r, channel_max)
    channel_max: int = number(512, at_least=1)
    architecture: str = choice("skip", "resnet", "orig")
    conv_clamp: float | None = number(None, above=0)  # clamp of activations, None for none
    w_avg_decay: float = number(0.998, at_least=0, at_most=1)
    noise_mode: str = choice("random", "const", "none")  # per-pixel noise


@dataclass(frozen=True)
class DiscriminatorConfig:
    """StyleGAN2 discriminator; see `models.stylegan2.Discriminator`."""

    channel_base: int = number(16384, at_least=1)
    channel_max: int = number(512, at_least=1)
    architecture: str = choice("resnet", "orig", "skip")
    mbstd_group_size: int = number(8, at_least=1)  # samples per minibatch-standard-deviation group, 1 for none
    mapping_layers: int = number(8, at_least=0)
    conv_clamp: float | None = number(None, above=0)


@dataclass(frozen=True)
class BigGANConfig:
    """Both networks if ``network`` is biggan or biggan_deep; see `models.biggan`. z_dim is ``generator.z_dim``."""

    generator_width: int = number(96, at_least=1)  # ch, the unit of the tables of channels
    discriminator_width: int = number(96, at_least=1)
    embedding_dim: int = number(128, at_least=1)  # of the class embedding that all blocks share
    shared_embedding: bool = True  # off: every conditional BatchNorm has tables of its own (SA-GAN)
    skip_z: bool = True  # every block gets a part of z (deep: all of it); off: only the first layer does
    attention: str = ""  # comma-separated resolutions with self-attention; empty for the published ones, none for none
    wide_rgb: bool = False  # deep: the last convolution has `generator_width` outputs, of which three are the image
    spectral_norm: bool = True
    spectral_norm_epsilon: float = number(1e-4, above=0)
    batch_norm_epsilon: float = number(1e-4, above=0)
    output_batch_norm_epsilon: float | None = number(None, above=0)  # of the last layer's, None for the same
    batch_norm_decay: float = number(
        0.9, at_least=0, below=1
    )  # of running batch statistics, which only diagnostics use
    dropout: float = number(0.0, at_least=0, below=1)  # rate, of the discriminator's last features

    @property
    def attention_resolutions(self) -> bool | tuple[int, ...]:
        """Return the resolutions with self-attention, or True for the published ones.

        Raises:
          UserError: `attention` is not a list of numbers.
        """
        if self.attention in ("", "none"):
            return self.attention == ""
        try:
            return tuple(int(part) for part in self.attention.split(","))
        except ValueError:
            raise UserError(
                f"config.biggan.attention={self.attention} is no list of resolutions; give for example 64, none, or "
                "nothing for the published one."
            ) from None


@dataclass(frozen=True)
class R3GANConfig:
    """Both networks if ``network`` is r3gan; see `models.r3gan`. z_dim is ``generator.z_dim``."""

    width: int = number(768, at_least=1)  # channels up to 32 px; above them half as many for every doubling
    cardinality: int = number(96, at_least=1)  # groups of the 3×3 convolutions at that width, fewer in proportion above
    half_resolutions: int = number(3, at_least=0)  # the highest ones, whose activations have config.dtype


@dataclass(frozen=True)
class InstancesConfig:
    """Conditioning on a training image's features (IC-GAN), for BigGAN; see `training.instance_conditioning`."""

    neighbours: int = number(0, at_least=0)  # k, size of an instance's neighbourhood, itself included; 0: no instances
    extractor: str = choice(*EXTRACTORS)  # of the features; classifier: trained on the training images
    embedding_dim: int = number(512, at_least=1)  # of the features, beside the class embedding in the generator


@dataclass(frozen=True)
class LatentsConfig:
    """The distribution of z; see `models.latents`."""

    kind: str = choice(*LATENTS)
    low_std: float = number(0.5, above=0)  # random_std: bounds of each sample's standard deviation
    high_std: float = number(1.5, above=0)
    # Above 0: in training z is multiplied by a factor that goes from start_std to 1 over this many kimg (appendix E).
    anneal_kimg: float = number(0.0, at_least=0)
    start_std: float = number(2.0, above=0)


@dataclass(frozen=True)
class SpectraConfig:
    """Singular values of every weight, which warn of collapse (BigGAN, Sec. 4); see `models.singular_values`."""

    interval: int = number(0, at_least=0)  # steps between computations; 0 for never
    iterations: int = number(2, at_least=1)  # of subspace iteration, each time
    clamp: float = number(0.0, at_least=0)  # each time, larger singular values are set to this (eq. 4); 0 for none


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam. Rates and decays are corrected for lazy regularisation by k/(k+1), see `training.optimizer.lazy_rates`."""

    generator_lr: float = number(0.0025, above=0)
    discriminator_lr: float = number(0.0025, above=0)
    beta1: float = number(0.0, at_least=0, below=1)
    beta2: float = number(0.99, at_least=0, below=1)
    epsilon: float = number(1e-8, above=0)
    discriminator_updates: int = number(1, at_least=1)  # per step
    # Above 0: over this many kimg a cosine takes both rates to this part of them, and beta2 to another value (R3GAN).
    anneal_kimg: float = number(0.0, at_least=0)
    final_lr: float = number(1.0, above=0)
    final_beta2: float = number(0.99, at_least=0, below=1)


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of the generator, which evaluation and sampling use."""

    kimg: float = number(20.0, at_least=0)  # half-life; a decay of .9999 per step is 6.931 · batch_size kimg
    start_step: int = number(0, at_least=0)  # before it the average is the generator itself
    # The half-life is at most this fraction of the images so far; None for no ramp-up.
    rampup: float | None = number(None, at_least=0)
    anneal_kimg: float = number(0.0, at_least=0)  # above 0: the half-life grows from 0 by a cosine over this many kimg


@dataclass(frozen=True)
class AugmentConfig:
    """DiffAugment of all inputs of the discriminator; an alternative to ADA."""

    diffaugment: str = ""  # any of color,translation,cutout


@dataclass(frozen=True)
class AdaConfig:
    """Adaptive augmentation (StyleGAN2-ADA) of all inputs of the discriminator; see `training.augment.ada`."""

    operations: str = ""  # a group (bgc in all published runs) or comma-separated operations; empty for none
    target: float = number(0.6, at_least=-1, at_most=1)  # of the mean sign of D(real), which controls the probability
    kimg: float = number(500.0, above=0)  # images, in thousands, over which the probability may go from 0 to 1
    interval: int = number(4, at_least=1)  # steps between adjustments
    color_strength: float = number(1.0, at_least=0, at_most=1)  # factor on p for the colour operations
    initial_p: float = number(0.0, at_least=0, at_most=1)
    # Above 0: p goes to final_p by a cosine over this many kimg, and is not controlled (R3GAN).
    anneal_kimg: float = number(0.0, at_least=0)
    final_p: float = number(0.0, at_least=0, at_most=1)


@dataclass(frozen=True)
class FinetuneConfig:
    """The networks that a run starts from, in place of random ones; see `training.finetuning`."""

    init_from: str = ""  # workdir of a run, or of converted weights; short: --init_from
    checkpoint: str = "latest"  # of that run: latest, best or a step
    classes: str = choice("name", "index", "mean")  # row of the class tables that each class starts from
    class_noise: float = number(0.1, at_least=0)  # on rows that start from the mean, in units of the rows' deviation
    freeze_discriminator: int = number(0, at_least=0)  # convolutions from the image side that are not trained (FreezeD)


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation of a generator; see `evaluation`."""

    protocol: str = choice(*PROTOCOLS)  # see metrics.protocols; embedded needs no weight files
    # Comma-separated: inception, clip, dinov2, classifier (for class accuracy), a network of metrics.protocols, or
    # file:PATH of an own one; the first is used for FID, precision and recall. Empty for the protocol's.
    extractors: str = ""
    weights: str = ""  # directory of converted weights; empty for the default one
    download: bool = False  # whether to download weights that are missing; see metrics.weights
    samples_per_class: int = number(180, at_least=1)  # for iFID and all other metrics per class
    pooled_images: int = number(50_000, at_least=2)  # at most, for FID and all other metrics over all classes
    neighbours: int = number(0, at_least=0)  # k of precision and recall; 0 for the protocol's
    memorisation: bool = True  # search the training images that are nearest to generated ones
    truncations: str = ""  # sweep over truncation strengths, as 1,0.9,0.8; empty for none
    truncation_kind: str = choice("", *TRUNCATIONS)  # empty: psi if there is a W, else threshold; see models.latents
    batch_size: int = number(0, at_least=0)  # images per device, 0 for a default; no result depends on it
    seed: int = number(0, at_least=0, at_most=2**32 - 1)  # JAX takes the lowest 32 bits
    # Standing statistics of BigGAN's BatchNorm: means over this many passes of this many images each.
    standing_passes: int = number(100, at_least=1)
    standing_batch: int = number(64, at_least=1)
    # Evaluate this often while training, and keep the best; 0 for at the end only.
    interval_kimg: float = number(0.0, at_least=0)

    @property
    def settings(self) -> Settings:
        """Return the protocol and its counts."""
        return Settings(
            protocol=PROTOCOLS[self.protocol],
            samples_per_class=self.samples_per_class,
            pooled_images=self.pooled_images,
            neighbours=self.neighbours,
            seed=self.seed,
        )

    @property
    def sweep(self) -> tuple[float, ...]:
        """Return the truncation strengths of the sweep.

        Raises:
          UserError: they are not different numbers of at least 0.
        """
        parts = [part.strip() for part in self.truncations.split(",") if part.strip()]
        try:
            values = tuple(float(part) for part in parts)
        except ValueError:
            values = (-1.0,)
        if not all(0 <= value < math.inf for value in values) or len(set(values)) < len(values):
            raise UserError(
                f"config.evaluation.truncations={self.truncations} is no list of different numbers from 0 on; give for "
                "example 1,0.9,0.8."
            )
        return values


@dataclass(frozen=True)
class MeshConfig:
    """Sharding of arrays over devices; see `utils.sharding.Layout`. It changes speed and memory, not the results."""

    # Devices that share one copy of parameters, optimiser state and moving average; 1: every device has a copy.
    fsdp: int = number(1, at_least=1)


@dataclass(frozen=True)
class ProfileConfig:
    """A trace of the devices, for TensorBoard's or Perfetto's viewer, in the workdir's ``profile/``."""

    steps: str = ""  # the first and the last step, as 100-104; empty for none


@dataclass(frozen=True)
class FaultsConfig:
    """Reactions to faults."""

    # If a loss is NaN or infinite: stop, or go back to the last checkpoint and skip the data up to there.
    nonfinite: str = choice("stop", "rewind")
    max_rewinds: int = number(3, at_least=1)  # without a checkpoint in between; then the run stops
    watchdog_minutes: float = number(10.0, at_least=0)  # without a step, before late processes are reported; 0: never


@dataclass(frozen=True)
class InterventionConfig:
    """Changes in the middle of a run. To continue from a checkpoint with other settings, change these and resume."""

    step: int = number(0, at_least=0)  # after this many steps (rounded up to whole dispatches); 0 for never
    freeze: str = choice("", "generator", "discriminator")  # this network is not trained any more
    generator_lr: float = number(1.0, at_least=0)  # factors on the learning rates
    discriminator_lr: float = number(1.0, at_least=0)
    reset_momenta: bool = False  # reset the optimisers' moments


@dataclass(frozen=True)
class CollapseConfig:
    """Detection of collapse in the logged records, and the reaction to it."""

    action: str = choice("off", "report", "return")  # return: resume from an earlier checkpoint, changed as below
    # σ0 of a generator's weight over its median of the window; steady growth from zero stays below 2.
    sigma_growth: float = number(3.0, above=1)
    # How far the discriminator's loss is above its median, in typical deviations from it (each at least 0.2).
    loss_jump: float = number(6.0, above=0)
    # An evaluation's Fréchet distance over the best so far: between good runs it varies far less.
    distance_growth: float = number(2.0, above=1)
    window: int = number(200, at_least=8)  # records; longer than a collapse, which takes a few hundred updates
    patience: int = number(3, at_least=1)  # unusual records in a row for an alarm; one evaluation is enough
    # Latest checkpoints kept; together they must reach back over half a window, to before the growth.
    keep: int = number(4, at_least=2)
    max_returns: int = number(2, at_least=1)  # then training continues; each return loses the training since
    # Factors on the learning rates after a return. A lower one of the generator delayed collapse; a higher one of
    # either network, or a lower one of the discriminator, led to it at once (appendix H).
    generator_lr: float = number(0.5, above=0)
    discriminator_lr: float = number(1.0, above=0)
    reset_momenta: bool = False  # of the optimisers, after a return; mostly made no difference (appendix H)

    @property
    def watched(self) -> bool:
        """Return whether collapse is watched for."""
        return self.action != "off"


def traced_steps(text: str) -> tuple[int, int] | None:
    """Parse the first and last step of ``"100-104"`` or ``"100"``; None for an empty text.

    Raises:
      UserError: it is neither.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"config.profile.steps={text} is no range of steps; give the first and the last, as 100-104.")
    return first, last
