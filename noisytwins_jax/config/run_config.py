"""The tree of configuration fields, `RunConfig`: the groups in `config.groups`, the losses, and fields of its own.

A config file (``configs/<dataset>.py``) starts from `default_config()`, changes fields and returns the tree as an
`ml_collections.ConfigDict`; every field can then be overridden on the command line (``--config.r1.gamma=0.1``). Code
takes the typed, frozen form that `parse_config` returns. Defaults are those common to the published NoisyTwins runs.

Units: ``kimg`` is thousands of real images seen by the discriminator; a ``step`` is one update of the generator.
"""

import dataclasses
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
    FinetuneConfig,
    GeneratorConfig,
    InstancesConfig,
    InterventionConfig,
    LatentsConfig,
    MeshConfig,
    OptimizerConfig,
    ProfileConfig,
    R3GANConfig,
    SpectraConfig,
)
from noisytwins_jax.data.config import DataConfig
from noisytwins_jax.losses.adversarial import ADVERSARIAL_LOSSES, Adversarial
from noisytwins_jax.losses.base import Loss
from noisytwins_jax.losses.content_style import ContentStyle
from noisytwins_jax.losses.contrastive import Contrastive
from noisytwins_jax.losses.d2dce import D2DCE
from noisytwins_jax.losses.gradient_penalty import GradientPenalty
from noisytwins_jax.losses.gsr import GroupSpectralNorm
from noisytwins_jax.losses.lecam import LeCam
from noisytwins_jax.losses.noisytwins import NoisyTwins
from noisytwins_jax.losses.orthogonal import Orthogonal
from noisytwins_jax.losses.path_length import PathLength
from noisytwins_jax.losses.r1 import R1
from noisytwins_jax.losses.simclr import SimCLR
from noisytwins_jax.losses.spectrum import Spectrum
from noisytwins_jax.losses.transitional import Transitional
from noisytwins_jax.losses.utlo import UTLO
from noisytwins_jax.models.latents import Latents
from noisytwins_jax.utils.config_fields import choice, number


@dataclass(frozen=True)
class Losses:
    """Every loss beside the adversarial one, with its hyper-parameters; see `losses.base`. To add one, add a line."""

    noisytwins: NoisyTwins = NoisyTwins()
    simclr: SimCLR = SimCLR()
    lecam: LeCam = LeCam()
    gsr: GroupSpectralNorm = GroupSpectralNorm()
    orthogonal: Orthogonal = Orthogonal()
    d2dce: D2DCE = D2DCE()
    contrastive: Contrastive = Contrastive()
    transitional: Transitional = Transitional()
    spectrum: Spectrum = Spectrum()
    utlo: UTLO = UTLO()
    content_style: ContentStyle = ContentStyle()
    path_length: PathLength = PathLength()
    r1: R1 = R1()
    gradient_penalty: GradientPenalty = GradientPenalty()


@dataclass(frozen=True)
class RunConfig(Losses):
    """The configuration of a run."""

    name: str = "run"  # <dataset>-<method>; the default workdir is runs/<name>
    seed: int = number(0, at_least=0, at_most=2**32 - 1)
    auto: bool = (
        False  # take what follows from the data and the device from `data.recipe`, but for fields that are given
    )
    batch_size: int = number(128, at_least=1)  # images, over all devices
    total_kimg: float = number(1000.0, at_least=0)
    loss: str = choice(*ADVERSARIAL_LOSSES)
    loss_margin: float = number(1.0, above=0)  # of the hinge loss
    network: str = choice("stylegan2", "biggan", "biggan_deep", "r3gan")
    # Classes of generated images; empirical: as in the training set; paired: those of the real images beside them.
    fake_labels: str = choice("uniform", "empirical", "paired")
    style_mixing: float = number(0.0, at_least=0, at_most=1)  # probability that a batch mixes the styles of two latents
    dtype: str = choice("float32", "bfloat16")  # of activations; parameters are always float32
    steps_per_dispatch: int = number(1, at_least=1)  # in one program, so that small networks do not wait for the host
    accumulation: int = number(1, at_least=1)  # micro-batches of a batch, of which one at a time is in memory
    device_batch: int = number(0, at_least=0)  # or: images of a micro-batch on a device, at most; 0 for all
    remat: bool = False  # compute activations again for gradients rather than store them
    up_impl: str = choice("auto", "conv", "shift")  # form of the convolutions; auto: by platform, see models.fir
    log_interval_kimg: float = number(1.0, at_least=0)
    w_ratio_interval_kimg: float = number(10.0, at_least=0)  # share of W's variance within classes; 0 for never
    memorisation_interval_kimg: float = number(0.0, at_least=0)  # D's accuracy on images trained with and held out
    checkpoint_interval_kimg: float = number(50.0, at_least=0)
    sheet_interval_kimg: float = number(0.0, at_least=0)  # sample sheet while training; 0 for at the end only
    wandb: str = ""  # project of Weights & Biases to log to as well; empty for none
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    biggan: BigGANConfig = BigGANConfig()
    r3gan: R3GANConfig = R3GANConfig()
    instances: InstancesConfig = InstancesConfig()
    latents: LatentsConfig = LatentsConfig()
    spectra: SpectraConfig = SpectraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    augment: AugmentConfig = AugmentConfig()
    ada: AdaConfig = AdaConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    profile: ProfileConfig = ProfileConfig()
    faults: FaultsConfig = FaultsConfig()
    collapse: CollapseConfig = CollapseConfig()
    intervention: InterventionConfig = InterventionConfig()

    @property
    def losses(self) -> dict[str, Loss]:
        """Return the losses that are switched on, by name; the adversarial one comes first."""
        others = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(Losses)}
        every = {"adversarial": Adversarial(self.loss, self.loss_margin)} | others
        return {name: loss for name, loss in every.items() if loss.active}

    @property
    def z(self) -> Latents:
        """Return the distribution of the generator's latents."""
        return Latents(self.generator.z_dim, self.latents.kind, (self.latents.low_std, self.latents.high_std))

    @property
    def has_mapping_network(self) -> bool:
        """Return whether there is a mapping network; BigGAN's W is just z and the class embedding."""
        return self.network == "stylegan2"

    @property
    def truncation_kind(self) -> str:
        """Return the default truncation of generated images."""
        return self.evaluation.truncation_kind or ("psi" if self.has_mapping_network else "threshold")

    @property
    def makes_twins(self) -> bool:
        """Return whether the generator's update samples its batch as twins."""
        return any(loss.twins for loss in self.losses.values())

    @property
    def total_steps(self) -> int:
        """Return the number of generator updates of the whole run."""
        return -(-round(self.total_kimg * 1000) // self.images_per_step)

    @property
    def images_per_step(self) -> int:
        """Return the number of real images seen by the discriminator in one step."""
        return self.batch_size * self.optimizer.discriminator_updates

    def lazy_batch(self, loss: Loss) -> int:
        """Return how many images are generated in an update of a lazy regulariser of the generator."""
        return max(1, round(self.batch_size * loss.batch_fraction))
