"""The tree of configuration fields: one place for names, types, units and defaults.

A config file (``configs/<dataset>.py``) starts from `default_config()`, changes fields and returns the tree as an
`ml_collections.ConfigDict`; every field can then be overridden on the command line (``--config.r1.gamma=0.1``). Code
takes the typed, frozen form that `parse_config` returns. Defaults are those common to the published NoisyTwins runs.

Units: ``kimg`` is thousands of real images shown to the discriminator; a ``step`` is one update of the generator.
"""

import dataclasses
import math
import pkgutil
import types
import typing
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from noisytwins_jax.errors import UserError, did_you_mean
from noisytwins_jax.fields import choice, number, objection
from noisytwins_jax.latents import LATENTS, TRUNCATIONS, Latents, check_truncation
from noisytwins_jax.metrics.protocols import EXTRACTORS, PROTOCOLS, chosen_extractors
from noisytwins_jax.metrics.settings import Settings
from noisytwins_jax.objectives.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.objectives.objective import Objective
from noisytwins_jax.profiling import traced_steps
from noisytwins_jax.survival.collapse import CollapseConfig


def listed(path: str) -> Objective:
    """The objective of this name, with its default hyper-parameters, as the field of a dataclass."""
    return pkgutil.resolve_name(path)()


@dataclass(frozen=True)
class Objectives:
    """Terms of the loss beside the adversarial one; see `objectives.objective`. To add one, add a line."""

    noisytwins: Objective = listed("noisytwins_jax.noisytwins.NoisyTwins")
    simclr: Objective = listed("noisytwins_jax.objectives.simclr.SimCLR")
    lecam: Objective = listed("noisytwins_jax.objectives.lecam.LeCam")
    gsr: Objective = listed("noisytwins_jax.objectives.gsr.GroupSpectralNorm")
    orthogonal: Objective = listed("noisytwins_jax.objectives.orthogonal.Orthogonal")
    d2dce: Objective = listed("noisytwins_jax.objectives.d2dce.D2DCE")
    contrastive: Objective = listed("noisytwins_jax.objectives.contrastive.Contrastive")
    transitional: Objective = listed("noisytwins_jax.objectives.transitional.Transitional")
    spectrum: Objective = listed("noisytwins_jax.objectives.spectrum.Spectrum")
    utlo: Objective = listed("noisytwins_jax.objectives.utlo.UTLO")


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    name: str = "digits_lt"  # a data set of `noisytwins_jax.data`
    resolution: int = 32  # pixels, a power of two from 8
    mirror: bool = True  # random horizontal flips of real images
    options: dict = field(default_factory=dict)  # arguments of an embedded data set's builder
    dir: str = "data"  # holds prepared data sets: a directory, or the address of a bucket (gs://, s3://, …)
    cache: str = ""  # where prepared data of a bucket are kept on this machine; by default in ~/.cache
    preprocessing: str = ""  # what prepared images must have gone through, see data.preprocessing; empty for anything
    # Classes with fewer training images are tail, with more are head; without these two, thirds of the classes.
    tail_below: int = number(0, at_least=0)
    head_above: int = number(0, at_least=0)

    @property
    def group_thresholds(self) -> tuple[int, int] | None:
        """What splits classes into head, medium and tail; see `data.long_tail.class_groups`."""
        return (self.tail_below, self.head_above) if self.tail_below or self.head_above else None


@dataclass(frozen=True)
class GeneratorConfig:
    """StyleGAN2 generator; see `networks.stylegan2.Generator`. BigGAN's takes `z_dim` alone."""

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
    """StyleGAN2 discriminator; see `networks.stylegan2.Discriminator`."""

    channel_base: int = number(16384, at_least=1)
    channel_max: int = number(512, at_least=1)
    architecture: str = choice("resnet", "orig", "skip")
    mbstd_group_size: int = number(8, at_least=1)  # samples a minibatch-standard-deviation group, 1 for none
    mapping_layers: int = number(8, at_least=0)
    conv_clamp: float | None = number(None, above=0)


@dataclass(frozen=True)
class BigGANConfig:
    """Both networks where ``network`` is biggan or biggan_deep; see `networks.biggan`. z_dim is ``generator.z_dim``."""

    generator_width: int = number(96, at_least=1)  # ch, the unit of the tables of channels
    discriminator_width: int = number(96, at_least=1)
    embedding_dim: int = number(128, at_least=1)  # of the class embedding that all blocks share
    shared_embedding: bool = True  # off: every conditional BatchNorm has tables of its own (SA-GAN)
    skip_z: bool = True  # every block sees a part of z (deep: all of it); off: only the first layer does
    attention: str = ""  # resolutions with self-attention, with commas; empty for the published, none for none
    wide_rgb: bool = False  # deep: the last convolution has `generator_width` outputs, of which three are the image
    spectral_norm: bool = True
    spectral_norm_epsilon: float = number(1e-4, above=0)
    batch_norm_epsilon: float = number(1e-4, above=0)
    batch_norm_decay: float = number(0.9, at_least=0, below=1)  # of running moments, which only diagnostics use
    dropout: float = number(0.0, at_least=0, below=1)  # share of the discriminator's last features that is dropped

    @property
    def attention_resolutions(self) -> bool | tuple[int, ...]:
        """True for the published place.

        Raises:
          UserError: they are no numbers.
        """
        if self.attention in ("", "none"):
            return self.attention == ""
        try:
            return tuple(int(word) for word in self.attention.split(","))
        except ValueError:
            raise UserError(
                f"config.biggan.attention={self.attention} is no list of resolutions; give for example 64, none, or "
                "nothing for the published one."
            ) from None


@dataclass(frozen=True)
class InstancesConfig:
    """Images are conditioned on a training image's features too (IC-GAN); see `instances`. BigGAN's networks alone."""

    neighbours: int = number(
        0, at_least=0
    )  # k: images that an instance stands for, itself among them; 0 for no instances
    extractor: str = choice(*EXTRACTORS)  # whose features; classifier: one of the training images, made for it
    embedding_dim: int = number(512, at_least=1)  # of the features, beside the class embedding in the generator


@dataclass(frozen=True)
class LatentsConfig:
    """What z is drawn from; see `latents`."""

    kind: str = choice(*LATENTS)
    low_std: float = number(0.5, above=0)  # random_std: bounds of each sample's standard deviation
    high_std: float = number(1.5, above=0)
    # Above 0: in training z is multiplied by a factor that goes from start_std to 1 over so many kimg (appendix E).
    anneal_kimg: float = number(0.0, at_least=0)
    start_std: float = number(2.0, above=0)


@dataclass(frozen=True)
class SpectraConfig:
    """Singular values of every weight, which warn of collapse (BigGAN, Sec. 4); see `spectra`."""

    interval: int = number(0, at_least=0)  # steps between two looks; 0 for none
    iterations: int = number(2, at_least=1)  # of subspace iteration, a look
    clamp: float = number(0.0, at_least=0)  # at each look, larger singular values are set to this (eq. 4); 0 for none


@dataclass(frozen=True)
class R1Config:
    """Gradient penalty on real images, as an update of its own every `interval` discriminator updates."""

    gamma: float = number(0.01, at_least=0)  # γ of γ/2·|∇|²; 0 for none
    interval: int = number(16, at_least=1)


@dataclass(frozen=True)
class PathLengthConfig:
    """Path-length regularisation, as an update of its own every `interval` generator updates."""

    weight: float = number(0.0, at_least=0)  # 0 for none
    weight_twice: bool = True  # multiply by the weight a second time, as the published code does
    interval: int = number(4, at_least=1)
    start_step: int = number(0, at_least=0)
    decay: float = number(0.01, at_least=0, at_most=1)  # of the running mean of lengths
    batch_fraction: float = number(0.5, above=0)  # its batch, as a fraction of batch_size


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam. Rates and decays are corrected for lazy regularisation, k/(k+1) and its power (StyleGAN2, appendix B)."""

    generator_lr: float = number(0.0025, above=0)
    discriminator_lr: float = number(0.0025, above=0)
    beta1: float = number(0.0, at_least=0, below=1)
    beta2: float = number(0.99, at_least=0, below=1)
    epsilon: float = number(1e-8, above=0)
    discriminator_updates: int = number(1, at_least=1)  # discriminator updates a step


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of the generator, which evaluation and sampling use."""

    kimg: float = number(20.0, at_least=0)  # half-life; a decay of .9999 a step is 6.931 · batch_size kimg
    start_step: int = number(0, at_least=0)  # before it the average is the generator itself
    # The half-life is at most this fraction of the images seen; None for no ramp-up.
    rampup: float | None = number(None, at_least=0)


@dataclass(frozen=True)
class AugmentConfig:
    """DiffAugment of everything the discriminator sees; an alternative to ADA."""

    diffaugment: str = ""  # any of color,translation,cutout


@dataclass(frozen=True)
class AdaConfig:
    """Adaptive discriminator augmentation (StyleGAN2-ADA) of everything the discriminator sees; see `augment.ada`."""

    operations: str = ""  # a group (bgc in all published runs) or operations with commas between; empty for none
    target: float = number(0.6, at_least=-1, at_most=1)  # mean sign of D(real) that the probability is steered to
    kimg: float = number(500.0, above=0)  # images, in thousands, over which the probability may go from 0 to 1
    interval: int = number(4, at_least=1)  # steps between adjustments
    initial_p: float = number(0.0, at_least=0, at_most=1)


@dataclass(frozen=True)
class EvaluationConfig:
    """How a generator is measured; see `metrics.evaluation`."""

    protocol: str = choice(*PROTOCOLS)  # see metrics.protocols; embedded needs no weight files
    # With commas: inception, clip, dinov2, classifier (for class accuracy), or a network of metrics.protocols; the
    # first is behind FID, precision and recall. Empty for the protocol's.
    extractors: str = ""
    weights: str = ""  # directory of converted weights; by default that of metrics.weights
    samples_per_class: int = number(180, at_least=1)  # behind iFID and everything else of one class
    pooled_images: int = number(50_000, at_least=2)  # behind FID and everything else of all classes: at most so many
    neighbours: int = number(0, at_least=0)  # k of precision and recall; 0 for the protocol's
    memorisation: bool = True  # look for the training images that are nearest to generated ones
    truncations: str = ""  # sweep over strengths of truncation, as 1,0.9,0.8; empty for none
    truncation_kind: str = choice("", *TRUNCATIONS)  # empty: psi where there is a W, else threshold; see `latents`
    batch_size: int = number(
        0, at_least=0
    )  # images that a device takes at once, 0 for what suits; no result depends on it
    seed: int = number(0, at_least=0, at_most=2**32 - 1)  # JAX takes the lowest 32 bits
    # BigGAN's BatchNorm: means over so many passes of so many images of the averaged generator (standing statistics).
    standing_passes: int = number(100, at_least=1)
    standing_batch: int = number(64, at_least=1)
    # Evaluate this often while training, and keep the best; 0 for at the end only.
    interval_kimg: float = number(0.0, at_least=0)

    @property
    def settings(self) -> Settings:
        """The protocol and its counts."""
        return Settings(
            protocol=PROTOCOLS[self.protocol],
            samples_per_class=self.samples_per_class,
            pooled_images=self.pooled_images,
            neighbours=self.neighbours,
            seed=self.seed,
        )

    @property
    def sweep(self) -> tuple[float, ...]:
        """The truncations of the sweep.

        Raises:
          UserError: they are no different numbers from 0 on.
        """
        words = [word.strip() for word in self.truncations.split(",") if word.strip()]
        try:
            values = tuple(float(word) for word in words)
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
    """How arrays lie over devices; see `sharding.Layout`. It changes speed and memory, not what is trained."""

    # Devices that share one copy of parameters, optimiser state and moving average; 1: every device has its own.
    fsdp: int = number(1, at_least=1)


@dataclass(frozen=True)
class ProfileConfig:
    """A trace of the devices, for TensorBoard's or Perfetto's viewer, in the workdir's ``profile/``."""

    steps: str = ""  # the first and the last step, as 100-104; empty for none


@dataclass(frozen=True)
class FaultsConfig:
    """What a run does when something goes wrong."""

    # A loss that is NaN or infinite: stop, or go back to the last checkpoint and skip the data up to there.
    nonfinite: str = choice("stop", "rewind")
    max_rewinds: int = number(3, at_least=1)  # without a checkpoint in between; then it stops
    watchdog_minutes: float = number(10.0, at_least=0)  # without a step before it says which process is late; 0: never


@dataclass(frozen=True)
class InterventionConfig:
    """What changes in the middle of a run. To go on from a checkpoint with other settings, change these and resume."""

    step: int = number(0, at_least=0)  # after so many steps (rounded up to whole dispatches); 0 for never
    freeze: str = choice("", "generator", "discriminator")  # this network is not trained any more
    generator_lr: float = number(1.0, at_least=0)  # factors on the learning rates
    discriminator_lr: float = number(1.0, at_least=0)
    reset_momenta: bool = False  # the optimisers forget their moments


@dataclass(frozen=True)
class RunConfig(Objectives):
    """Everything that defines a run."""

    name: str = "run"  # <dataset>-<method>; the default workdir is runs/<name>
    seed: int = number(0, at_least=0, at_most=2**32 - 1)
    batch_size: int = number(128, at_least=1)  # images, over all devices
    total_kimg: float = number(1000.0, at_least=0)
    loss: str = choice(*ADVERSARIAL_LOSSES)
    loss_margin: float = number(1.0, above=0)  # of the hinge loss
    network: str = choice("stylegan2", "biggan", "biggan_deep")
    fake_labels: str = choice("uniform", "empirical")  # classes of generated images (empirical: as in the training set)
    style_mixing: float = number(0.0, at_least=0, at_most=1)  # probability that a batch mixes the styles of two latents
    dtype: str = choice("float32", "bfloat16")  # of activations; parameters are always float32
    steps_per_dispatch: int = number(1, at_least=1)  # in one program, so that small networks need not wait for the host
    up_impl: str = choice("conv", "phase")  # conv is fast on TPUs, phase on CPUs: the same numbers, see networks.fir
    log_interval_kimg: float = number(1.0, at_least=0)
    w_ratio_interval_kimg: float = number(10.0, at_least=0)  # share of W's variance within classes; 0 for never
    memorisation_interval_kimg: float = number(0.0, at_least=0)  # D's accuracy on images trained with and held out
    checkpoint_interval_kimg: float = number(50.0, at_least=0)
    sheet_interval_kimg: float = number(0.0, at_least=0)  # sample sheet while training; 0 for at the end only
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    biggan: BigGANConfig = BigGANConfig()
    instances: InstancesConfig = InstancesConfig()
    latents: LatentsConfig = LatentsConfig()
    spectra: SpectraConfig = SpectraConfig()
    r1: R1Config = R1Config()
    path_length: PathLengthConfig = PathLengthConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    augment: AugmentConfig = AugmentConfig()
    ada: AdaConfig = AdaConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    profile: ProfileConfig = ProfileConfig()
    faults: FaultsConfig = FaultsConfig()
    collapse: CollapseConfig = CollapseConfig()
    intervention: InterventionConfig = InterventionConfig()

    @property
    def objectives(self) -> dict[str, Objective]:
        """The terms that are switched on, by name."""
        terms = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(Objectives)}
        return {name: term for name, term in terms.items() if term.weight > 0}

    @property
    def z(self) -> Latents:
        """The distribution of the generator's latents."""
        return Latents(self.generator.z_dim, self.latents.kind, (self.latents.low_std, self.latents.high_std))

    @property
    def has_mapping_network(self) -> bool:
        """Whether there is a W that says something of the images: BigGAN's is z and the class embedding."""
        return self.network == "stylegan2"

    @property
    def truncation_kind(self) -> str:
        """How generated images are truncated unless somebody says otherwise."""
        return self.evaluation.truncation_kind or ("psi" if self.has_mapping_network else "threshold")

    @property
    def makes_twins(self) -> bool:
        """Whether the generator's update makes its batch of twins."""
        return any(term.twins for term in self.objectives.values())

    @property
    def total_steps(self) -> int:
        """Generator updates of the whole run."""
        return -(-round(self.total_kimg * 1000) // self.images_per_step)

    @property
    def images_per_step(self) -> int:
        """Real images the discriminator sees in one step."""
        return self.batch_size * self.optimizer.discriminator_updates

    @property
    def path_length_batch(self) -> int:
        """Generated images in an update of path-length regularisation."""
        return max(1, round(self.batch_size * self.path_length.batch_fraction))


# Fields that change how a run is computed, watched or measured, not what is trained: a workdir accepts other values.
FREE_FIELDS = (
    "checkpoint_interval_kimg",
    "collapse.",
    "data.cache",
    "data.dir",
    "data.head_above",
    "data.tail_below",
    "evaluation.",
    "faults.",
    "intervention.",
    "log_interval_kimg",
    "memorisation_interval_kimg",
    "mesh.",
    "profile.",
    "sheet_interval_kimg",
    "steps_per_dispatch",
    "total_kimg",
    "up_impl",
    "w_ratio_interval_kimg",
)


def default_config() -> ml_collections.ConfigDict:
    """The default tree, for a config file to change."""
    config = ml_collections.ConfigDict(dataclasses.asdict(RunConfig()))
    for path, hint in _optional_fields(RunConfig):
        parent, _, name = path.rpartition(".")
        node = _descend(config, parent)
        node[name] = ml_collections.config_dict.placeholder(hint)
    return config


def parse_config(config: ml_collections.ConfigDict) -> RunConfig:
    """The typed form of a tree.

    Raises:
      UserError: for an unknown field, a word that a field does not take, a number out of range, or numbers that do not
        fit together.
    """
    run = _build(RunConfig, config.to_dict())
    _check_together(run)
    return run


def flatten(run: RunConfig) -> dict[str, Any]:
    """All fields by dotted path, in order of definition."""

    def walk(node: dict, prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in node.items():
            flat |= walk(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        return flat

    return walk(dataclasses.asdict(run), "")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields in which two flattened configurations would train differently, as ``name: old → new``."""
    missing = object()
    changed = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, missing), new.get(name, missing)
        if before != after and not name.startswith(FREE_FIELDS):
            shown = ["(absent)" if value is missing else repr(value) for value in (before, after)]
            changed.append(f"{name}: {shown[0]} → {shown[1]}")
    return changed


def _check_together(run: RunConfig) -> None:
    """Raises a `UserError` for fields that are fine alone and not together."""
    if run.network != "stylegan2":
        _check_biggan(run)
    if run.instances.neighbours > 0:
        _check_instances(run)
    if run.loss_margin != 1 and run.loss != "hinge":
        raise UserError(
            f"config.loss_margin is the hinge loss's; leave it at 1 for {run.loss}, or --config.loss=hinge."
        )
    for name, network in (("generator", run.generator), ("discriminator", run.discriminator)):
        if run.network == "stylegan2" and network.channel_base < run.data.resolution:
            raise UserError(
                f"config.{name}.channel_base={network.channel_base} leaves no channels at {run.data.resolution} px; "
                f"it must be at least the resolution, better {32 * run.data.resolution} or more."
            )
    if run.augment.diffaugment and run.ada.operations:
        raise UserError(
            "config.augment.diffaugment and config.ada.operations are both set; choose one, and empty the other."
        )
    if run.transitional.weight > 0 and (run.d2dce.weight > 0 or run.contrastive.weight > 0):
        raise UserError(
            "config.transitional needs a discriminator with two logits, config.d2dce and config.contrastive one with an "
            "embedding; set the weight of one or the other to 0."
        )
    if run.transitional.end_kimg < run.transitional.start_kimg:
        raise UserError(
            f"config.transitional.end_kimg={run.transitional.end_kimg} is before "
            f"config.transitional.start_kimg={run.transitional.start_kimg}; it must not be."
        )
    if run.utlo.weight > 0:
        _check_utlo(run)
    if run.data.tail_below > run.data.head_above:
        raise UserError(
            f"config.data.tail_below={run.data.tail_below} is above config.data.head_above={run.data.head_above}; classes "
            "in between are the medium ones."
        )
    traced_steps(run.profile.steps)  # refuses what is no range
    _check_evaluation(run.evaluation)
    for strength in run.evaluation.sweep:
        check_truncation(run.truncation_kind, strength, run.latents.kind, run.has_mapping_network)
    if run.latents.high_std < run.latents.low_std:
        raise UserError("config.latents.high_std is below config.latents.low_std; it must not be.")


def _check_biggan(run: RunConfig) -> None:
    """Refuses what acts in the mapping or synthesis network of StyleGAN2, or on another head of its discriminator."""
    _ = run.biggan.attention_resolutions  # refuses what are no resolutions
    needing = {
        "style_mixing": run.style_mixing,
        "path_length.weight": run.path_length.weight,
        **{f"{name}.weight": getattr(run, name).weight for name in ("transitional", "utlo", "d2dce", "contrastive")},
    }
    for name, value in needing.items():
        if value > 0:
            raise UserError(
                f"config.{name} needs StyleGAN2's networks and config.network={run.network} has others; set it to 0, or "
                "--config.network=stylegan2."
            )
    if run.discriminator.mbstd_group_size > 1:
        raise UserError(
            "config.discriminator.mbstd_group_size is of StyleGAN2's minibatch standard deviation, which BigGAN has not; "
            "set it to 1."
        )
    if run.biggan.skip_z and not run.biggan.shared_embedding:
        raise UserError(
            "config.biggan.skip_z goes beside a class embedding that the blocks share; set it to False, or "
            "config.biggan.shared_embedding to True."
        )


def _check_instances(run: RunConfig) -> None:
    """Refuses what instances cannot be given to, or would contradict."""
    if run.network == "stylegan2":
        raise UserError(
            "config.instances.neighbours conditions BigGAN's networks on training images; set it to 0, or give "
            "--config.network=biggan or biggan_deep."
        )
    if not run.biggan.shared_embedding:
        raise UserError(
            "config.instances.neighbours goes beside a class embedding that the blocks share; set it to 0, or "
            "config.biggan.shared_embedding to True."
        )
    if run.fake_labels == "uniform":
        raise UserError(
            "With config.instances.neighbours, generated images have the classes of the instances' neighbours, which are "
            "those of the training set; give --config.fake_labels=empirical."
        )
    if run.memorisation_interval_kimg > 0:
        raise UserError(
            "config.memorisation_interval_kimg looks at images held out, which are no instances for the discriminator; "
            "set it to 0, or config.instances.neighbours."
        )


def _check_evaluation(evaluation: EvaluationConfig) -> None:
    settings = evaluation.settings
    chosen_extractors(settings.protocol, evaluation.extractors)
    if settings.samples_per_class <= settings.k:
        raise UserError(
            f"config.evaluation.samples_per_class={settings.samples_per_class} is too few for {settings.k} neighbours; it "
            "must be larger."
        )
    _ = evaluation.sweep  # refuses what is no list of numbers


def _check_utlo(run: RunConfig) -> None:
    low, full = run.utlo.resolution, run.data.resolution
    if low < 4 or low >= full or low & (low - 1):
        raise UserError(f"config.utlo.resolution={low} must be a power of two from 4 to {full // 2}.")
    if run.generator.architecture != "skip" or run.discriminator.architecture == "skip":
        raise UserError(
            "config.utlo takes the image of a low resolution from inside the generator: it needs "
            "--config.generator.architecture=skip and --config.discriminator.architecture=resnet or orig."
        )


def _build(cls: type, values: dict, prefix: str = "config.") -> Any:
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}
    parsed = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"There is no field {prefix}{name}; {did_you_mean(name, fields)}")
        if nested := _nested(fields[name]):
            value = _build(nested, value, f"{prefix}{name}.")
        elif words := objection(fields[name].metadata, value):
            raise UserError(f"{prefix}{name} {words}")
        parsed[name] = value
    return cls(**parsed)


def _nested(entry: dataclasses.Field) -> type | None:
    """The dataclass that a field holds, if it holds one."""
    cls = type(entry.default) if entry.default_factory is dataclasses.MISSING else entry.default_factory
    return cls if dataclasses.is_dataclass(cls) else None


def _optional_fields(cls: type, prefix: str = "") -> list[tuple[str, type]]:
    """Paths and types of fields that may be None: ConfigDict needs a typed placeholder for those."""
    found, hints = [], typing.get_type_hints(cls)
    for entry in dataclasses.fields(cls):
        if nested := _nested(entry):
            found += _optional_fields(nested, f"{prefix}{entry.name}.")
        elif isinstance(hints[entry.name], types.UnionType):
            found.append((f"{prefix}{entry.name}", typing.get_args(hints[entry.name])[0]))
    return found


def _descend(node: ml_collections.ConfigDict, path: str) -> Any:
    for name in filter(None, path.split(".")):
        node = node[name]
    return node
