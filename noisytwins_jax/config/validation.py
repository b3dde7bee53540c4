"""Validation across fields of a configuration, each of which is valid by itself."""

from noisytwins_jax.config.groups import EvaluationConfig, traced_steps
from noisytwins_jax.config.run_config import RunConfig
from noisytwins_jax.metrics.protocols import parse_extractors
from noisytwins_jax.models.latents import check_truncation
from noisytwins_jax.utils.errors import UserError

_STYLEGAN2_LOSSES = ("transitional", "utlo", "content_style", "d2dce", "contrastive")


def validate_cross_fields(run: RunConfig) -> None:
    """Raise a `UserError` for fields that do not fit together."""
    if run.network != "stylegan2":
        _check_without_mapping(run)
    if run.instances.neighbours > 0:
        _check_instances(run)
    if run.accumulation > 1 and run.device_batch:
        raise UserError(
            "config.accumulation and config.device_batch both set the micro-batches; leave one at its default."
        )
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
    if (run.loss == "relativistic") != (run.fake_labels == "paired"):
        raise UserError(
            "config.loss=relativistic compares each generated image with a real one of its class, which is what "
            "config.fake_labels=paired is for; give both or neither."
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
    if run.content_style.weight > 0:
        _check_content_style(run)
    if run.data.tail_below > run.data.head_above:
        raise UserError(
            f"config.data.tail_below={run.data.tail_below} is above config.data.head_above={run.data.head_above}; classes "
            "in between are the medium ones."
        )
    if set(run.wandb) & set("/\\#?%:"):
        raise UserError(
            f"config.wandb={run.wandb} is no name of a project of Weights & Biases, which has none of / \\ # ? % :; give the "
            "name alone, and the team or user before it as the environment variable WANDB_ENTITY."
        )
    traced_steps(run.profile.steps)  # raises if it is not a range
    _check_evaluation(run.evaluation)
    for strength in run.evaluation.sweep:
        check_truncation(run.truncation_kind, strength, run.latents.kind, run.has_mapping_network)
    if run.spectra.clamp > 0 and run.spectra.interval == 0:
        raise UserError(
            "config.spectra.clamp acts whenever singular values are computed, which is never with "
            "config.spectra.interval=0; give for example --config.spectra.interval=100."
        )
    if run.latents.high_std < run.latents.low_std:
        raise UserError("config.latents.high_std is below config.latents.low_std; it must not be.")


def _check_without_mapping(run: RunConfig) -> None:
    """Raise for options that need StyleGAN2's mapping or synthesis network, or another head of its discriminator."""
    _ = run.biggan.attention_resolutions  # raises if it is not a list of resolutions
    needing = {
        "style_mixing": run.style_mixing,
        "path_length.weight": run.path_length.weight,
        **{f"{name}.weight": getattr(run, name).weight for name in _STYLEGAN2_LOSSES},
    }
    for name, value in needing.items():
        if value > 0:
            raise UserError(
                f"config.{name} needs StyleGAN2's networks and config.network={run.network} has others; set it to 0, or "
                "--config.network=stylegan2."
            )
    if run.discriminator.mbstd_group_size > 1:
        raise UserError(
            "config.discriminator.mbstd_group_size is of StyleGAN2's minibatch standard deviation, which "
            f"{'R3GAN' if run.network == 'r3gan' else 'BigGAN'} has not; set it to 1."
        )
    if run.biggan.skip_z and not run.biggan.shared_embedding:
        raise UserError(
            "config.biggan.skip_z goes beside a class embedding that the blocks share; set it to False, or "
            "config.biggan.shared_embedding to True."
        )


def _check_instances(run: RunConfig) -> None:
    """Raise for options that do not work with instances."""
    if run.network not in ("biggan", "biggan_deep"):
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
            "config.memorisation_interval_kimg needs held-out images, which are no instances for the discriminator; "
            "set it to 0, or config.instances.neighbours."
        )


def _check_evaluation(evaluation: EvaluationConfig) -> None:
    settings = evaluation.settings
    parse_extractors(settings.protocol, evaluation.extractors)
    if settings.samples_per_class <= settings.k:
        raise UserError(
            f"config.evaluation.samples_per_class={settings.samples_per_class} is too few for {settings.k} neighbours; it "
            "must be larger."
        )
    _ = evaluation.sweep  # raises if it is not a list of numbers


def _check_content_style(run: RunConfig) -> None:
    if run.transitional.weight > 0:
        raise UserError(
            "config.content_style and config.transitional each have a mapping network of their own; set the weight of one of "
            "them to 0."
        )
    if run.noisytwins.sigma > 0:
        raise UserError(
            "config.noisytwins.sigma and config.content_style.sigma both set the noise on class embeddings; set "
            "config.noisytwins.sigma to 0, or config.content_style.weight."
        )
    if run.generator.z_dim % 2:
        raise UserError(
            f"config.generator.z_dim={run.generator.z_dim} is odd, and config.content_style divides z into halves; give an even one."
        )


def _check_utlo(run: RunConfig) -> None:
    low, full = run.utlo.resolution, run.data.resolution
    if low < 4 or low >= full or low & (low - 1):
        raise UserError(f"config.utlo.resolution={low} must be a power of two from 4 to {full // 2}.")
    if run.generator.architecture != "skip" or run.discriminator.architecture == "skip":
        raise UserError(
            "config.utlo takes the image of a low resolution from inside the generator: it needs "
            "--config.generator.architecture=skip and --config.discriminator.architecture=resnet or orig."
        )
