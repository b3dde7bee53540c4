"""The tree of configuration fields: `RunConfig`, of the groups in `config_groups` and of the objectives.

A config file (``configs/<dataset>.py``) starts from `default_config()`, changes fields and returns the tree as an
`ml_collections.ConfigDict`; every field can then be overridden on the command line (``--config.r1.gamma=0.1``). Code
takes the typed, frozen form that `parse_config` returns. Defaults are those common to the published NoisyTwins runs.

Units: ``kimg`` is thousands of real images shown to the discriminator; a ``step`` is one update of the generator.
"""

import dataclasses
import pkgutil
from dataclasses import dataclass, field

from noisytwins_jax.config.groups import (
    AdaConfig,
    AugmentConfig,
    BigGANConfig,
    CollapseConfig,
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
from noisytwins_jax.data.config import DataConfig
from noisytwins_jax.losses.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.losses.base import Loss
from noisytwins_jax.models.latents import Latents
from noisytwins_jax.utils.config_fields import choice, number


def listed(path: str) -> Loss:
    """The objective of this name, with its default hyper-parameters, as the field of a dataclass."""
    return pkgutil.resolve_name(path)()


@dataclass(frozen=True)
class Losses:
    """Terms of the loss beside the adversarial one; see `objectives.objective`. To add one, add a line."""

    noisytwins: Loss = listed("noisytwins_jax.losses.noisytwins.NoisyTwins")
    simclr: Loss = listed("noisytwins_jax.losses.simclr.SimCLR")
    lecam: Loss = listed("noisytwins_jax.losses.lecam.LeCam")
    gsr: Loss = listed("noisytwins_jax.losses.gsr.GroupSpectralNorm")
    orthogonal: Loss = listed("noisytwins_jax.losses.orthogonal.Orthogonal")
    d2dce: Loss = listed("noisytwins_jax.losses.d2dce.D2DCE")
    contrastive: Loss = listed("noisytwins_jax.losses.contrastive.Contrastive")
    transitional: Loss = listed("noisytwins_jax.losses.transitional.Transitional")
    spectrum: Loss = listed("noisytwins_jax.losses.spectrum.Spectrum")
    utlo: Loss = listed("noisytwins_jax.losses.utlo.UTLO")


@dataclass(frozen=True)
class RunConfig(Losses):
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
    def objectives(self) -> dict[str, Loss]:
        """The terms that are switched on, by name."""
        terms = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(Losses)}
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
