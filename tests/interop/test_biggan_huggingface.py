"""BigGAN-deep of Hugging Face and the variables of TF-Hub: names, statistics for many truncations, golden images."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from biggan_files import assert_same, empty, listed, small
from biggan_networks import quick_jit
from golden_numbers import Golden, assert_close, nhwc
from statedicts import statedict

from noisytwins_jax.interop.biggan import architecture as biggan_architecture
from noisytwins_jax.interop.biggan import state_dict as biggan
from noisytwins_jax.interop.biggan.reading import recognise
from noisytwins_jax.interop.biggan.statistics import StatisticsGrid
from noisytwins_jax.interop.layouts import pixels_first
from noisytwins_jax.models.biggan import Generator, generator
from noisytwins_jax.models.biggan.architectures import Block
from noisytwins_jax.utils.errors import UserError

LIST = "hf_bigganpretrained_deep_128"
SIZES = [r if r == 128 else pytest.param(r, marks=pytest.mark.slow) for r in (128, 256, 512)]


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return small(statedict(LIST)["state_dict"])


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", SIZES)
def test_every_list_is_recognised_to_the_last_key(resolution):
    entries = statedict(f"hf_bigganpretrained_deep_{resolution}")["state_dict"]
    assert biggan.matches(empty(entries)) == "huggingface"
    naming, architecture, _ = recognise(empty(entries))
    assert listed(naming, architecture) == entries
    fields = architecture.fields()
    assert (fields["network"], fields["data.resolution"], fields["biggan.attention"]) == ("biggan_deep", resolution, "")
    assert fields["biggan.wide_rgb"] and fields["biggan.skip_z"]
    assert (fields["generator.z_dim"], fields["biggan.embedding_dim"], architecture.num_classes) == (128, 128, 1000)


def test_round_trip_is_bitwise(tensors):
    network, grid = biggan.read_biggan(tensors), biggan.read_statistics(tensors)
    assert_same(biggan.write_biggan(network, "huggingface", statistics=grid), tensors)


def test_one_set_of_statistics_is_repeated(tensors):
    network = biggan.read_biggan(tensors)
    written = biggan.write_biggan(network, "huggingface")
    for key in ("generator.bn.running_means", "generator.layers.9.bn_2.running_vars"):
        np.testing.assert_array_equal(written[key], np.tile(tensors[key][-1], (51, 1)))
    jax.tree.map(np.testing.assert_array_equal, biggan.read_biggan(written).variables, network.variables)


def test_objections(tensors):
    with pytest.raises(UserError, match="gen_z"):
        biggan.read_biggan({key: x for key, x in tensors.items() if key != "generator.gen_z.bias"})
    with pytest.raises(UserError, match=r"5 rows of generator.layers.3.bn_1.running_vars but 51"):
        biggan.read_biggan(tensors | {"generator.layers.3.bn_1.running_vars": np.ones((5, 32), np.float32)})
    network = biggan.read_biggan(tensors)
    last = network.variables["params"]["output_conv"]
    narrow = {"weight": last["weight"][..., :3], "bias": last["bias"][:3]}
    params = network.variables["params"] | {"output_conv": narrow}
    spectral = network.variables["spectral"] | {"output_conv": {"u": np.ones(3, np.float32)}}
    network = dataclasses.replace(network, variables=network.variables | {"params": params, "spectral": spectral})
    with pytest.raises(UserError, match="no last convolution as wide"):
        biggan.write_biggan(network, "huggingface")
    with pytest.raises(UserError, match="statistics for one truncation"):
        biggan.read_statistics(small(statedict("bigganpytorch_biggan_32")["D"]))


# --- BatchNorm statistics --------------------------------------------------------------------------------------------


def as_published(truncation: float) -> float:
    """Return the truncation whose statistics Hugging Face's code uses: it exchanges the weights of two rows."""
    share, lower = math.modf(truncation / (1.0 / 50))
    return (lower + (1 - share if share else 0.0)) / 50


def grid_of_rows() -> StatisticsGrid:
    """Build a grid whose means are the number of the row, and variances twice that."""
    rows = np.arange(51, dtype=np.float32)[:, None]
    return StatisticsGrid(np.linspace(0, 1, 51), {"output_bn": rows}, {"output_bn": 2 * rows})


@pytest.mark.parametrize("published", [False, True])
def test_rows_of_the_published_truncations(published):
    """The published code takes a neighbour for five of them, as an execution of it showed."""
    beside = {7: 8, 14: 15, 28: 29, 29: 28, 47: 46} if published else {}
    for i in range(51):
        statistics = grid_of_rows().at(as_published(i / 50) if published else i / 50)["output_bn"]
        np.testing.assert_allclose(statistics["mean"], [beside.get(i, i)], atol=1e-6)
        np.testing.assert_allclose(statistics["var"], [2 * beside.get(i, i)], atol=1e-6)
        assert statistics["mean"].dtype == np.float32


def test_statistics_between_two_rows():
    np.testing.assert_allclose(grid_of_rows().at(0.405)["output_bn"]["mean"], [20.25], rtol=1e-6)
    np.testing.assert_allclose(grid_of_rows().at(as_published(0.405))["output_bn"]["mean"], [20.75], rtol=1e-6)
    for truncation in (-0.1, 1.01, float("nan")):
        with pytest.raises(UserError, match="no BatchNorm statistics"):
            grid_of_rows().at(truncation)


# --- golden numbers --------------------------------------------------------------------------------------------------


@pytest.fixture
def golden(monkeypatch) -> Golden:
    """The golden network has seven blocks, which are in no table of ours: it has its own here, in the place of 64 px's."""
    golden = Golden("biggandeep_hf_64")

    def blocks(resolution: int, deep: bool, attention: bool | tuple[int, ...]) -> tuple[Block, ...]:
        found, size = [], 4
        for i, (up, before, after) in enumerate(golden.config["layers"] if resolution == 64 else ()):
            size *= 1 + up
            attended = attention is True and i == golden.config["attention_layer_position"] - 1
            found.append(Block(before, after, up, size, attended))
        return tuple(found)

    for module in (generator, biggan_architecture):
        monkeypatch.setattr(module, "generator_blocks", blocks)
    biggan_architecture._get_shapes.cache_clear()
    yield golden
    biggan_architecture._get_shapes.cache_clear()


def weights(golden: Golden) -> dict[str, np.ndarray]:
    """Without right singular vectors, whose recipe is what we compute."""
    entries = golden.info["weights"]["model"]["entries"]
    golden.info["weights"]["model"]["entries"] = [entry for entry in entries if entry[2] != "sn_v"]
    return golden.weights("model")


def test_networks_give_the_golden_images(golden):
    state = weights(golden)
    network, grid = biggan.read_biggan(state), biggan.read_statistics(state)
    fields = network.fields
    assert fields["biggan.wide_rgb"] and fields["data.resolution"] == 64 and network.channels == 3
    module = Generator(
        resolution=64,
        num_classes=network.num_classes,
        z_dim=fields["generator.z_dim"],
        width=fields["biggan.generator_width"],
        deep=True,
        embedding_dim=fields["biggan.embedding_dim"],
        wide_rgb=True,
        bn_epsilon=fields["biggan.batch_norm_epsilon"],
        sn_epsilon=fields["biggan.spectral_norm_epsilon"],
    )
    run = quick_jit(lambda variables: module.apply(variables, golden["in/z"], golden["in/labels"]))
    for truncation, published, name in (
        (0.4, True, "hf/t0.4"),
        (0.4, False, "hf/t0.4"),
        (0.405, True, "hf/t0.405"),
        (0.405, False, "correct/t0.405"),
        (0.14, True, "hf/t0.14"),
        (0.14, False, "correct/t0.14"),
        (1.0, True, "hf/t1"),
        (1.0, False, "hf/t1"),
    ):
        statistics = grid.at(as_published(truncation) if published else truncation)
        images = run(network.variables | {"batch_stats": statistics})
        assert_close(images, nhwc(golden[f"out/img_{name}"]), 1e-5)
    assert_close(run(network.variables), nhwc(golden["out/img_hf/t1"]), 1e-5)


# --- TF-Hub ----------------------------------------------------------------------------------------------------------


def turned(x: np.ndarray) -> np.ndarray:
    """A weight of PyTorch in TensorFlow's layout, a vector as [1, C]."""
    return {1: lambda v: v[None], 2: np.transpose, 4: lambda w: w.transpose(2, 3, 1, 0)}[x.ndim](x)


def test_variables_of_tfhub_are_those_of_huggingface(tensors):
    """By the published table of names; statistics as sums, rows for truncations."""
    variables = {}
    for name, key in statedict(LIST)["tfhub_variable_to_key"].items():
        variables[f"module/{name}"] = turned(tensors[key]) if "gamma" not in key else tensors[key]
        if "/ema_" in name:
            variables["module/" + re.sub("/ema_.*", "", name)] = np.zeros_like(variables[f"module/{name}"])
    for name in [name for name in variables if re.search(r"BatchNorm(_\d)?/scale/", name)]:
        layer = name[: name.index("/scale/")]
        match = re.match(r"module/Generator/(?:GBlock(?:_(\d+))?/)?BatchNorm(?:_(\d))?/", name)
        block = int(match[1] or 0)
        theirs = "generator.bn"
        if "GBlock" in name:
            theirs = f"generator.layers.{block + (block >= 8)}.bn_{match[2] or 0}"
        for ours, leaf in (("mean", "means"), ("var", "vars")):
            variables[f"{layer}/accumulated_{ours}:0"] = 4 * tensors[f"{theirs}.running_{leaf}"]
        variables[f"{layer}/accumulation_counter"] = np.float32(4)
    assert biggan.matches(variables) == "tfhub"
    found, expected = biggan.read_biggan(variables), biggan.read_biggan(tensors)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    assert found.fields == expected.fields
    grids = [biggan.read_statistics(x).at(0.33) for x in (variables, tensors)]
    jax.tree.map(np.testing.assert_array_equal, *grids)


def test_variables_of_the_shallow_tfhub_networks():
    """As BigGAN-PyTorch has them, but for the order of the condition and of the first layer's outputs."""
    state = small(statedict("bigganpytorch_biggan_128")["G"])
    embedding = state["shared.weight"].shape[1]
    variables = {"module/linear/w": state.pop("shared.weight")}
    for key, x in state.items():
        name, leaf = key.rpartition(".")[::2]
        name = re.sub(r"^blocks\.3\.1", "attention", name)
        name = re.sub(r"^blocks\.(\d+)\.0", lambda m: f"GBlock_{m[1]}".removesuffix("_0"), name)
        for theirs, tf in (("bn1", "HyperBN"), ("bn2", "HyperBN_1"), ("conv1", "conv0"), ("conv2", "conv1")):
            name = name.replace(f".{theirs}", f".{tf}")
        name = name.replace("output_layer.0", "ScaledCrossReplicaBN").replace("output_layer.2", "conv_2d")
        name = re.sub("^linear", "G_Z/G_linear", name).replace("attention.o", "attention.o_conv")
        name = re.sub(r"\.gain$", ".gamma", re.sub(r"\.bias$", ".beta", name))
        if name == "G_Z/G_linear" and leaf != "sv0":
            x = pixels_first(x.T).T if leaf == "u0" else pixels_first(x)
        if "HyperBN" in name and leaf == "weight":
            x = np.concatenate([x[:, embedding:], x[:, :embedding]], axis=1)
        if leaf.startswith("stored"):
            name = name.replace("HyperBN", "CrossReplicaBN").replace("ScaledCrossReplicaBN", "ScaledCrossReplicaBNbn")
            variables[f"module/Generator/{name}/accumulation_counter".replace(".", "/")] = np.float32([2])
            leaf, x = leaf.replace("stored", "accumulated"), 2 * x[None, None, None]
        elif name == "ScaledCrossReplicaBN":
            leaf = {"gain": "gamma/ema_b999900", "bias": "beta/ema_b999900"}[leaf]
        elif leaf in ("weight", "bias"):
            x, leaf = (turned(x) if leaf == "weight" else x), f"{leaf[0]}/ema_b999900"
        elif leaf == "gamma":
            leaf = "gamma/ema_b999900"
        if leaf != "sv0":
            variables[f"module/Generator/{name}/{leaf}".replace(".", "/")] = x
    state = small(statedict("bigganpytorch_biggan_128")["G"])
    found, expected = biggan.read_biggan(variables), biggan.read_biggan(state)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    broken = variables | {"module/Generator/ScaledCrossReplicaBNbn/accumulation_counter": np.zeros(1)}
    with pytest.raises(UserError, match="accumulation_counter is 0, so no BatchNorm statistics"):
        biggan.read_biggan(broken)
