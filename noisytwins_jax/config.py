"""The tree of configuration fields: `RunConfig`, of the groups in `config_groups` and of the objectives.

A config file (``configs/<dataset>.py``) starts from `default_config()`, changes fields and returns the tree as an
`ml_collections.ConfigDict`; every field can then be overridden on the command line (``--config.r1.gamma=0.1``). Code
takes the typed, frozen form that `parse_config` returns. Defaults are those common to the published NoisyTwins runs.

Units: ``kimg`` is thousands of real images shown to the discriminator; a ``step`` is one update of the generator.
"""

import dataclasses
import pkgutil
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from noisytwins_jax.config_checks import check_together
from noisytwins_jax.config_groups import (
    AdaConfig,
    AugmentConfig,
    BigGANConfig,
    DataConfig,
    DiscriminatorConfig,
    EmaConfig,
    EvaluationConfig,
    FaultsConfig,
    GeneratorConfig,
    InstancesConfig,
    InterventionConfig,
    LatentsConfig,
    MeshConfig,
    OptimizerConfig,
    PathLengthConfig,
    ProfileConfig,
    R1Config,
    SpectraConfig,
)
from noisytwins_jax.errors import UserError, did_you_mean
from noisytwins_jax.fields import choice, number, objection
from noisytwins_jax.latents import Latents
from noisytwins_jax.objectives.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.objectives.objective import Objective
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
    up_impl: str = choice("conv", "shift")  # conv is fast on TPUs, shift on CPUs: the same numbers, see networks.fir
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
    check_together(run)
    return run


def parse_flat(fields: Mapping[str, Any]) -> RunConfig:
    """The typed form of what `flatten` gives; fields that are not there have their defaults.

    Raises:
      UserError: as `parse_config`.
    """
    tree: dict[str, Any] = {}
    for path, value in fields.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    run = _build(RunConfig, tree)
    check_together(run)
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
