"""Fields that are fine alone and not together: one sentence that names them, and a way out."""

import pytest
import tiny_biggan
import tiny_run

from noisytwins_jax.utils.errors import UserError

INSTANCES = {"instances.neighbours": 3, "fake_labels": "empirical", "evaluation.memorisation": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wandb": "team/project"}, "config.wandb=team/project is no name of a project"),
        ({"loss_margin": 2.0}, "config.loss_margin is the hinge loss's"),
        ({"generator.channel_base": 4}, "config.generator.channel_base=4 leaves no channels at 8 px"),
        ({"discriminator.channel_base": 4}, "config.discriminator.channel_base=4 leaves no channels at 8 px"),
        ({"ada.operations": "bgc"}, "are both set; choose one"),
        (
            {"transitional.weight": 1.0, "d2dce.weight": 1.0},
            "config.transitional needs a discriminator with two logits",
        ),
        ({"transitional.start_kimg": 2.0, "transitional.end_kimg": 1.0}, "config.transitional.end_kimg=1.0 is before"),
        ({"utlo.weight": 1.0, "utlo.resolution": 8}, "config.utlo.resolution=8 must be a power of two from 4 to 4"),
        (
            {"utlo.weight": 1.0, "utlo.resolution": 4, "generator.architecture": "orig"},
            "config.utlo takes the image of a low resolution from inside the generator",
        ),
        ({"loss": "relativistic"}, "which is what config.fake_labels=paired is for; give both or neither"),
        ({"fake_labels": "paired"}, "which is what config.fake_labels=paired is for; give both or neither"),
        (
            {"content_style.weight": 0.1, "noisytwins.sigma": 0.0, "transitional.weight": 1.0},
            "config.content_style and config.transitional each have a mapping network of their own",
        ),
        (
            {"content_style.weight": 0.1, "noisytwins.sigma": 0.1},
            "config.noisytwins.sigma and config.content_style.sigma both set the noise on class embeddings",
        ),
        (
            {"content_style.weight": 0.1, "noisytwins.sigma": 0.0, "generator.z_dim": 7},
            "config.generator.z_dim=7 is odd, and config.content_style divides z into halves",
        ),
        ({"data.tail_below": 9, "data.head_above": 3}, "config.data.tail_below=9 is above config.data.head_above=3"),
        ({"profile.steps": "9-3"}, "config.profile.steps"),
        ({"evaluation.samples_per_class": 2}, "config.evaluation.samples_per_class=2 is too few for"),
        ({"evaluation.truncations": "1,x"}, "config.evaluation.truncations=1,x is no list of different numbers"),
        (
            {"evaluation.truncations": "0.5", "evaluation.truncation_kind": "std"},
            "Truncation std changes nothing here, as the mapping network normalises its latents",
        ),
        ({"latents.high_std": 0.1}, "config.latents.high_std is below config.latents.low_std"),
        ({"spectra.clamp": 1.0}, "config.spectra.clamp acts whenever singular values are computed"),
        ({"instances.neighbours": 3}, "config.instances.neighbours conditions BigGAN's networks"),
    ],
)
def test_of_any_network(changes, message):
    with pytest.raises(UserError) as error:
        tiny_run.tiny_config(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style_mixing": 0.5}, "config.style_mixing needs StyleGAN2's networks"),
        ({"path_length.weight": 2.0}, "config.path_length.weight needs StyleGAN2's networks"),
        ({"utlo.weight": 1.0}, "config.utlo.weight needs StyleGAN2's networks"),
        ({"content_style.weight": 0.1}, "config.content_style.weight needs StyleGAN2's networks"),
        ({"discriminator.mbstd_group_size": 4}, "which BigGAN has not; set it to 1"),
        (
            {"biggan.shared_embedding": False},
            "config.biggan.skip_z goes beside a class embedding that the blocks share",
        ),
        ({"biggan.attention": "8,x"}, "config.biggan.attention=8,x is no list of resolutions"),
        (
            {"evaluation.truncations": "0.5", "evaluation.truncation_kind": "psi"},
            "Truncation psi acts in W, which this generator does not have",
        ),
        (
            INSTANCES | {"biggan.shared_embedding": False, "biggan.skip_z": False},
            "config.instances.neighbours goes beside a class embedding",
        ),
        (INSTANCES | {"fake_labels": "uniform"}, "give --config.fake_labels=empirical"),
        (INSTANCES | {"memorisation_interval_kimg": 1.0}, "config.memorisation_interval_kimg needs held-out images"),
    ],
)
def test_of_biggan(changes, message):
    with pytest.raises(UserError) as error:
        tiny_biggan.tiny_config(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_they_are_changed_from_is_fine():
    tiny_run.tiny_config()
    tiny_biggan.tiny_config()
    tiny_biggan.tiny_config(**INSTANCES)
