"""The files in configs/: their numbers against the published ones, and two real steps of their rows' smoke forms."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import methods_program
import pytest
import tiny_run
from waiting import TIMEOUT

from noisytwins_jax.config import RunConfig, flatten, parse_config
from noisytwins_jax.data.config import DataConfig
from noisytwins_jax.data.prepared import NOT_FREE
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.utils.errors import UserError

# Common to all published runs.
COMMON = {
    "batch_size": 128,
    "loss": "logistic",
    "fake_labels": "uniform",
    "dtype": "bfloat16",  # ours, for TPUs; the published runs were float32 throughout
    "data.mirror": True,
    "data.preprocessing": "center-lanczos",
    "generator.z_dim": 512,
    "generator.w_dim": 512,
    "generator.channel_base": 16384,
    "generator.channel_max": 512,
    "generator.architecture": "skip",
    "generator.conv_clamp": None,
    "generator.w_avg_decay": 0.998,
    "generator.noise_mode": "random",
    "discriminator.channel_base": 16384,
    "discriminator.channel_max": 512,
    "discriminator.mapping_layers": 8,
    "discriminator.conv_clamp": None,
    "r1.interval": 16,
    "path_length.interval": 4,
    "path_length.weight_twice": True,
    "path_length.batch_fraction": 0.5,
    "path_length.decay": 0.01,
    "optimizer.generator_lr": 0.0025,
    "optimizer.discriminator_lr": 0.0025,
    "optimizer.beta1": 0.0,
    "optimizer.beta2": 0.99,
    "optimizer.epsilon": 1e-8,
    "optimizer.discriminator_updates": 1,
}

# The block of each data set: the same for all of its methods.
BLOCK_FIELDS = (
    *("generator.mapping_layers", "style_mixing", "r1.gamma", "path_length.weight", "path_length.start_step"),
    *("ema.kimg", "ema.rampup", "lecam.weight", "lecam.start_step", "lecam.decay"),
    *("discriminator.architecture", "discriminator.mbstd_group_size"),
)
BLOCKS = {
    "cifar10_lt": (8, 0, 0.01, 0, 0, 500, 0.05, 0, 0, 0.99, "orig", 32),
    "inat19": (2, 0.9, 0.2048, 2, 0, 20, None, 0.01, 0, 0.99, "resnet", 8),
    "imagenet_lt": (8, 0.9, 0.2048, 2, 60_000, 20, None, 0, 0, 0.99, "resnet", 8),
    "animal_face": (2, 0, 0.01, 2, 0, 500, 0.05, 0, 0, 0.99, "resnet", 32),
    "imagenet_carnivore": (2, 0, 0.01, 2, 0, 500, 0.05, 0, 0, 0.99, "resnet", 32),
}
#                              pixels   classes  steps
SIZES = {
    "cifar10_lt": ((32,), 10, 120_000),
    "inat19": ((64, 128), 1010, 180_000),
    "imagenet_lt": ((64, 128), 1000, 250_000),
    "animal_face": ((64,), 20, 100_000),
    "imagenet_carnivore": ((64,), 20, 70_000),
    "digits_lt": ((8,), 10, 8000),
    "fashion_mnist_lt": ((32,), 10, 120_000),
    "cifar100_lt": ((32,), 100, 1_562_500),
    "flowers_lt": ((128,), 102, 1_562_500),
    "animal_faces_lt": ((64,), 20, 390_625),
    "petals": ((64, 128), 20, 31_250),
    "image_folder": ((64, 32, 128, 256), 20, 78_125),
    "imagenet": ((128, 256, 512), 1000, 500_000),
}

# Methods: what they add to the block.
DIFFAUG = {"augment.diffaugment": "color,translation,cutout"}
ADA = {"ada.operations": "bgc", "ada.target": 0.6, "ada.kimg": 500, "ada.interval": 4, "ada.initial_p": 0}
#              sigma, alpha | weight, gamma, start
NOISYTWINS = {
    "cifar10_lt": (0.75, 0.99, 0.01, 0.05, 0),
    "inat19": (0.1, 0, 0.001, 0.005, 25_000),
    "imagenet_lt": (0.25, 0, 0.001, 0.005, 60_000),
    "animal_face": (0.5, 0, 0.001, 0.05, 0),
    "imagenet_carnivore": (0.5, 0, 0.001, 0.05, 0),
}
GSR = {
    "cifar10_lt": (0.5, 0.99),
    "inat19": (0.01, 0.999),
    "imagenet_lt": (0.01, 0.999),
    "animal_face": (0.5, 0.99),
    "imagenet_carnivore": (0.5, 0.99),
}
CONTENT_STYLE = {"content_style.weight": 0.1, "content_style.sigma": 0.5, "fake_labels": "empirical"}
CONTENT_STYLE |= {"generator.mapping_layers": 2, "path_length.weight_twice": False}
RELATIVISTIC = {"loss": "relativistic", "fake_labels": "paired", "r1.gamma": 0, "r1.interval": 1}
RELATIVISTIC |= {"path_length.interval": 1}
TRANSITIONAL = {"transitional.weight": 1, "transitional.start_kimg": 2000, "transitional.end_kimg": 4000}


def method_fields(dataset: str) -> dict[str, dict]:
    """What each method of a data set sets, by its name."""
    sigma, alpha, weight, gamma, start = NOISYTWINS[dataset]
    noise = {"noisytwins.sigma": sigma, "noisytwins.alpha": alpha}
    twins = {"noisytwins.weight": weight, "noisytwins.gamma": gamma, "noisytwins.start_step": start}
    gsr = dict(zip(("gsr.weight", "gsr.alpha"), GSR[dataset], strict=True)) | {"gsr.power_iterations": 4}
    cifar = dataset == "cifar10_lt"
    augment = DIFFAUG if cifar else ADA
    methods = {
        "sg2": {},
        "ada": ADA,
        "gsr": ADA | gsr,  # with ADA on CIFAR10-LT, too
        "noise": augment | noise,
        "noisytwins": augment | noise | twins,
        "d2dce": augment | {"d2dce.weight": 0.25, "d2dce.temperature": 0.25, "d2dce.margin": 0.98},
        "contrastive": augment | {"contrastive.weight": 0.25, "contrastive.temperature": 0.25},
        "transitional": augment | TRANSITIONAL,
        "transitional_noisytwins": augment | TRANSITIONAL | noise | twins,
        "utlo": augment | {"utlo.weight": 10 if cifar else 1, "utlo.resolution": 8},
        "content_style": ADA | CONTENT_STYLE,
    }
    if cifar:
        methods["diffaug"] = DIFFAUG
        methods["ada_noisytwins"] = ADA | noise | twins
        methods["simclr"] = DIFFAUG | noise | {"simclr.weight": 0.1, "simclr.temperature": 0.5}
        methods["relativistic"] = DIFFAUG | RELATIVISTIC | {"gradient_penalty.gamma": 0.01}
    return methods


def rows(dataset: str, smoke: bool = False) -> list[str]:
    """Every row of a data set: method × resolution."""
    suffix = ",smoke" if smoke else ""
    return [
        f"{dataset}:{m},{size}{suffix}"
        for m in methods_program.config_file(dataset).METHODS
        for size in SIZES[dataset][0]
    ]


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_every_file_is_known_here():
    assert {path.stem for path in methods_program.CONFIGS.glob("*.py")} == set(SIZES)


@pytest.mark.parametrize("dataset", BLOCKS)
def test_every_number_is_the_published_one(dataset):
    """Fields that are neither common, nor the block's, nor the method's have the value that switches them off."""
    methods, (sizes, _, steps) = method_fields(dataset), SIZES[dataset]
    others = BIGGAN_ROWS if dataset in BIGGAN_NUMBERS else set()
    others = others | {"imagenet_lt": {"icgan"}, "cifar10_lt": {"r3gan"}}.get(dataset, set())
    assert set(methods_program.config_file(dataset).METHODS) == set(methods) | others
    expected = flatten(RunConfig()) | COMMON | dict(zip(BLOCK_FIELDS, BLOCKS[dataset], strict=True))
    expected |= {"data.name": dataset, "total_kimg": steps * 128 / 1000}
    if dataset in ("inat19", "imagenet_lt"):
        expected |= {"data.tail_below": 20, "data.head_above": 100}
    free = ("evaluation.", "checkpoint_interval_kimg")
    for method, fields in methods.items():
        for size in sizes:
            run = methods_program.run_config(f"{dataset}:{method},{size}")
            name = f"{dataset}-{method}" if size == sizes[0] else f"{dataset}_{size}-{method}"
            wanted = expected | {"name": name, "data.resolution": size} | fields
            found = flatten(run)
            assert found.keys() == wanted.keys()
            wrong = {
                path: value for path, value in found.items() if value != wanted[path] and not path.startswith(free)
            }
            assert not wrong, name
            assert run.total_steps == steps


def test_r3gan_has_its_own_recipe():
    """That of its CIFAR10 run (preset and schedules of the released train.py)."""
    run = methods_program.run_config("cifar10_lt:r3gan")
    rates, ada = run.optimizer, run.ada
    assert (run.network, run.loss, run.batch_size, run.total_kimg) == ("r3gan", "relativistic", 512, 250_000)
    assert (run.r3gan.width, run.r3gan.cardinality, run.generator.z_dim) == (768, 96, 64)
    assert (rates.generator_lr, rates.discriminator_lr, rates.beta1, rates.epsilon) == (2e-4, 2e-4, 0, 1e-8)
    assert (rates.final_lr * 2e-4, rates.beta2, rates.final_beta2) == (5e-5, 0.9, 0.99)
    assert (run.gradient_penalty.gamma, run.gradient_penalty.final_gamma) == (0.05, pytest.approx(0.005))
    assert (ada.final_p, ada.color_strength, ada.operations) == (0.55, 0.5, "bg,color,cutout")
    assert run.ema.kimg == 5000 and run.ema.rampup is None and not run.augment.diffaugment
    assert {x.anneal_kimg for x in (rates, ada, run.ema, run.gradient_penalty)} == {20_000}
    assert not run.r1.active and run.r1.interval == run.path_length.interval == 1


# Batch, width, both learning rates, beta1, discriminator updates, steps of the average before it starts, steps.
BIGGAN_NUMBERS = {
    "cifar10_lt": (64, 96, 2e-4, 2e-4, 0.5, 5, 1000, 100_000),
    "inat19": (256, 64, 5e-5, 2e-4, 0, 2, 20_000, 150_000),
    "imagenet_lt": (256, 64, 5e-5, 2e-4, 0, 2, 20_000, 150_000),
}
BIGGAN_ROWS = {"biggan", "biggan_gsr", "biggan_noisytwins"}


@pytest.mark.parametrize("dataset", BIGGAN_NUMBERS)
def test_biggan_rows_have_its_recipe(dataset):
    for method in sorted(BIGGAN_ROWS):
        run = methods_program.run_config(f"{dataset}:{method}")
        assert (run.network, run.loss, run.style_mixing, run.r1.gamma) == ("biggan", "hinge", 0, 0)
        assert (run.r1.interval, run.path_length.interval, run.optimizer.beta2) == (1, 1, 0.999)
        assert run.augment.diffaugment == "color,translation,cutout" and not run.ada.operations
        rates = (run.optimizer.generator_lr, run.optimizer.discriminator_lr, run.optimizer.beta1)
        counts = (run.optimizer.discriminator_updates, run.ema.start_step, run.total_steps)
        numbers = (run.batch_size, run.biggan.generator_width, *rates, *counts)
        assert numbers == BIGGAN_NUMBERS[dataset]
        assert 0.5 ** (run.batch_size / (run.ema.kimg * 1000)) == pytest.approx(0.9999)
        sigma, _, weight, *_ = NOISYTWINS[dataset]
        noisy = method == "biggan_noisytwins"
        assert (run.noisytwins.sigma, run.noisytwins.weight) == ((sigma, weight) if noisy else (0, 0))
        assert run.gsr.weight == (GSR[dataset][0] if method == "biggan_gsr" else 0)


@pytest.mark.parametrize("dataset", ["imagenet_lt", "digits_lt"])
def test_icgan_rows_are_biggan_with_instances(dataset):
    instances, biggan = (methods_program.run_config(f"{dataset}:{method}") for method in ("icgan", "biggan"))
    assert instances.instances.neighbours == 5 and biggan.instances.neighbours == 0
    assert instances.fake_labels == "empirical"
    if dataset == "imagenet_lt":
        assert (instances.instances.extractor, instances.instances.embedding_dim) == ("inception", 512)
    before, after = flatten(biggan), flatten(instances)
    changed = {name for name in after if after[name] != before[name] and not name.startswith("instances.")}
    assert changed <= {"name", "fake_labels", "memorisation_interval_kimg"}


#                batch, width, z, shared, skip-z, orthogonal, lr of G and D, discriminator updates
IMAGENET = {
    "biggan,128": (2048, 96, 120, True, True, 1e-4, 5e-5, 2e-4, 2),
    "biggan,256": (2048, 96, 140, True, True, 1e-4, 5e-5, 2e-4, 2),
    "biggan,512": (2048, 96, 160, True, True, 1e-4, 5e-5, 2e-4, 2),
    "biggan_deep,128": (2048, 128, 128, True, True, 1e-4, 5e-5, 2e-4, 2),
    "biggan_deep,256": (2048, 128, 128, True, True, 1e-4, 2.5e-5, 2.5e-5, 2),
    "biggan_deep,512": (2048, 128, 128, True, True, 1e-4, 2.5e-5, 2.5e-5, 2),
    "sagan": (256, 64, 128, False, False, 0, 1e-4, 4e-4, 1),
    "batch2048": (2048, 64, 128, False, False, 0, 5e-5, 2e-4, 2),
    "ch96": (2048, 96, 128, False, False, 0, 5e-5, 2e-4, 2),
    "shared": (2048, 96, 128, True, False, 0, 5e-5, 2e-4, 2),
    "skip_z": (2048, 96, 120, True, True, 0, 5e-5, 2e-4, 2),
    "ch64": (2048, 64, 120, True, True, 1e-4, 5e-5, 2e-4, 2),
}


def test_rows_of_biggans_own_tables():
    assert {row.partition(",")[0] for row in IMAGENET} == set(methods_program.config_file("imagenet").METHODS)
    for row, numbers in IMAGENET.items():
        run = methods_program.run_config(f"imagenet:{row}")
        kind, options, rates = run.network, run.biggan, run.optimizer
        assert kind == ("biggan_deep" if row.startswith("biggan_deep") else "biggan")
        assert numbers == (
            *(run.batch_size, options.generator_width, run.generator.z_dim, options.shared_embedding, options.skip_z),
            *(run.orthogonal.weight, rates.generator_lr, rates.discriminator_lr, rates.discriminator_updates),
        )
        assert (rates.beta1, rates.beta2, options.spectral_norm_epsilon, options.batch_norm_epsilon) == (
            *(0, 0.999),
            *(1e-4, 1e-4),
        )
        assert run.data.preprocessing == "center-box" and run.total_steps == 500_000


@pytest.mark.parametrize("dataset", BLOCKS)
def test_fifty_thousand_images_are_evaluated(dataset):
    config = methods_program.run_config(f"{dataset}:sg2")
    assert 50_000 <= config.evaluation.samples_per_class * SIZES[dataset][1] < 51_000


#                     σ    α  |  λ     γ   | UTLO's λ, px | discriminator, path length, channel base
UTLO_SETS = {
    "cifar100_lt": (0.75, 0.99, 0.01, 0.05, 10, 8, "orig", 0, 32768),
    "flowers_lt": (0.1, 0, 0.001, 0.005, 10, 16, "orig", 0, 32768),
    "animal_faces_lt": (0.5, 0, 0.001, 0.05, 1, 8, "resnet", 2, 16384),
}


@pytest.mark.parametrize("dataset", UTLO_SETS)
def test_sets_of_utlo_are_trained_by_the_code_of_content_style(dataset):
    for method in methods_program.config_file(dataset).METHODS:
        run = methods_program.run_config(f"{dataset}:{method}")
        assert (run.batch_size, run.r1.gamma, run.ema.kimg, run.ema.rampup) == (64, 0.01, 500, 0.05)
        assert (run.generator.mapping_layers, run.discriminator.mbstd_group_size, run.style_mixing) == (2, 32, 0)
        assert (run.ada.operations, run.ada.target, run.ada.kimg, run.fake_labels) == ("bgc", 0.6, 500, "empirical")
        assert run.evaluation.settings.protocol.few and run.total_steps == SIZES[dataset][2]
        noise, twins, utlo, content = run.noisytwins, run.noisytwins, run.utlo, run.content_style
        sigma, alpha, weight, gamma, utlo_weight, pixels, architecture, path_length, base = UTLO_SETS[dataset]
        noisy = method in ("noise", "noisytwins", "transitional_noisytwins")
        assert (noise.sigma, noise.alpha) == ((sigma, alpha) if noisy else (0, 0))
        if method in ("noisytwins", "transitional_noisytwins"):
            assert (twins.weight, twins.gamma) == (weight, gamma)
        else:
            assert twins.weight == 0
        assert (utlo.weight, utlo.resolution) == ((utlo_weight, pixels) if method == "utlo" else (0, 8))
        assert content.weight == (0.1 if method == "content_style" else 0)
        assert (run.discriminator.architecture, run.generator.channel_base) == (architecture, base)
        assert (run.path_length.weight, run.path_length.scale(None)) == (path_length, 4 * path_length)


OWN_RECIPE = ("digits_lt:biggan", "digits_lt:icgan", "digits_lt:relativistic", "digits_lt:r3gan")


def test_methods_of_digits_differ_from_the_baseline_in_the_method_only():
    flat = {
        row: flatten(methods_program.run_config(row)) for row in rows("digits_lt") if not row.startswith(OWN_RECIPE)
    }
    baseline = flat["digits_lt:baseline,8"]
    own = ("noisytwins.", "gsr.", "d2dce.", "contrastive.", "simclr.", "transitional.", "utlo.", *CONTENT_STYLE)
    for row, fields in flat.items():
        allowed = (*own, "ada.", "augment.diffaugment") if ":ada," in row else own
        changed = {name for name in fields if fields[name] != baseline[name]} - {"name"}
        assert all(name.startswith(allowed) for name in changed), row
        assert bool(changed) == (row != "digits_lt:baseline,8")


def test_fashion_mnist_is_trained_as_cifar():
    """But for what is said at the top of the file: mirroring, colour, the protocol, and gSR's augmentation."""
    own = ("name", "data.", "augment.", "ada.", "evaluation.")
    for method in ("noisytwins", "noise", "gsr", "utlo", "transitional_noisytwins", "biggan", "biggan_noisytwins"):
        fashion, cifar = (
            flatten(methods_program.run_config(f"{name}:{method}")) for name in ("fashion_mnist_lt", "cifar10_lt")
        )
        assert {field for field in cifar if fashion[field] != cifar[field] and not field.startswith(own)} == set()
        assert fashion["augment.diffaugment"] == "translation,cutout" and not fashion["data.mirror"]


def test_the_cpu_form_of_fashion_mnist_is_smaller_and_its_methods_differ_in_the_method_only():
    """BigGAN's rows have their own recipe; the loss on twins and its noise have weights of this form."""
    methods = methods_program.config_file("fashion_mnist_lt").METHODS
    small = {method: methods_program.run_config(f"fashion_mnist_lt:{method},cpu") for method in methods}
    flat = {method: flatten(run) for method, run in small.items()}
    own = ("noisytwins.", "gsr.", "d2dce.", "contrastive.", "simclr.", "transitional.", "utlo.", *CONTENT_STYLE)
    for method, fields in flat.items():
        large = methods_program.run_config(f"fashion_mnist_lt:{method}")
        assert fields["total_kimg"] == 300 and fields["dtype"] == "float32" and fields["batch_size"] == 32
        assert fields["name"] == f"{large.name}-cpu" and large.losses.keys() == small[method].losses.keys()
        if not method.startswith(("biggan", "relativistic", "r3gan")):
            changed = {name for name in fields if fields[name] != flat["baseline"][name]} - {"name"}
            assert all(name.startswith(own) for name in changed), method


# --- options after the colon ------------------------------------------------------------------------------------------


def test_noisytwins_is_the_default():
    for dataset, (sizes, _, _) in SIZES.items():
        if dataset == "imagenet":  # BigGAN's own
            continue
        config = parse_config(methods_program.config_file(dataset).get_config())
        assert config.name == f"{dataset}-noisytwins" and config.data.resolution == sizes[0]
        assert config.noisytwins.weight > 0 and config.noisytwins.sigma > 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("noisytwins", "inat19-noisytwins"),
        ("128", "inat19_128-noisytwins"),
        ("gsr,64", "inat19-gsr"),
        ("smoke", "inat19-noisytwins-smoke"),
        ("gsr,128,smoke", "inat19_128-gsr-smoke"),
        ("smoke,128,gsr", "inat19_128-gsr-smoke"),
    ],
)
def test_options_come_in_any_order(options, name):
    assert methods_program.run_config(f"inat19:{options}").name == name


@pytest.mark.parametrize(
    ("options", "name"), [("cpu", "noisytwins-cpu"), ("smoke,cpu", "noisytwins-cpu-smoke"), ("cpu,gsr", "gsr-cpu")]
)
def test_a_file_may_have_two_sizes_of_networks(options, name):
    assert methods_program.run_config(f"fashion_mnist_lt:{options}").name == f"fashion_mnist_lt-{name}"


@pytest.mark.parametrize(
    ("size", "data", "resolution", "batch"),
    [("", "petals", 64, 128), ("1010", "petals_1010", 64, 128), ("cpu", "petals_100", 32, 32)],
)
def test_petals_have_three_sizes_whose_methods_differ_in_the_method_only(size, data, resolution, batch):
    runs = [methods_program.run_config(f"petals:{method},{size}".rstrip(",")) for method in ("ada", "noisytwins")]
    for run in runs:
        assert (run.data.name, run.data.resolution, run.batch_size) == (data, resolution, batch)
    ada, twins = map(flatten, runs)
    assert all(name.startswith(("name", "noisytwins.")) for name in ada if ada[name] != twins[name])
    assert runs[1].name == "petals-noisytwins" + f"-{size}" * bool(size)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("digits_lt:noisytwin", "configs/digits_lt.py has no method 'noisytwin'; did you mean 'noisytwins'?"),
        ("inat19:noisytwins,smokee", "configs/inat19.py has no method 'smokee'; did you mean 'smoke'?"),
        ("inat19:noisytwins,12", "configs/inat19.py has no resolution '12'; did you mean '128'?"),
        ("cifar10_lt:64", "configs/cifar10_lt.py has no resolution '64'; did you mean '32'?"),
        ("inat19:noise,noisytwins", "configs/inat19.py takes one method, not both 'noise' and 'noisytwins'."),
        ("inat19:cpu", "configs/inat19.py has no method 'cpu'; "),
        ("fashion_mnist_lt:cpus", "configs/fashion_mnist_lt.py has no method 'cpus'; did you mean 'cpu'?"),
        ("petals:cpu,128", "configs/petals.py has its form for CPUs at 32 px alone: leave the resolution out."),
        ("petals:cpu,1010", "configs/petals.py takes one size, not both 'cpu' and '1010'."),
        ("inat19:64,128", "configs/inat19.py takes one resolution, not both '64' and '128'."),
        ("inat19:simclr", "configs/inat19.py has no method 'simclr'; did you mean "),
    ],
)
def test_mistaken_options_are_one_error_message(row, message):
    with pytest.raises(UserError) as error:
        methods_program.run_config(row)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("dataset", BLOCKS)
def test_what_to_run_for_data_that_are_not_prepared(dataset, tmp_path):
    source = "--source=... " if dataset in NOT_FREE else ""
    with pytest.raises(UserError, match=f"noisytwins_jax.data.prepare {dataset} {source}--data_dir={tmp_path} "):
        load_data(DataConfig(dataset, 64, dir=str(tmp_path)))


# --- two steps -------------------------------------------------------------------------------------------------------


def test_smoke_forms_keep_the_method():
    """What a row switches on stays on, and acts from the first steps."""
    for dataset in SIZES:
        for full, small in zip(rows(dataset), rows(dataset, smoke=True), strict=True):
            full, small = methods_program.run_config(full), methods_program.run_config(small)
            assert small.name == f"{full.name}-smoke" and small.total_steps == 4
            assert small.losses.keys() == full.losses.keys() and small.makes_twins == full.makes_twins
            assert small.noisytwins.sigma == full.noisytwins.sigma and small.style_mixing == full.style_mixing
            assert (small.r1, small.augment) == (full.r1, full.augment)
            assert small.ada.operations == full.ada.operations and small.ada.initial_p == 0.5
            assert small.path_length.weight == full.path_length.weight
            assert small.path_length.start_step == 0 and not any(loss.start_step for loss in small.losses.values())
            assert small.transitional.start_kimg < small.transitional.end_kimg <= small.total_kimg / 2
            assert small.data.options["num_classes"] == SIZES[dataset][1] and small.network == full.network
            assert small.biggan.shared_embedding == full.biggan.shared_embedding
            assert bool(small.spectra.interval) == bool(full.spectra.interval)
            assert bool(small.instances.neighbours) == bool(full.instances.neighbours)


# The terms that each method adds to the losses.
TERMS = {
    "noisytwins": {"loss/generator/noisytwins"},
    "ada_noisytwins": {"loss/generator/noisytwins"},
    "decorrelation": {"loss/generator/noisytwins"},
    "gsr": {"loss/generator/gsr"},
    "biggan_gsr": {"loss/generator/gsr"},
    "biggan_noisytwins": {"loss/generator/noisytwins"},
    "d2dce": {"loss/generator/d2dce", "loss/discriminator/d2dce"},
    "contrastive": {"loss/generator/contrastive", "loss/discriminator/contrastive"},
    "simclr": {"loss/generator/simclr"},
    "transitional": {"loss/generator/transitional", "loss/discriminator/transitional"},
    "transitional_noisytwins": {
        *("loss/generator/transitional", "loss/discriminator/transitional", "loss/generator/noisytwins")
    },
    "utlo": {"loss/generator/utlo", "loss/discriminator/utlo"},
    "content_style": {"loss/generator/content_style"},
    "relativistic": {"loss/discriminator/gradient_penalty"},
    "r3gan": {"loss/discriminator/gradient_penalty"},
}

# StyleGAN2 and BigGAN on four devices, and one row on one; at 8 px, in half the time. `test_two_steps_of_every_row`, slow, has
# the others; R3GAN and IC-GAN also train in test_pairs and test_instance_conditioning.
SOME = (
    "inat19:noisytwins,smoke",
    "cifar10_lt:utlo,smoke",
    "digits_lt:d2dce,smoke",
    "digits_lt:content_style,smoke",
    "digits_lt:biggan_gsr,smoke",
)
SOME_ON_ONE = ("digits_lt:d2dce,smoke",)


def start(devices: int, arguments: Sequence[str]) -> subprocess.Popen:
    """Start `methods_program` in a process of its own."""
    program = Path(methods_program.__file__)
    return subprocess.Popen(
        [sys.executable, program, *arguments],
        env=tiny_run.environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = TIMEOUT) -> dict[str, dict]:
    """What the program found, by row."""
    output, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors
    reports = [json.loads(line) for line in output.splitlines() if line.startswith("{")]  # others are of progress
    return {report["row"]: report for report in reports}


def problems(report: dict, devices: int) -> list[str]:
    """What is wrong with a row's two steps."""
    if "error" in report:
        return [report["error"]]
    dataset, _, options = report["row"].partition(":")
    method, metrics = options.split(",")[0], report["metrics"]
    config = methods_program.run_config(report["row"])
    wanted = {"loss/generator", "loss/discriminator"} | TERMS.get(method, set())
    wanted |= {"loss/r1"} if config.r1.gamma > 0 else set()
    wanted |= {"loss/generator/orthogonal"} if config.orthogonal.weight > 0 else set()
    wanted |= {"loss/path_length"} if config.path_length.weight > 0 else set()
    wanted |= {"loss/discriminator/lecam"} if dataset == "inat19" else set()
    wanted |= {"augment/p"} if config.ada.operations else set()
    terms = {name for name in metrics if name.count("/") == 2 and name.startswith("loss/")}
    found = {
        "devices": report["devices"] != devices,
        "classes": report["classes"] != SIZES[dataset][1],
        "missing": wanted - metrics.keys(),
        "unexpected": terms - wanted,
        "metrics not finite": [name for name, value in metrics.items() if not math.isfinite(value)],
        "state not finite": report["not_finite"],
        "unmoved parameters": report["still"],
    }
    return [f"{name}: {value}" for name, value in found.items() if value]


def disagreements(one: dict, many: dict) -> dict[str, tuple[float, float]]:
    """Numbers of the first step that differ between two reports of a row.

    Not to the last digit: Adam's first update is the sign of the gradient, also of one that is all rounding.
    """
    pairs = {name: (value, many["first"][name]) for name, value in one["first"].items()}
    return {name: pair for name, pair in pairs.items() if not math.isclose(*pair, rel_tol=0.02, abs_tol=0.01)}


@pytest.fixture(scope="module")
def some(computed_once):
    """Reports of the default selection, by number of devices; all programs run at the same time."""

    def take_steps():
        small = "--resolution=8"
        one, *four = start(1, [small, *SOME_ON_ONE]), start(4, [small, *SOME[::2]]), start(4, [small, *SOME[1::2]])
        return {"1": finish(one), "4": {row: x for process in four for row, x in finish(process).items()}}

    return {int(devices): reports for devices, reports in computed_once("two_steps", take_steps).items()}


@pytest.mark.parametrize("row", SOME)
def test_two_steps_on_four_devices(some, row):
    assert not problems(some[4][row], devices=4)


@pytest.mark.parametrize("row", SOME_ON_ONE)
def test_two_steps_on_one_device(some, row):
    assert not problems(some[1][row], devices=1)
    assert not disagreements(some[1][row], some[4][row])


@pytest.mark.slow
def test_two_steps_of_every_row():
    """All data sets × methods × resolutions, but for rows whose smoke forms differ in name and R1's strength only."""
    distinct = {}
    for dataset in SIZES:
        for row in rows(dataset, smoke=True):
            fields = flatten(methods_program.run_config(row)) | {"name": "", "r1.gamma": 0}
            distinct.setdefault(repr(fields), row)
    names = list(distinct.values())
    processes = {devices: start(devices, names) for devices in (1, 4)}
    # Twenty minutes of work on two cores.
    found = {devices: finish(process, 6 * TIMEOUT) for devices, process in processes.items()}
    wrong = {(row, devices): problems(found[devices][row], devices) for devices in found for row in names}
    wrong = {key: value for key, value in wrong.items() if value}
    assert not wrong
    differing = {row: disagreements(found[1][row], found[4][row]) for row in names}
    assert not {row: pairs for row, pairs in differing.items() if pairs}
