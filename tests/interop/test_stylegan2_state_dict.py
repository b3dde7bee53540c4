"""Public StyleGAN2 state dicts: every published list of keys, our own networks, and the golden numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden_numbers import Golden, assert_close, nhwc
from statedicts import statedict, statedicts
from stylegan2_state import variables

from noisytwins_jax.config import default_config, parse_config
from noisytwins_jax.interop.converted_network import ConvertedNetwork
from noisytwins_jax.interop.stylegan2.state_dict import matches, read_stylegan2, write_parameters, write_stylegan2
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.errors import UserError

HEADS = "noisytwins_stylegan2_d_heads"
LISTS = [name for name in statedicts("stylegan2") if name != HEADS]
FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64


def naming_of(name):
    return "nvidia" if name.startswith("nvidia") else "studiogan"


def tensors_of(entries):
    """Build a state dict in which all numbers of a tensor differ, and so do most tensors of one shape."""
    return {
        key: FIR if key.endswith("resample_filter") else numbered(shape, i)
        for i, (key, shape, *_) in enumerate(entries)
    }


def numbered(shape, i):
    return (np.arange(np.prod(shape, dtype=int), dtype=np.float32) + i).reshape(shape)


def assert_same_bits(actual, expected):
    """Check keys in their order, shapes, dtypes and bits."""
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert (actual[key].shape, actual[key].dtype) == (value.shape, np.float32), key
        assert actual[key].tobytes() == value.tobytes(), key


def model_of(fields, channels, num_classes):
    config = default_config()
    config.update_from_flattened_dict(fields)
    return build_model(parse_config(config), channels, num_classes)


@functools.cache
def shapes_of(model):
    """Return the shapes of the variables of both networks, by path."""
    trees = jax.eval_shape(model.init, jax.random.key(0))
    return [{path: x.shape for path, x in flatten_dict(tree).items()} for tree in trees]


@pytest.mark.parametrize("name", LISTS)
def test_every_published_list(name):
    public = statedict(name)
    networks = {}
    for module, role in (("G", "generator"), ("D", "discriminator")):
        expected = tensors_of(public[module])
        assert matches(expected)
        network = networks[module] = read_stylegan2(expected)
        assert (network.role, network.channels) == (role, 3)
        assert network.num_classes == public["config"]["ncls"]
        kinds = {key: kind for key, _, kind, _ in public[module]}
        order = list(write_parameters(network.variables["params"], network, naming_of(name)))
        assert order == [key for key, kind in kinds.items() if kind == "param"]
        assert order == public.get(f"{module}_optimizer_param_order", order)
        sizes = sum(x.size for x in jax.tree.leaves(network.variables["params"]))
        assert sizes == public["num_params"][module]
        assert_same_bits(write_stylegan2(network, naming_of(name)), expected)
    fields = networks["G"].fields | networks["D"].fields
    facts = {"data.resolution": "res", "generator.mapping_layers": "maplayers", "discriminator.architecture": "arch"}
    assert {field: fields[field] for field in facts} == {field: public["config"][key] for field, key in facts.items()}
    # The public rule with its own base gives the same channels.
    for role in ("generator", "discriminator"):
        for r in 2 ** np.arange(2, int(np.log2(public["config"]["res"])) + 1):
            channels = min(fields[f"{role}.channel_base"] // r, fields[f"{role}.channel_max"])
            assert channels == min(public["config"]["cb"] // r, 512)


SMALL = {"data.resolution": 16, "generator.z_dim": 6, "generator.w_dim": 5, "generator.mapping_layers": 3}
SMALL |= {"generator.channel_base": 64, "generator.channel_max": 8}
SMALL |= {"discriminator.channel_base": 128, "discriminator.channel_max": 16, "discriminator.mapping_layers": 2}
EMBEDDED = {"d2dce.weight": 0.25}


@pytest.mark.parametrize("num_classes, channels", [(0, 1), (3, 3)])
@pytest.mark.parametrize("blocks", ["orig", "skip", "resnet"])
@pytest.mark.parametrize(
    "more, naming",
    [({}, "studiogan"), ({"discriminator.mbstd_group_size": 1}, "nvidia"), (EMBEDDED, "studiogan")],
    ids=["plain", "no stddev", "embedding"],
)
def test_our_own_networks(more, naming, blocks, num_classes, channels):
    """Written and read again: the same variables, and fields that build the same networks."""
    if more == EMBEDDED and not num_classes:
        pytest.skip("these heads need classes")
    fields = SMALL | {"generator.architecture": blocks, "discriminator.architecture": blocks} | more
    model = model_of(fields, channels, num_classes)
    found = {}
    for role, shapes in zip(("generator", "discriminator"), shapes_of(model), strict=True):
        tree = unflatten_dict({path: numbered(shape, i) for i, (path, shape) in enumerate(shapes.items())})
        network = ConvertedNetwork(role, {}, num_classes, channels, tree)
        again = read_stylegan2(write_stylegan2(network, naming))
        assert (again.role, again.num_classes, again.channels) == (role, num_classes, channels)
        assert jax.tree.structure(again.variables) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, again.variables, tree)
        found |= again.fields
    assert shapes_of(model_of(found, channels, num_classes)) == shapes_of(model)
    told = {key: value for key, value in fields.items() if (num_classes and not more) or key.startswith("generator")}
    assert told.items() <= found.items()


GOLDEN = ["stylegan2_studiogan_32_map2_orig", "stylegan2_studiogan_32_map8_resnet", "stylegan2_nvidia_16_clamp_skip"]


@pytest.mark.parametrize("name", [*GOLDEN, "stylegan2_nvidia_64"])
def test_golden_weights(name):
    """The very variables of which test_stylegan2_golden checks images, logits and gradients; and back."""
    for module in ("G", "D"):
        weights = Golden(name).weights(module)
        network, expected = read_stylegan2(weights), variables(weights)
        assert jax.tree.structure(network.variables) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, network.variables, expected)
        assert_same_bits(write_stylegan2(network, naming_of(name.removeprefix("stylegan2_"))), weights)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in GOLDEN[:2]] + GOLDEN[2:])
def test_golden_images_and_logits(name):
    golden = Golden(name)
    c, g, d = golden.config, *(read_stylegan2(golden.weights(module)) for module in ("G", "D"))
    own = {"generator.conv_clamp": c["conv_clamp"], "discriminator.conv_clamp": c["conv_clamp"]}
    own["discriminator.mbstd_group_size"] = c["mbstd_group_size"]  # which tensors do not tell
    model = model_of(g.fields | d.fields | own | {"up_impl": "shift"}, g.channels, g.num_classes)
    generate = jax.jit(functools.partial(model.generator.apply, noise_mode="const"))
    assert_close(generate(g.variables, golden["in/z"], golden["in/labels"]), nhwc(golden["out/img_const"]), 1e-5)
    # The published groups are strided; ours are contiguous: the same groups after this permutation of the batch.
    permutation = np.arange(c["batch"]).reshape(c["mbstd_group_size"], -1).T.ravel()
    real = jnp.asarray(nhwc(golden["in/real_images"]))[permutation]
    logits = jax.jit(model.discriminator.apply)(d.variables, real, golden["in/labels"][permutation]).logits
    expected = golden["out/d_logits_real" + ("_nonoise" if "studiogan" in name else "")][permutation, 0]
    assert_close(logits, expected, 1e-5)


def discriminator(head="SPD"):
    """Return the tensors of a published head, at 8 px with 512 channels replaced by 8."""
    blocks = tensors_of([(key, shape) for key, shape in small_blocks()])
    heads = [(key, [8 if n == 512 else n for n in shape]) for key, shape in statedict(HEADS)["heads"][head]]
    return blocks | tensors_of(heads)


def small_blocks():
    for name, inputs, kernel in (("b8.fromrgb", 3, 1), ("b8.conv0", 8, 3), ("b8.conv1", 8, 3), ("b4.conv", 9, 3)):
        yield f"{name}.weight", [8, inputs, kernel, kernel]
        yield f"{name}.bias", [8]
        yield f"{name}.resample_filter", [4, 4]
        if name == "b8.fromrgb":
            yield "b8.resample_filter", [4, 4]
    yield "b4.fc.weight", [8, 128]
    yield "b4.fc.bias", [8]


@pytest.mark.parametrize("head", ["SPD", "2C", "D2DCE", "W/O"])
def test_supported_heads(head):
    tensors = discriminator(head)
    network = read_stylegan2(tensors)
    assert network.num_classes == (0 if head == "W/O" else 10)
    assert ("d2dce.weight" in network.fields) == (head in ("2C", "D2DCE"))
    written = write_stylegan2(network, "studiogan")
    assert_same_bits({key: written[key] for key in tensors}, tensors)
    assert written.keys() == tensors.keys()
    head_keys = [key for key in written if not key.startswith("b")]
    assert head_keys == [key for key, _ in statedict(HEADS)["heads"][head]]


def test_studiogans_own_name_of_the_class_mapping():
    tensors = discriminator("D2DCE")
    renamed = {key.replace("mapping.", "embedding."): value for key, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    assert_same_bits(
        write_stylegan2(read_stylegan2(renamed), "studiogan"), write_stylegan2(read_stylegan2(tensors), "studiogan")
    )


@pytest.mark.parametrize(
    "head, words",
    [
        ("AC", "linear2.weight"),
        ("PD", "linear2.weight"),
        ("MD", "linear1.weight has 10"),
        ("MH", "linear1.weight has 11"),
    ],
)
def test_unsupported_heads(head, words):
    refused(lambda: read_stylegan2(discriminator(head)), words, head)


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?"))
    for word in words:
        assert word in message, message


@functools.cache
def small_generator():
    return Golden(GOLDEN[0]).weights("G")


MAKERS = {"generator": small_generator, "discriminator": discriminator}


@pytest.mark.parametrize("role", MAKERS)
def test_every_missing_tensor_is_named(role):
    tensors = MAKERS[role]()
    for key in tensors:
        rest = {other: value for other, value in tensors.items() if other != key}
        refused(functools.partial(read_stylegan2, rest), f"The {role} lacks {key};")


@pytest.mark.parametrize("role", MAKERS)
def test_every_wrong_shape_is_refused(role):
    tensors = MAKERS[role]()
    for key, value in tensors.items():
        for wrong in (value[None], np.concatenate([value, value]) if value.ndim else np.zeros(1, np.float32)):
            refused(functools.partial(read_stylegan2, {**tensors, key: wrong}), f"The {role}")


def test_what_is_wrong_is_named():
    tensors = discriminator()
    with_more = {**tensors, "b16.conv0.weight": np.zeros((8, 8, 3, 3), np.float32)}
    refused(lambda: read_stylegan2(with_more), "The discriminator lacks b16.")
    refused(lambda: read_stylegan2({**tensors, "b8.conv2.weight": FIR}), "The discriminator has b8.conv2.weight")
    refused(lambda: read_stylegan2({**tensors, "b4.fc.bias": np.zeros(8, int)}), "b4.fc.bias", "int64")
    refused(lambda: read_stylegan2({**tensors, "b8.conv0.resample_filter": FIR * 2}), "b8.conv0.resample_filter")
    refused(lambda: read_stylegan2({**tensors, "b4.fc.bias": np.zeros(7)}), "b4.fc.bias has shape [7]", "have [8]")
    refused(lambda: read_stylegan2({}), "The discriminator lacks")
    wide = {"b8.conv0.weight": np.zeros((16, 24, 3, 3))}
    refused(lambda: read_stylegan2({**tensors, **wide}), "says that there are")


def test_what_no_public_format_holds():
    model = model_of(SMALL | {"transitional.weight": 1.0}, 3, 4)
    for role, shapes in zip(("generator", "discriminator"), shapes_of(model), strict=True):
        tree = unflatten_dict({path: np.zeros(shape, np.float32) for path, shape in shapes.items()})
        words = f"The {role} has ", "no place", "mapping." if role == "generator" else "conditional_output."
        refused(functools.partial(write_stylegan2, ConvertedNetwork(role, {}, 4, 3, tree), "studiogan"), *words)


def test_namings():
    network = read_stylegan2(discriminator())
    assert list(read_stylegan2(write_stylegan2(network, "nvidia")).variables) == ["params"]
    refused(lambda: write_stylegan2(network, "nvidai"), "'nvidai'", "did you mean 'nvidia'?")
    refused(lambda: write_stylegan2(read_stylegan2(discriminator("2C")), "nvidia"), "studiogan")


def test_matches():
    assert matches(discriminator()) and matches(["synthesis.b4.const"])
    for other in (["blocks.0.0.conv1.weight", "shared.weight"], ["linear1.weight", "bn4.bias"], [], ["b4a.weight"]):
        assert not matches(other)


def test_half_precision_becomes_float32():
    halves = {key: value.astype(np.float16) for key, value in discriminator().items()}
    assert {x.dtype for x in jax.tree.leaves(read_stylegan2(halves).variables)} == {np.dtype(np.float32)}
