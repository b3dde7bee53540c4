"""BigGAN-PyTorch's and StudioGAN's checkpoints: every public list of keys, round trips, golden numbers, errors."""

import re

import jax
import numpy as np
import pytest
from biggan_files import assert_same, empty, listed, small
from biggan_networks import quick_jit
from flax.traverse_util import flatten_dict
from golden_numbers import Golden, assert_close, nhwc
from statedicts import statedict, statedicts

from noisytwins_jax.config import default_config, parse_config
from noisytwins_jax.interop.biggan import state_dict as biggan
from noisytwins_jax.interop.biggan.architecture import find_structure
from noisytwins_jax.interop.biggan.layers import compute_sigma_and_v
from noisytwins_jax.interop.biggan.reading import recognise
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.errors import UserError

LISTS = [
    (name, module)
    for name in statedicts("big")
    if not name.startswith("hf_") and "deep_studiogan" not in name
    for module in ("G", "D")
    if statedict(name)[module]
]
LISTED = [pytest.param(*which, marks=pytest.mark.slow) if re.search("256|512", which[0]) else which for which in LISTS]
# One of each kind; the others differ in their numbers alone.
ROUND_TRIPS = [
    ("bigganpytorch_biggan_128", "G"),
    ("bigganpytorch_biggan_128_mybn", "G"),
    ("bigganpytorch_biggan_128", "D"),
    ("bigganpytorch_biggandeep_128_mybn", "G"),
    ("bigganpytorch_biggandeep_128", "D"),
    ("studiogan_big_resnet_32", "G"),
    ("studiogan_big_resnet_32", "D"),
    ("studiogan_big_resnet_deep_legacy_128", "G"),
    ("studiogan_big_resnet_deep_legacy_128", "D"),
]


def entries(name: str, module: str) -> list:
    return statedict(name)[module]


def variant(name: str) -> str:
    return "mybn" if name.endswith("mybn") else "plain"


@pytest.fixture
def generator() -> dict[str, np.ndarray]:
    return small(entries("bigganpytorch_biggan_64", "G"))


# --- the public lists ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "module"), LISTED)
def test_every_list_is_recognised_to_the_last_key(name, module):
    """Keys, their order, shapes, kinds and dtypes, which come from the architecture that was found."""
    tensors = empty(entries(name, module))
    assert biggan.matches(tensors) == name.split("_")[0]
    naming, architecture, _ = recognise(tensors)
    assert listed(naming, architecture) == entries(name, module)
    options = {key.lower(): x for key, x in statedict(name)["config"].items()}
    fields = architecture.fields()
    assert fields["data.resolution"] == options["resolution"]
    assert fields["network"] == ("biggan_deep" if "deep" in name else "biggan")
    assert architecture.num_classes == options.get("n_classes", options.get("num_classes"))
    assert architecture.channels == 3
    if module == "G":
        assert fields["generator.z_dim"] == options.get("dim_z", options.get("z"))
        assert fields["biggan.generator_width"] == options.get("g_ch", options.get("ch"))
        assert fields["biggan.embedding_dim"] == options.get("shared_dim", options.get("sh"))
        assert fields["biggan.shared_embedding"] and fields["biggan.skip_z"] and not fields["biggan.wide_rgb"]


@pytest.mark.parametrize(("name", "module"), ROUND_TRIPS)
def test_round_trips_are_bitwise(name, module):
    tensors = small(entries(name, module))
    network = biggan.read_biggan(tensors)
    assert_same(biggan.write_biggan(network, name.split("_")[0], variant(name)), tensors)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module"), LISTS)
def test_full_sized_round_trips_are_bitwise(name, module):
    pool, tensors = np.random.default_rng(0).standard_normal(1_000_003).astype(np.float32), {}
    for i, (key, shape, _, dtype) in enumerate(entries(name, module)):
        counts = key.endswith(("accumulation_counter", "num_batches_tracked"))
        tensors[key] = np.full(shape, dtype == "float32", dtype) if counts else np.resize(np.roll(pool, i), shape)
    for key in tensors:
        layer, leaf = key.rpartition(".")[::2]
        if leaf == "sv0":
            tensors[key] = compute_sigma_and_v(tensors[f"{layer}.weight"], tensors[f"{layer}.u0"])[0]
        elif leaf == "weight_v":
            tensors[key] = compute_sigma_and_v(tensors[f"{layer}.weight_orig"], tensors[f"{layer}.weight_u"])[1]
    network = biggan.read_biggan(tensors)
    assert_same(biggan.write_biggan(network, name.split("_")[0], variant(name)), tensors)


def test_derived_tensors_are_singular():
    """σ and v of a weight of rank one, where one u is as good as many iterations."""
    rng = np.random.default_rng(0)
    u, v = (x / np.linalg.norm(x) for x in (rng.standard_normal(6), rng.standard_normal(18)))
    sigma, found = compute_sigma_and_v((2.5 * np.outer(u, v)).reshape(6, 2, 3, 3), u[None])
    np.testing.assert_allclose(sigma, [2.5], rtol=1e-6)
    np.testing.assert_allclose(found, v, atol=1e-6)


# --- golden numbers --------------------------------------------------------------------------------------------------


def build(network: biggan.ConvertedNetwork):
    """Build the network as a run has it, from the fields."""
    config = default_config()
    config.path_length.weight, config.style_mixing, config.discriminator.mbstd_group_size = 0.0, 0.0, 1  # StyleGAN2's
    config.update_from_flattened_dict(network.fields)
    model = build_model(parse_config(config), network.channels, network.num_classes)
    return getattr(model, network.role)


@pytest.mark.parametrize("name", ["biggan_32", pytest.param("biggandeep_32", marks=pytest.mark.slow)])
def test_networks_give_the_golden_images_and_logits(name):
    golden = Golden(name)
    with_u = {"update_stats": True, "mutable": ["spectral", "batch_stats"]}  # the reference iterates at every call
    network = biggan.read_biggan(golden.weights("G"))
    run = quick_jit(lambda v: build(network).apply(v, golden["in/z"], golden["in/labels"], **with_u)[0])
    assert_close(run(network.variables), nhwc(golden["out/img_eval"]), 1e-5)

    network = biggan.read_biggan(golden.weights("D"))
    run = quick_jit(
        lambda v: build(network).apply(v, nhwc(golden["in/real_images"]), golden["in/labels"], **with_u)[0].logits
    )
    assert_close(run(network.variables)[:, None], golden["out/d_logits_real_eval"], 1e-5)


# --- from one naming into another ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "mybn", "cross_replica"])
def test_all_namings_have_the_same_network(generator, variant):
    network = biggan.read_biggan(generator)
    for written in (
        biggan.write_biggan(network, "bigganpytorch", variant),
        biggan.write_biggan(network, "studiogan"),
    ):
        again = biggan.read_biggan(written)
        jax.tree.map(np.testing.assert_array_equal, again.variables, network.variables)
        epsilons = re.compile(".*epsilon")
        own = [{k: x for k, x in n.fields.items() if not epsilons.match(k)} for n in (again, network)]
        assert own[0] == own[1]


def test_statistics_are_divided_by_the_counter():
    tensors = small(entries("bigganpytorch_biggan_128_mybn", "G"))
    expected = biggan.read_biggan(tensors).variables["batch_stats"]
    for counter, factor in ((8, 8), (0, 1)):  # 0: running averages, not sums
        changed = {
            key: np.float32([counter]) if key.endswith("counter") else x * factor if ".stored_" in key else x
            for key, x in tensors.items()
        }
        jax.tree.map(np.testing.assert_array_equal, biggan.read_biggan(changed).variables["batch_stats"], expected)


def test_options_that_names_and_shapes_tell(generator):
    plain = {key: x for key, x in generator.items() if not key.endswith(("u0", "sv0"))}
    network = biggan.read_biggan(plain)
    assert network.fields["biggan.spectral_norm"] is False and "spectral" not in network.variables
    assert_same(biggan.write_biggan(network, "bigganpytorch"), plain)
    embedding = generator["shared.weight"].shape[1]
    no_skip = {key: x[:, :embedding] if re.search(r"\.(gain|bias)\.weight", key) else x for key, x in generator.items()}
    fields = biggan.read_biggan(no_skip).fields
    assert not fields["biggan.skip_z"] and fields["generator.z_dim"] == generator["linear.weight"].shape[1]
    tables = {}
    for key, x in plain.items():
        if key != "shared.weight":
            tables[key] = np.ones((7, len(x)), np.float32) if re.search(r"\.(gain|bias)\.weight", key) else x
    network = biggan.read_biggan(tables)
    assert not network.fields["biggan.shared_embedding"] and network.num_classes == 7
    assert_same(biggan.write_biggan(network, "bigganpytorch"), tables)


# --- optimisers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "module"), ROUND_TRIPS[::2])
def test_parameters_are_in_the_order_of_pytorch(name, module):
    naming = name.split("_")[0]
    tensors = small(entries(name, module))
    network = biggan.read_biggan(tensors)
    keys = [key for key, _, kind, _ in entries(name, module) if kind == "param"]
    moments = {key: np.square(tensors[key]) for key in keys}
    params = biggan.read_parameters(moments, network, naming)
    jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(np.square, network.variables["params"]))
    assert_same(biggan.write_parameters(params, network, naming), moments)


# --- errors ----------------------------------------------------------------------------------------------------------


def changed(tensors: dict, **changes) -> dict:
    """Without a tensor whose new value is None."""
    new = tensors | {key.replace("__", "."): x for key, x in changes.items()}
    return {key: x for key, x in new.items() if x is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear__bias": None}, "no 'linear.bias'"),
        ({"shared__weight": np.zeros(5, np.float32)}, "shared.weight is .5."),
        ({"blocks__1__0__conv2__bias": np.zeros(5, np.float32)}, "blocks.1.0.conv2.bias is .5."),
        ({"blocks__1__0__bn1__stored_mean": None}, "no 'blocks.1.0.bn1.stored_mean'"),
        ({"extra__weight": np.zeros(5, np.float32)}, "has 'extra.weight'"),
        ({"blocks__0__1__gamma": np.zeros((), np.float32)}, "no 'blocks.0.1.theta.weight'"),
        ({"blocks__4__0__conv1__weight": np.zeros((8, 8, 3, 3), np.float32)}, "no 'blocks.4.0.conv2.weight'"),
    ],
)
def test_the_first_difference_is_named(generator, changes, message):
    with pytest.raises(UserError, match=message):
        biggan.read_biggan(changed(generator, **changes))


def test_other_architectures_are_refused(generator):
    for module in ("G", "D"):
        with pytest.raises(UserError, match="big_resnet_deep_studiogan"):
            biggan.read_biggan(empty(entries("studiogan_big_resnet_deep_studiogan_128", module)))
    narrow = changed(generator, blocks__0__0__conv2__weight=generator["blocks.0.0.conv2.weight"][:64])
    with pytest.raises(UserError, match=r"blocks have 64,64,32,16 channels, where .* have 16,8,4,2 times"):
        biggan.read_biggan(narrow)
    with pytest.raises(UserError, match="attention after block 0, where BigGAN-deep's generator of 128 px"):
        find_structure("generator", deep=True, count=10, attended={0})
    with pytest.raises(UserError, match="has 9 blocks, which BigGAN's generator has at no resolution"):
        find_structure("generator", deep=False, count=9, attended=set())
    with pytest.raises(UserError, match=r"'encoder\.weight', which is in no BigGAN"):
        biggan.read_biggan({"encoder.weight": np.zeros(3)})
    assert biggan.matches(["synthesis.b4.const", "linear1.weight"]) is None


def test_what_a_naming_cannot_express_is_refused(generator):
    network = biggan.read_biggan(generator)
    with pytest.raises(UserError, match="is not BigGAN-deep"):
        biggan.write_biggan(network, "huggingface")
    with pytest.raises(UserError, match="not 'tfhub'"):
        biggan.write_biggan(network, "tfhub")
    with pytest.raises(UserError, match="no variant 'own'"):
        biggan.write_biggan(network, "bigganpytorch", "own")
    network.variables["params"]["instance"] = {"weight": np.zeros((3, 4)), "bias": np.zeros(4)}
    with pytest.raises(UserError, match="conditioned on instances"):
        biggan.write_biggan(network, "bigganpytorch")
    del network.variables["params"]["instance"]
    paths = flatten_dict(network.variables)
    assert ("params", "linear", "bias") in paths
    del network.variables["params"]["linear"]["bias"]
    with pytest.raises(UserError, match="params/linear/bias is missing"):
        biggan.write_biggan(network, "bigganpytorch")
