"""Runs that start from the networks of another run: what is taken, class rows, frozen layers, and the command."""

import json

import jax
import numpy as np
import pytest
import tiny_biggan
import tiny_run
from flax.traverse_util import flatten_dict

from noisytwins_jax.config import flatten, parse_flat
from noisytwins_jax.models.image_side import convolutions_from_image
from noisytwins_jax.train import train_to_end
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.finetuning.start import check_source, start_from_source
from noisytwins_jax.training.finetuning.transfer import ClassRows, match_classes, transfer
from noisytwins_jax.training.restore import restore_state
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.workdir import read_config, write_classes, write_config
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

pytestmark = pytest.mark.usefixtures("fast_compilation")

EMBED, CONV, FC0 = (
    ("params", "mapping", "embed", "weight"),
    ("params", "b8", "conv"),
    ("params", "mapping", "fc0", "weight"),
)


def rows(indices, gain=1.0, noise=0.0):
    return ClassRows(tuple(indices), gain, noise, seed=0)


# --- class rows -------------------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name_by_number_or_not():
    source, classes = ("cat", "Dog", "emu"), ("dog", "fox", "cat", "gnu")
    assert match_classes(source, classes, "name") == (1, -1, 0, -1)
    assert match_classes(source, classes, "index") == (0, 1, 2, -1)
    assert match_classes(source, classes, "mean") == (-1, -1, -1, -1)


def test_known_classes_keep_their_rows_and_others_start_at_the_mean():
    table = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    built = rows([2, -1, 0]).build(table, EMBED)
    np.testing.assert_array_equal(built, np.stack([table[2], table.mean(0), table[0]]))
    assert built.dtype == np.float32


def test_rows_from_the_mean_have_noise_in_units_of_the_rows_deviation():
    rng = np.random.default_rng(0)
    table = (rng.standard_normal((50, 2000)) * np.linspace(0.1, 5, 2000)).astype(np.float32)
    built = rows([-1] * 40, noise=0.5).build(table, EMBED)
    ratio = (built - table.mean(0)).std(0) / table.std(0)
    assert abs(ratio.mean() - 0.5) < 0.01
    np.testing.assert_array_equal(built, rows([-1] * 40, noise=0.5).build(table, EMBED))
    assert np.abs(built - rows([-1] * 40, noise=0.5).build(table, FC0)).max() > 0  # another table, other noise


def test_stylegan2s_rows_grow_with_the_number_of_classes():
    """The network divides by √classes: a class embedding that is taken over must not change."""
    table = np.eye(4, dtype=np.float32)
    built = rows([0, 1, 2, 3] + [-1] * 12, gain=2.0).build(table, EMBED)
    np.testing.assert_allclose(built[:4] / np.sqrt(16), table / np.sqrt(4))


# --- variables --------------------------------------------------------------------------------------------------------


def test_what_has_the_same_name_and_shape_is_copied():
    shapes = {EMBED: (3, 4), CONV: (2, 2), ("params", "output"): (5,), ("params", "new"): (1,)}
    source = {
        EMBED: np.ones((2, 4)),
        CONV: np.full((2, 2), 7.0),
        ("params", "output"): np.ones(1),
        ("params", "old"): np.ones(3),
    }
    found = transfer(shapes, source, {EMBED}, rows([0, 1, -1]))
    assert (found.copied, found.tables, found.left) == ([CONV], [EMBED], [("params", "old")])
    assert found.fresh == [("params", "output"), ("params", "new")] and found.values.keys() == {CONV, EMBED}
    assert found.values[EMBED].shape == (3, 4)


@pytest.mark.parametrize(("before", "after"), [(4, 8), (8, 4)], ids=["gains classes", "loses classes"])
def test_the_first_layer_keeps_its_effect_of_z(before, after):
    """StyleGAN2's first layer divides by the root of its inputs; class inputs that are new have no effect at first."""
    rng = np.random.default_rng(0)
    weight, z = rng.standard_normal((before, 3)), rng.standard_normal(4)
    found = transfer({FC0: (after, 3)}, {FC0: weight}, set(), rows([]))
    assert found.widened == [FC0]
    inputs = np.concatenate([z, rng.standard_normal(4)])[:after]
    np.testing.assert_allclose(inputs @ found.values[FC0] / np.sqrt(after), z @ weight[:4] / np.sqrt(before), rtol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(8, 16), (16, 8)], ids=["higher", "lower"])
@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_another_resolution_takes_the_blocks_that_both_have(before, after, architecture):
    fields = {"generator.architecture": architecture, "discriminator.architecture": architecture}

    def networks(resolution):
        model = build_model(tiny_run.tiny_config(**fields | {"data.resolution": resolution}), 3, 4)
        return [flatten_dict(x, sep="/") for x in jax.eval_shape(model.init, jax.random.key(0))]

    for source, target in zip(networks(before), networks(after), strict=True):
        given = {tuple(path.split("/")): np.ones(x.shape, np.float32) for path, x in source.items()}
        found = transfer({tuple(path.split("/")): x.shape for path, x in target.items()}, given, set(), rows([]))
        assert not found.widened
        ends = ("torgb", "fromrgb")  # of images, at the highest resolution alone in some architectures
        fresh = {"/".join(path) for path in found.fresh if not any(end in path for end in ends)}
        assert all("b16" in path for path in fresh) and bool(fresh) == (after > before)
        assert {"b4", "mapping"} <= {name for path in found.copied for name in path}


# --- FreezeD ----------------------------------------------------------------------------------------------------------


def discriminator_of(config):
    return jax.eval_shape(build_model(config, 3, 4).init, jax.random.key(0))[1]["params"]


def test_convolutions_are_in_the_order_of_the_image():
    """As StyleGAN2-ADA counts them: fromrgb, conv0, conv1, skip; then conv0, conv1, skip of every block but the last."""
    config = tiny_run.tiny_config(**{"data.resolution": 16, "discriminator.architecture": "resnet"})
    names = ["/".join(path) for path in convolutions_from_image(discriminator_of(config))]
    assert names == [
        *(f"b16/{x}" for x in ("fromrgb", "conv0", "conv1", "skip")),
        *(f"b8/{x}" for x in ("conv0", "conv1", "skip")),
    ]


def test_convolutions_of_biggan_are_in_the_order_of_the_image():
    found = convolutions_from_image(discriminator_of(tiny_biggan.tiny_config()))
    assert ["/".join(path) for path in found][:5] == [
        *("blocks_0/conv1", "blocks_0/conv2", "blocks_0/conv_sc"),
        *("blocks_1/conv1", "blocks_1/conv2"),
    ]
    blocks = [int(path[0].removeprefix("blocks_")) for path in found]
    assert blocks == sorted(blocks)


# --- the command ------------------------------------------------------------------------------------------------------
CLASSES = ("a", "b", "c", "d")


@pytest.fixture(scope="module", params=["stylegan2", "biggan"])
def source(request, tmp_path_factory):
    """Return the configuration's maker, and the workdir of a run of four classes whose numbers all differ."""
    make = {"stylegan2": tiny_run.tiny_config, "biggan": tiny_biggan.tiny_config}[request.param]
    workdir = tmp_path_factory.mktemp(request.param) / "source"
    write_run(workdir, make(**SHORT), CLASSES)
    return make, workdir


SHORT = {"total_kimg": 0.016, "checkpoint_interval_kimg": 1.0, "noisytwins.start_step": 0}


def write_run(workdir, config, names):
    rng = np.random.default_rng(0)
    step = TrainingStep(config, build_model(config, 1, len(names)))
    state = jax.device_get(jax.jit(step.init, static_argnums=0)(3).replace(key=None))
    moved = lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype) if x.dtype == np.float32 else x  # noqa: E731
    state = jax.tree.map(lambda x: np.abs(moved(x)) if (x >= 0).all() else moved(x), jax.tree.map(np.asarray, state))
    workdir.mkdir(parents=True)
    write_config(workdir, config)
    write_classes(workdir, 1, names)
    with Checkpoints(workdir, writable=True) as checkpoints:
        checkpoints.save(7, state.replace(key=jax.random.key(3)), {"next_index": 7}, flatten(config), wait=True)


def started(config, names, workdir):
    """The state that a run starts with: random, and after the transfer."""
    workdir.mkdir(exist_ok=True)
    step = TrainingStep(config, build_model(config, 1, len(names)))
    state = jax.jit(step.init, static_argnums=0)(config.seed)
    return state, start_from_source(config, state, names, workdir)


def check(config):
    check_source(config, TrainingStep(config, build_model(config, 1, len(CLASSES))).abstract_state(Layout().replicated))


def variables_of(state):
    parts = {"generator": state.generator.variables, "discriminator": state.discriminator.variables, "ema": state.ema}
    return {path: np.asarray(x) for path, x in flatten_dict(parts, sep="/").items()}


def stored(workdir):
    config = parse_flat(read_config(workdir))
    model = build_model(config, 1, len(CLASSES))
    return variables_of(restore_state(config, workdir, "latest", model)[1])


def test_a_run_starts_from_another_with_other_classes(source, tmp_path, capsys):
    make, workdir = source
    options = {"num_classes": 6, "num_images": 100, "channels": 1}
    config = make(**SHORT | {"finetune.init_from": str(workdir), "finetune.class_noise": 0.0, "data.options": options})
    before, after = started(config, ("x", "d", "a", "y", "b", "z"), tmp_path / "run")
    given, found = stored(workdir), variables_of(after)
    gain = np.sqrt(6 / 4) if make is tiny_run.tiny_config else 1.0
    tables = [path for path in found if found[path].shape != given[path].shape and "/params/" in path]
    assert len(tables) == 3  # of both generators and the discriminator
    for path in tables:
        want = [
            given[path].mean(0),
            given[path][3],
            given[path][0],
            given[path].mean(0),
            given[path][1],
            given[path].mean(0),
        ]
        np.testing.assert_allclose(found[path], gain * np.stack(want), rtol=1e-5)
    for path in found:
        if found[path].shape == given[path].shape:
            np.testing.assert_array_equal(found[path], given[path], err_msg=path)
    for part in ("generator", "discriminator"):  # Adam and the counters are new
        old, new = getattr(before, part), getattr(after, part)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(old.opt_state), jax.device_get(new.opt_state))
        assert int(new.updates) == 0
    assert float(after.ada.p) == config.ada.initial_p
    text = (tmp_path / "run" / "init_from.txt").read_text()
    assert (
        "3 of 6 classes start from their own rows, 3 from the mean of all plus noise; 1 of the source's are left."
        in text
    )
    assert f"Starting from step 7 of {workdir}:" in capsys.readouterr().out and "class rows" in text


def test_another_width_and_another_family_are_refused(source, tmp_path):
    make, workdir = source
    field = "generator.channel_max" if make is tiny_run.tiny_config else "biggan.generator_width"
    value = 4 if make is tiny_run.tiny_config else 12
    old = flatten(make())[field]
    with pytest.raises(UserError, match=rf"is of another width: .*take its settings: --config.{field}={old}\.$"):
        check(make(**SHORT | {"finetune.init_from": str(workdir), field: value}))
    other = tiny_biggan.tiny_config if make is tiny_run.tiny_config else tiny_run.tiny_config
    with pytest.raises(UserError, match=r"nothing in common; give a run of"):
        check(other(**{"finetune.init_from": str(workdir)}))


def test_a_source_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        check(tiny_run.tiny_config(**{"finetune.init_from": str(tmp_path)}))
    (tmp_path / "network.pkl").touch()
    with pytest.raises(UserError, match=r"make a run of them first: .*convert from-torch"):
        check(tiny_run.tiny_config(**{"finetune.init_from": str(tmp_path)}))


def test_training_from_a_source_leaves_frozen_layers_as_they_are(source, tmp_path):
    make, workdir = source
    fields = SHORT | {"finetune.init_from": str(workdir), "finetune.freeze_discriminator": 2}
    end = variables_of(train_to_end(make(**fields), tmp_path / "run").state)
    given = stored(workdir)
    kernels = [
        path
        for path in end
        if path.startswith("discriminator/params") and path.endswith("weight") and end[path].ndim == 4
    ]
    first = ["/".join(path) for path in convolutions_from_image(discriminator_of(make(**fields)))][:2]
    kept = [path for path in kernels if np.array_equal(end[path], given[path])]
    assert sorted(kept) == sorted(f"discriminator/params/{name}/weight" for name in first)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["finetune.init_from"] == str(workdir)
    with pytest.raises(UserError, match="convolutions before its last block"):
        train_to_end(make(**fields | {"finetune.freeze_discriminator": 99}), tmp_path / "other")
