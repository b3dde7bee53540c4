"""The configuration file for StudioGAN's and NoisyTwins' evaluation, against the published files of the same networks."""

import pytest
import yaml
from methods_program import run_config

from noisytwins_jax.interop.studiogan_config import has_studiogan_widths, studiogan_config

INAT19 = {  # what the published iNat19 file of NoisyTwins says of networks and sizes
    "DATA": {"img_size": 64, "num_classes": 1010},
    "MODEL": {
        **{"backbone": "stylegan2", "g_cond_mtd": "cAdaIN", "d_cond_mtd": "SPD", "g_act_fn": "Auto"},
        **{"d_act_fn": "Auto", "z_dim": 512, "w_dim": 512, "g_conv_dim": "N/A", "d_conv_dim": "N/A"},
        "apply_g_ema": True,
    },
    "LOSS": {"adv_loss": "logistic"},
    "OPTIMIZATION": {
        **{"batch_size": 128, "g_lr": 0.0025, "d_lr": 0.0025, "beta1": 0, "beta2": 0.99, "d_first": False},
        "d_updates_per_step": 1,
    },
    "STYLEGAN": {
        **{"g_reg_interval": 4, "d_reg_interval": 16, "mapping_network": 2, "style_mixing_p": 0.9, "g_ema_kimg": 20},
        **{"g_ema_rampup": "N/A", "apply_pl_reg": True, "pl_weight": 2, "d_architecture": "resnet"},
        "d_epilogue_mbstd_group_size": 8,
    },
}
CIFAR10_BIGGAN = {  # what StudioGAN's file of CIFAR10's BigGAN says of networks
    "DATA": {"img_size": 32, "num_classes": 10},
    "MODEL": {
        **{"backbone": "big_resnet", "g_cond_mtd": "cBN", "d_cond_mtd": "PD", "apply_g_sn": True, "apply_d_sn": True},
        **{"apply_attn": True, "attn_g_loc": [2], "attn_d_loc": [1], "z_dim": 80, "g_shared_dim": 128},
        **{"g_conv_dim": 96, "d_conv_dim": 96, "apply_g_ema": True, "g_ema_start": 1000},
    },
    "LOSS": {"adv_loss": "hinge"},
    "OPTIMIZATION": {"batch_size": 64, "beta1": 0.5, "beta2": 0.999, "d_updates_per_step": 5},
}


def written(row, num_classes):
    return yaml.safe_load(studiogan_config(run_config(row), num_classes, 3))


@pytest.mark.parametrize(
    ("row", "published"),
    [("inat19:noisytwins", INAT19), ("cifar10_lt:biggan", CIFAR10_BIGGAN)],
    ids=["StyleGAN2", "BigGAN"],
)
def test_says_what_the_published_files_say(row, published):
    content = written(row, published["DATA"]["num_classes"])
    for group, values in published.items():
        assert {name: content[group][name] for name in values} == values
    if "biggan" in row:
        assert content["MODEL"]["g_ema_decay"] == pytest.approx(0.9999, abs=1e-6)


def test_a_deep_biggan_counts_stages():
    content = written("imagenet:biggan_deep", 1000)["MODEL"]
    assert (content["backbone"], content["attn_g_loc"], content["attn_d_loc"]) == ("big_resnet_deep_legacy", [4], [1])
    assert (content["g_depth"], content["d_depth"]) == (2, 2)


def test_conditioning_of_the_discriminator():
    assert (
        written("cifar10_lt:sg2", 0)["MODEL"]["g_cond_mtd"] == "W/O"
        and written("cifar10_lt:sg2", 0)["DATA"]["num_classes"] == 1
    )
    d2dce, contrastive = written("cifar10_lt:d2dce", 10), written("cifar10_lt:contrastive", 10)
    assert d2dce["MODEL"]["d_cond_mtd"] == "D2DCE" and d2dce["MODEL"]["d_embed_dim"] == 512
    assert d2dce["LOSS"] == {"adv_loss": "logistic", "cond_lambda": 0.25, "m_p": 0.98, "temperature": 0.25}
    assert contrastive["MODEL"]["d_cond_mtd"] == "2C" and contrastive["LOSS"]["cond_lambda"] == 0.25


def test_widths_are_said_only_where_they_are_not_studiogans():
    """Its own code has no such option, NoisyTwins' has."""
    assert has_studiogan_widths(run_config("inat19:noisytwins"))
    small = run_config("fashion_mnist_lt:noisytwins,cpu")
    assert not has_studiogan_widths(small)
    options = yaml.safe_load(studiogan_config(small, 10, 1))["STYLEGAN"]
    assert (options["channel_base"], options["channel_max"]) == (512, 64)
    assert "channel_base" not in written("inat19:noisytwins", 1010)["STYLEGAN"]
