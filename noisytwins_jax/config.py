"""The tree of configuration fields: one place for names, types, units and defaults.

A config file (``configs/<dataset>.py``) starts from `default_config()`, changes fields and returns the tree as an
`ml_collections.ConfigDict`; every field can then be overridden on the command line (``--config.r1.gamma=0.1``). Code
takes the typed, frozen form that `parse_config` returns. Defaults are those common to the published NoisyTwins runs.

Units: ``kimg`` is thousands of real images shown to the discriminator; a ``step`` is one update of the generator.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from noisytwins_jax.errors import UserError, did_you_mean


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    name: str = "digits_lt"  # a data set of `noisytwins_jax.data`
    resolution: int = 32  # pixels, a power of two from 8
    mirror: bool = True  # random horizontal flips of real images
    options: dict = field(default_factory=dict)  # arguments of the data set's builder


@dataclass(frozen=True)
class GeneratorConfig:
    """StyleGAN2 generator; see `networks.stylegan2.Generator`."""

    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 16384  # channels at resolution r: min(channel_base / r, channel_max)
    channel_max: int = 512
    architecture: str = "skip"  # skip | resnet | orig
    conv_clamp: float | None = None  # clamp of activations, None for none
    w_avg_decay: float = 0.998
    noise_mode: str = "random"  # per-pixel noise: random | const | none


@dataclass(frozen=True)
class DiscriminatorConfig:
    """StyleGAN2 discriminator; see `networks.stylegan2.Discriminator`."""

    channel_base: int = 16384
    channel_max: int = 512
    architecture: str = "resnet"  # resnet | orig | skip
    mbstd_group_size: int = 8  # samples a minibatch-standard-deviation group, 1 for none
    mapping_layers: int = 8
    conv_clamp: float | None = None


@dataclass(frozen=True)
class ClassNoiseConfig:
    """Noise on the class embedding of both networks (NoisyTwins eq. 3); see `noisytwins.class_noise_std`."""

    sigma: float = 0.0  # σ; 0 for no noise
    alpha: float = 0.0  # α of the effective number of samples; 0 for the same noise in every class
    normalization: str = "mean1"  # mean1 (published code) | paper (eq. 3 as printed)
    scale: str = "std"  # whether σ_c is the std (published code) | variance (as the paper's N(0, σ_c I) reads)


@dataclass(frozen=True)
class NoisyTwinsConfig:
    """The twins' loss on W (NoisyTwins eq. 5 and 6); see `noisytwins.noisytwins_loss`."""

    weight: float = 0.0  # λ; 0 turns twins and loss off
    gamma: float = 0.05  # γ, weight of the off-diagonal terms
    start_step: int = 0  # the loss counts from this step on; twins are made from the first
    correlation: str = "standardized"  # standardized (published code) | paper (eq. 5 as printed)
    diagonal: str = "barlow"  # barlow: (1 - C)² (published code) | paper: 1 - C² (eq. 6 as printed)


@dataclass(frozen=True)
class R1Config:
    """Gradient penalty on real images, as an update of its own every `interval` discriminator updates."""

    gamma: float = 0.01  # γ of γ/2·|∇|²; 0 for none
    interval: int = 16


@dataclass(frozen=True)
class PathLengthConfig:
    """Path-length regularisation, as an update of its own every `interval` generator updates."""

    weight: float = 0.0  # 0 for none
    weight_twice: bool = True  # multiply by the weight a second time, as the published code does
    interval: int = 4
    start_step: int = 0
    decay: float = 0.01  # of the running mean of lengths
    batch_fraction: float = 0.5  # its batch, as a fraction of batch_size


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam. Rates and decays are corrected for lazy regularisation, k/(k+1) and its power (StyleGAN2, appendix B)."""

    generator_lr: float = 0.0025
    discriminator_lr: float = 0.0025
    beta1: float = 0.0
    beta2: float = 0.99
    epsilon: float = 1e-8
    discriminator_updates: int = 1  # discriminator updates a step


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of the generator, which evaluation and sampling use."""

    kimg: float = 20.0  # half-life
    rampup: float | None = None  # half-life at most this fraction of the images seen, None for no ramp-up


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of everything the discriminator sees."""

    diffaugment: str = ""  # any of color,translation,cutout


@dataclass(frozen=True)
class EvaluationConfig:
    """How a generator is measured; see `metrics.evaluation`."""

    samples_per_class: int = 180
    neighbours: int = 5  # k of precision and recall
    seed: int = 0
    interval_kimg: float = 0.0  # evaluate this often while training, and keep the best; 0 for at the end only


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run."""

    name: str = "run"  # <dataset>-<method>; the default workdir is runs/<name>
    seed: int = 0
    batch_size: int = 128  # images, over all devices
    total_kimg: float = 1000.0
    loss: str = "logistic"  # a name of objectives.adversarial
    fake_labels: str = "uniform"  # classes of generated images: uniform | empirical (as in the training set)
    style_mixing: float = 0.0  # probability that a batch mixes the styles of two latents
    dtype: str = "float32"  # of activations: float32 | bfloat16; parameters are always float32
    up_impl: str = "conv"  # conv (fast on TPUs) | phase (fast on CPUs); the same numbers, see networks.fir
    log_interval_kimg: float = 1.0
    checkpoint_interval_kimg: float = 50.0
    sheet_interval_kimg: float = 0.0  # sample sheet this often while training, 0 for at the end only
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    class_noise: ClassNoiseConfig = field(default_factory=ClassNoiseConfig)
    noisytwins: NoisyTwinsConfig = field(default_factory=NoisyTwinsConfig)
    r1: R1Config = field(default_factory=R1Config)
    path_length: PathLengthConfig = field(default_factory=PathLengthConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

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


# Fields that choose among words, by their path.
_CHOICES = {
    "loss": ("logistic", "hinge"),
    "fake_labels": ("uniform", "empirical"),
    "dtype": ("float32", "bfloat16"),
    "up_impl": ("conv", "phase"),
    "generator.architecture": ("skip", "resnet", "orig"),
    "generator.noise_mode": ("random", "const", "none"),
    "discriminator.architecture": ("resnet", "orig", "skip"),
    "class_noise.normalization": ("mean1", "paper"),
    "class_noise.scale": ("std", "variance"),
    "noisytwins.correlation": ("standardized", "paper"),
    "noisytwins.diagonal": ("barlow", "paper"),
}

# What numbers must be: words, test, fields. None passes where a field takes it; infinity and NaN never do.
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "at least 1",
        lambda x: x >= 1,
        "batch_size generator.z_dim generator.w_dim generator.mapping_layers generator.channel_base "
        "generator.channel_max discriminator.channel_base discriminator.channel_max discriminator.mbstd_group_size "
        "r1.interval path_length.interval optimizer.discriminator_updates evaluation.samples_per_class "
        "evaluation.neighbours",
    ),
    (
        "above 0",
        lambda x: x > 0,
        "generator.conv_clamp discriminator.conv_clamp optimizer.generator_lr optimizer.discriminator_lr "
        "optimizer.epsilon path_length.batch_fraction",
    ),
    (
        "at least 0",
        lambda x: x >= 0,
        "total_kimg log_interval_kimg checkpoint_interval_kimg sheet_interval_kimg discriminator.mapping_layers "
        "class_noise.sigma noisytwins.weight noisytwins.gamma noisytwins.start_step r1.gamma path_length.weight "
        "path_length.start_step ema.kimg ema.rampup evaluation.interval_kimg",
    ),
    (f"from 0 to {2**32 - 1}", lambda x: 0 <= x < 2**32, "seed evaluation.seed"),  # JAX takes the lowest 32 bits
    ("from 0 to 1", lambda x: 0 <= x <= 1, "style_mixing generator.w_avg_decay path_length.decay"),
    ("at least 0 and below 1", lambda x: 0 <= x < 1, "class_noise.alpha optimizer.beta1 optimizer.beta2"),
)

# Fields that change how a run is computed, watched or measured, not what is trained: a workdir accepts other values.
FREE_FIELDS = (
    "checkpoint_interval_kimg",
    "evaluation.",
    "log_interval_kimg",
    "sheet_interval_kimg",
    "total_kimg",
    "up_impl",
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
    for path, choices in _CHOICES.items():
        value = _descend(run, path)
        if value not in choices:
            raise UserError(f"config.{path} is {' or '.join(map(repr, choices))}, not {value!r}.")
    for words, test, paths in _RANGES:
        for path in paths.split():
            value = _descend(run, path)
            if value is not None and not (math.isfinite(value) and test(value)):
                raise UserError(f"config.{path} must be {words}, but it is {value}.")
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
    for name, network in (("generator", run.generator), ("discriminator", run.discriminator)):
        if network.channel_base < run.data.resolution:
            raise UserError(
                f"config.{name}.channel_base={network.channel_base} leaves no channels at {run.data.resolution} px; "
                f"it must be at least the resolution, better {32 * run.data.resolution} or more."
            )
    if run.evaluation.samples_per_class <= run.evaluation.neighbours:
        raise UserError(
            f"config.evaluation.samples_per_class={run.evaluation.samples_per_class} is too few for "
            f"config.evaluation.neighbours={run.evaluation.neighbours}; it must be larger."
        )


def _build(cls: type, values: dict, prefix: str = "config.") -> Any:
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise UserError(f"There is no field {prefix}{name}; {did_you_mean(name, hints)}")
    parsed = {
        name: _build(hints[name], value, f"{prefix}{name}.") if dataclasses.is_dataclass(hints[name]) else value
        for name, value in values.items()
    }
    return cls(**parsed)


def _optional_fields(cls: type, prefix: str = "") -> list[tuple[str, type]]:
    """Paths and types of fields that may be None: ConfigDict needs a typed placeholder for those."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found += _optional_fields(hint, f"{prefix}{name}.")
        elif isinstance(hint, types.UnionType):
            found.append((f"{prefix}{name}", typing.get_args(hint)[0]))
    return found


def _descend(node: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        node = node[name] if isinstance(node, ml_collections.ConfigDict) else getattr(node, name)
    return node
