import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch_files
from file_server import serve

from noisytwins_jax.metrics.extractors import clip, dinov2, inception, weights
from noisytwins_jax.metrics.extractors.public_networks import Network, recognise
from noisytwins_jax.metrics.extractors.registry import check_weights
from noisytwins_jax.metrics.extractors.weights import check, convert, find_network, load_network
from noisytwins_jax.metrics.extractors.weights_file import weights_sha256
from noisytwins_jax.metrics.protocols import EXTRACTORS
from noisytwins_jax.metrics.weights import main
from noisytwins_jax.utils import retry as retry_module
from noisytwins_jax.utils.download import RemoteFile
from noisytwins_jax.utils.errors import UserError

PUBLIC = tuple(weights.NETWORKS)
SMALL = {"width": 64, "layers": 2, "heads": 1, "mlp_width": 256}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch, tmp_path):
    """Add two small networks, and set a default directory of the test's own."""
    config = dataclasses.replace(clip.CONFIGS["clip-vit-b32"], image_size=64, projection_dim=48, **SMALL)
    monkeypatch.setitem(clip.CONFIGS, "clip-small", config)
    monkeypatch.setitem(dinov2.CONFIGS, "dinov2-small", dataclasses.replace(dinov2.CONFIGS["dinov2-vits14"], **SMALL))
    file = RemoteFile("https://a.org/small.pt", sha256="0123456789abcdef" * 4)
    monkeypatch.setitem(weights.NETWORKS, "clip-small", Network("a small CLIP", file))
    file = RemoteFile("https://a.org/small.pth")
    monkeypatch.setitem(weights.NETWORKS, "dinov2-small", Network("a small DINOv2", file))
    monkeypatch.setenv("NOISYTWINS_WEIGHTS", str(tmp_path / "weights"))


def random_state(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {key: rng.random(shape, np.float32) for key, shape in shapes.items()}


def openai_state(seed=0):
    """Return all of OpenAI's file: the image tower in half precision, the text tower, and three numbers."""
    shapes = clip.state_dict_shapes(clip.CONFIGS["clip-small"], "openai")
    shapes |= {"transformer.resblocks.0.ln_1.weight": (8,), "token_embedding.weight": (5, 8), "ln_final.bias": (8,)}
    shapes |= {"positional_embedding": (7, 8), "text_projection": (8, 48), "logit_scale": ()}
    state = {key: value.astype(np.float16) for key, value in random_state(shapes, seed).items()}
    return state | {key: np.array(7) for key in ("input_resolution", "context_length", "vocab_size")}


def image_tower(state):
    return {key: value.astype(np.float32) for key, value in state.items() if key.startswith("visual.")}


def huggingface_clip(state):
    """Rename OpenAI's tensors to Hugging Face's names."""
    renamed = {}
    for key, value in image_tower(state).items():
        key = key.removeprefix("visual.").replace("transformer.resblocks", "encoder.layers")
        for old, new in (
            *(("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("c_fc", "fc1"), ("c_proj", "fc2")),
            *(("attn.out_proj", "self_attn.out_proj"), ("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")),
            *(("conv1", "embeddings.patch_embedding"), ("class_embedding", "embeddings.class_embedding")),
            ("positional_embedding", "embeddings.position_embedding.weight"),
        ):
            key = key.replace(old, new)
        if key == "proj":
            renamed["visual_projection.weight"] = value.T
        elif "in_proj_" in key:
            prefix, kind = key.split("attn.in_proj_")
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                renamed[f"vision_model.{prefix}self_attn.{letter}_proj.{kind}"] = part
        else:
            renamed[f"vision_model.{key}"] = value
    more = {"text_model.final_layer_norm.bias": np.zeros(8, np.float32), "logit_scale": np.float32(4.6).reshape(())}
    return renamed | more | {"vision_model.embeddings.position_ids": np.arange(5)[None]}


def dinov2_state(seed=0):
    shapes = dinov2.state_dict_shapes(dinov2.CONFIGS["dinov2-small"], "facebookresearch")
    return random_state(shapes | {"mask_token": (1, 64)}, seed)


def huggingface_dinov2(state):
    renamed = {}
    for key, value in state.items():
        for old, new in (
            *(
                ("blocks", "encoder.layer"),
                ("attn.proj", "attention.output.dense"),
                ("ls1.gamma", "layer_scale1.lambda1"),
            ),
            *(("ls2.gamma", "layer_scale2.lambda1"), ("cls_token", "embeddings.cls_token")),
            *(("mask_token", "embeddings.mask_token"), ("pos_embed", "embeddings.position_embeddings")),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ):
            key = key.replace(old, new)
        if key.startswith("norm."):
            key = f"layer{key}"
        if ".qkv." in key:
            prefix, kind = key.split("attn.qkv.")
            for name, part in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                renamed[f"{prefix}attention.attention.{name}.{kind}"] = part
        else:
            renamed[key] = value
    return renamed


def write(path, state):
    """Write in the format of the suffix."""
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path)
    else:
        {".pt": torch_files.write_torchscript, ".pth": torch_files.write_legacy, ".bin": torch_files.write_zip}[
            path.suffix
        ](path, state)
    return path


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key].dtype == np.float32
        np.testing.assert_array_equal(actual[key], value)


def assert_same_network(actual, expected):
    """Return variables and configuration."""
    assert actual[1] == expected[1]
    jax.tree.map(np.testing.assert_array_equal, actual[0], expected[0])


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_clip_of_openai(suffix, tmp_path):
    state = openai_state()
    if suffix == ".pth":  # nested, and with what is no tensor
        path = tmp_path / "clip.pth"
        array = {str(i): value for i, value in enumerate(state.values())}
        entries = ((key, torch_files.tensor(state[key], str(i), b"N")) for i, key in enumerate(state))
        body = torch_files.items([("epoch", torch_files.integer(3)), ("state_dict", torch_files.items(entries))])
        torch_files.write_legacy(path, array, body)
    else:
        path = write(tmp_path / f"clip{suffix}", state)
    text = convert(path)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    assert content in text and "a small CLIP" in text
    loaded, info = load_network("clip-small")
    assert_same(loaded, image_tower(state))
    assert info["source_file"] == path.name and info["source_sha256"] == content and info["network"] == "clip-small"
    assert info["sha256"] == weights_sha256({"clip-small": loaded}) and path.name in info["origin"]
    assert_same_network(clip.from_state_dict(loaded), clip.from_state_dict(state))


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_huggingfaces_files_become_the_same(suffix, tmp_path):
    for network, state, renamed in (
        ("clip-small", openai_state(), huggingface_clip(openai_state())),
        ("dinov2-small", dinov2_state(), huggingface_dinov2(dinov2_state())),
    ):
        convert(write(tmp_path / f"{network}.bin", state), tmp_path / "one")
        convert(write(tmp_path / f"{network}{suffix}", renamed), tmp_path / "other")
        (one, info), (other, other_info) = (load_network(network, tmp_path / name) for name in ("one", "other"))
        assert_same(other, one)
        assert info["sha256"] == other_info["sha256"] and info["source_sha256"] != other_info["source_sha256"]


def test_dinov2(tmp_path):
    state = dinov2_state()
    text = convert(write(tmp_path / "small.pth", state))
    assert "not known here" in text
    loaded, _ = load_network("dinov2-small")
    assert_same(loaded, {key: value for key, value in state.items() if key != "mask_token"})
    assert_same_network(dinov2.from_state_dict(loaded), dinov2.from_state_dict(state))


def test_inception(tmp_path):
    """At full size, in the public file's format."""
    shapes = inception.state_dict_shapes()
    counters = [key for key in shapes if inception.is_optional(key)]
    learned = [shape for key, shape in shapes.items() if key not in counters and "running_" not in key]
    assert sum(np.prod(shape, dtype=int) for shape in learned) == 23_850_960
    state = random_state(shapes) | {key: np.array(0) for key in counters}
    convert(write(tmp_path / "inception.pth", state))
    loaded, _ = load_network("inception")
    assert_same(loaded, without(state, *counters))
    network, again = recognise(tmp_path / "file", without(state, *counters))
    assert network == "inception"
    assert_same(again, loaded)
    jax.tree.map(np.testing.assert_array_equal, inception.from_state_dict(loaded), inception.from_state_dict(state))


PARAMETERS = {  # of the image towers, as published
    "clip-vit-b32": 87_849_216,
    "clip-vit-l14": 303_966_208,
    "clip-vit-l14-336": 304_293_888,
    "dinov2-vits14": 22_056_192,
    "dinov2-vitb14": 86_579_712,
    "dinov2-vitl14": 304_367_616,
}


@pytest.mark.parametrize(
    "network", ["dinov2-vits14", *(pytest.param(n, marks=pytest.mark.slow) for n in PARAMETERS if n != "dinov2-vits14")]
)
def test_public_sizes(network, tmp_path):
    family, layouts = (clip, clip.LAYOUTS) if network.startswith("clip") else (dinov2, dinov2.LAYOUTS)
    for layout in layouts:
        shapes = family.state_dict_shapes(family.CONFIGS[network], layout)
        tensors = {key: np.broadcast_to(np.float16(0), shape) for key, shape in shapes.items()}
        tensors["input_resolution" if layout == "openai" else "mask_token"] = np.zeros(1)
        if layout == "huggingface":
            tensors["logit_scale" if family is clip else "embeddings.mask_token"] = tensors.pop("mask_token")
        found, state = recognise(tmp_path / "file", tensors)
        assert found == network
        assert sum(value.size for value in state.values()) == PARAMETERS[network]


def test_public_file_is_known(tmp_path, monkeypatch):
    path = write(tmp_path / "small.pt", openai_state())
    assert "not the known public file small.pt, whose SHA-256 begins with 01234567" in convert(path)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    file = RemoteFile("https://a.org/small.pt", sha256=content)
    monkeypatch.setitem(weights.NETWORKS, "clip-small", Network("a small CLIP", file))
    assert "the known public file small.pt" in convert(path, tmp_path / "other")
    assert "the known public file" in load_network("clip-small", tmp_path / "other")[1]["origin"]


def test_public_files():
    for network in PUBLIC:
        what, file = weights.NETWORKS[network]
        assert file.address.startswith("https://") and " " not in file.address and what and file.terms
        assert file.name == file.address.split("/")[-1] != ""
        assert len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef")
        parameters = PARAMETERS.get(network, 24_000_000)  # of the image tower; OpenAI's files are of half precision
        assert file.size > parameters * (2 if network.startswith("clip") else 3)
        if network.startswith("clip"):
            assert file.address.split("/")[-2] == file.sha256
        elif network.startswith("dinov2"):
            name = network.replace("-", "_")
            assert file.address.endswith(f"/{name}/{name}_pretrain.pth")
        else:
            assert file.address.endswith(f"-{file.sha256[:8]}.pth")
    assert len({weights.NETWORKS[network].file for network in PUBLIC}) == len(PUBLIC) == 7


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A mirror of the small networks' files."""
    monkeypatch.setattr(retry_module.time, "sleep", lambda _: None)
    with serve() as server:
        monkeypatch.setenv("NOISYTWINS_MIRROR", server.address)
        for network, name, state in (
            ("clip-small", "small.pt", openai_state()),
            ("dinov2-small", "small.pth", dinov2_state()),
        ):
            content = write(tmp_path / name, state).read_bytes()
            server.files[f"/a.org/{name}"] = content
            what, file = weights.NETWORKS[network]
            file = file._replace(size=len(content), sha256=hashlib.sha256(content).hexdigest(), terms="MIT")
            monkeypatch.setitem(weights.NETWORKS, network, Network(what, file))
        yield server


def test_get(server, tmp_path, capsys, monkeypatch):
    server.behaviours = ["cut:1000"]
    monkeypatch.setitem(EXTRACTORS, "dinov2", ("dinov2", "dinov2-small"))  # a name of config.evaluation.extractors
    main(["get", "clip-small", "dinov2"])
    output = capsys.readouterr().out
    assert output.count("the known public file") == output.count("Written to") == 2 and "MIT" in output
    assert_same(load_network("clip-small")[0], image_tower(openai_state()))
    assert load_network("dinov2-small")[1]["source_sha256"] == weights.NETWORKS["dinov2-small"].file.sha256
    assert [name for name in os.listdir(tmp_path / "weights/downloads") if name != ".lock"] == []
    assert len(server.requests) == 3
    main(["get", "clip-small", "dinov2-small"])
    assert capsys.readouterr().out.count("already.") == 2 and len(server.requests) == 3
    (tmp_path / "weights" / "clip-small.safetensors").write_text("damaged")
    main(["get", "clip-small", f"--to={tmp_path / 'weights'}"])
    assert_same(load_network("clip-small")[0], image_tower(openai_state()))


@pytest.mark.parametrize("behaviour", ["other", "status:404", "page", "size:7", "whole:100"])
def test_get_what_is_not_the_file(behaviour, server, tmp_path, capsys):
    main(["get", "dinov2-small"])
    server.forever = behaviour
    with pytest.raises(SystemExit) as caught:
        main(["get", "dinov2-small", "clip-small"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and error.startswith("Error: ") and f"{server.address}/a.org/small.pt" in error
    assert "run: python -m noisytwins_jax.metrics.weights convert --from=small.pt" in error
    find_network("dinov2-small")
    assert not (tmp_path / "weights" / "clip-small.safetensors").exists()


def test_mistaken_names_to_get(capsys):
    for name, message in (("clap", "did you mean 'clip"), ("classifier", "trained on the data itself")):
        with pytest.raises(SystemExit):
            main(["get", "clip", name])
        assert message in capsys.readouterr().err


def test_missing_weights_are_downloaded_where_asked(server, tmp_path, capsys):
    chosen = {"clip": "clip-small", "classifier": "", "dinov2": "dinov2-small"}
    convert(tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"add --config\.evaluation\.download=True, or get them: .* get clip-small$"):
        check_weights(chosen)
    check_weights(chosen, download=True)
    check_weights(chosen, download=True)
    assert server.requests == [("/a.org/small.pt", None)] and capsys.readouterr().out.count("Written to") == 1
    check_weights(chosen)


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        convert(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.endswith(".")
    for word in words:
        assert word in message, message
    assert not list((path.parent / "weights").glob("*"))


def without(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


def small_inception(classes):
    return {"Conv2d_1a_3x3.conv.weight": np.zeros((32, 3, 3, 3), np.float32), "fc.weight": np.zeros((classes, 2048))}


TEXT = {"text_model.embeddings.token_embedding.weight": np.zeros((5, 8), np.float32), "logit_scale": np.zeros(())}
FIRST = "visual.transformer.resblocks.0.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (lambda: small_inception(1000), ["torchvision's InceptionV3 of 1000 classes", "pt_inception-2015-12-05"]),
        (lambda: small_inception(1008), ["FID's InceptionV3", "Conv2d_1a_3x3.bn.weight is missing"]),
        (lambda: TEXT, ["text tower of CLIP"]),
        (lambda: {"token_embedding.weight": np.zeros((5, 8)), "ln_final.bias": np.zeros(8)}, ["text tower of CLIP"]),
        (lambda: without(openai_state(), "input_resolution"), ["open_clip"]),
        (lambda: {f"module.{key}": value for key, value in openai_state().items()}, ["open_clip"]),
        (lambda: {"visual.trunk.cls_token": np.zeros(3), "logit_scale": np.zeros(())}, ["open_clip", "timm"]),
        (lambda: {"visual.conv1.weight": np.zeros((32, 3, 3, 3))}, ["ResNet"]),
        (lambda: without(dinov2_state(), "mask_token"), ["timm"]),
        (lambda: dinov2_state() | {"register_tokens": np.zeros((1, 4, 64))}, ["register tokens"]),
        (lambda: {"embeddings.cls_token": np.zeros(3), "layernorm.bias": np.zeros(3)}, ["not DINOv2"]),
        (lambda: {"a": np.zeros(3)}, ["none of the networks", "'a'"]),
        (lambda: without(openai_state(), FIRST), [f"{FIRST} is missing", "small.pt"]),
        (lambda: openai_state() | {FIRST: np.zeros((64, 256))}, [f"{FIRST} is 64 x 256, not 256 x 64"]),
        (lambda: openai_state() | {FIRST: np.zeros((256, 64), np.int8)}, [FIRST, "int8"]),
        (lambda: openai_state() | {"visual.more": np.zeros(3)}, ["visual.more is no part of it"]),
        (lambda: openai_state() | {"visual.conv1.weight": np.zeros((64, 3, 16, 16))}, ["size", "64 x 3 x 16 x 16"]),
        (lambda: without(openai_state(), "visual.positional_embedding"), ["visual.positional_embedding is missing"]),
        (lambda: huggingface_clip(openai_state()) | {"visual_projection.weight": np.zeros((64, 48))}, ["64 x 48"]),
        (
            lambda: without(huggingface_clip(openai_state()), "visual_projection.weight"),
            ["projection.weight is missing"],
        ),
        (lambda: without(dinov2_state(), "blocks.1.ls2.gamma"), ["blocks.1.ls2.gamma is missing"]),
        (lambda: {}, ["no tensors by name"]),
    ],
)
def test_other_networks(state, words, tmp_path):
    refused(write(tmp_path / "file.safetensors", state()), *words)


def test_other_activations(tmp_path):
    """A configuration beside the file tells LAION's networks from OpenAI's, which tensors do not."""
    path = write(tmp_path / "model.safetensors", huggingface_clip(openai_state()))
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "gelu"}}))
    refused(path, "config.json", "gelu")
    for settings in ('{"vision_config": {"hidden_act": "quick_gelu"}}', "{}", "not JSON", "[]"):
        (tmp_path / "config.json").write_text(settings)
        convert(path)


def test_unreadable_files(tmp_path):
    refused(tmp_path / "missing.pt", "There is no")
    (tmp_path / "a.safetensors").write_bytes(write(tmp_path / "b.safetensors", openai_state()).read_bytes()[:-100])
    refused(tmp_path / "a.safetensors", "damaged or incomplete")
    (tmp_path / "c.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path / "c.safetensors", "Git LFS")
    (tmp_path / "d.pth").write_bytes(b"\x80\x02" + torch_files.call("posix", "system", torch_files.text("true")) + b".")
    refused(tmp_path / "d.pth", "posix.system")
    torch_files.write_archive(tmp_path / "e.pth", b"]", {})
    refused(tmp_path / "e.pth", "no tensors by name")


def test_other_weights_are_kept(tmp_path):
    first, second = (write(tmp_path / f"{seed}.pt", openai_state(seed)) for seed in (1, 2))
    convert(first)
    path = find_network("clip-small")
    before = path.read_bytes()
    assert "already" in convert(first)
    with pytest.raises(UserError, match="--force"):
        convert(second)
    assert path.read_bytes() == before
    convert(second, force=True)
    assert_same(load_network("clip-small")[0], image_tower(openai_state(2)))
    with pytest.raises(UserError, match="converted already"):
        convert(path)
    path.write_bytes(before[:-10])  # damaged: nothing to keep
    convert(first)
    assert_same(load_network("clip-small")[0], image_tower(openai_state(1)))


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write(tmp_path / "small.pt", openai_state())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        convert(path)
    assert not list((tmp_path / "weights").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        convert(path, tmp_path / "file")


def test_missing_and_damaged(tmp_path):
    with pytest.raises(
        UserError, match=r"CLIP ViT-B/32 are not in some.*weights get clip-vit-b32 --to=some$"
    ) as caught:
        load_network("clip-vit-b32", "some")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="did you mean 'clip-vit-b32'"):
        find_network("clip-vit-b23")
    convert(write(tmp_path / "small.pt", openai_state()))
    path = find_network("clip-small")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    for content in (
        whole[:100],
        whole[:-1],
        bytes(flipped),
        b"",
        b"text",
        whole.replace(b'"version":"1"', b'"version":"0"'),
    ):
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged or not one of this version.*get clip-small"):
            load_network("clip-small")
    path.write_bytes(whole)
    os.rename(path, path.with_name("dinov2-small.safetensors"))
    with pytest.raises(UserError, match="damaged"):
        load_network("dinov2-small")
    write(path, image_tower(openai_state()))  # not one of ours
    with pytest.raises(UserError, match="damaged"):
        load_network("clip-small")


def test_all_missing_networks_are_said_at_once(tmp_path):
    networks = ["clip-small", "dinov2-small", "inception", "inception"]
    for there, missing in (("clip-small", ("dinov2-small", "inception")), ("dinov2-small", ("inception",))):
        convert(write(tmp_path / "file.bin", {"clip-small": openai_state, "dinov2-small": dinov2_state}[there]()))
        with pytest.raises(UserError) as caught:
            check(networks)
        message = str(caught.value)
        listed = message.partition(" lacks the weights of ")[2].partition("; ")[0].split(", ")
        assert listed == [weights.NETWORKS[network].what for network in missing]
        assert message.endswith(f"noisytwins_jax.metrics.weights get {' '.join(missing)}") and "\n" not in message
        assert str(tmp_path / "weights") in message
    check(["clip-small", "dinov2-small"])
    check(["clip-small"], tmp_path / "weights")
    check([])
    with pytest.raises(UserError, match=r"get clip-small --to='other place'$"):
        check(["clip-small"], "other place")
    with pytest.raises(UserError, match="did you mean 'clip-small'"):
        check(["clip-smal"])


@contextlib.contextmanager
def permissions_hold():
    """Also where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("closed", ["weights/clip-small.safetensors", "weights"])
def test_files_that_may_not_be_read(closed, tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "small.pt", openai_state())
    convert(path)
    before = find_network("clip-small").read_bytes()
    # Relative to the working directory, whose parents are closed to others, too.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOISYTWINS_WEIGHTS", "weights")
    for open_to_all in (tmp_path, tmp_path / "weights"):
        open_to_all.chmod(0o777)
    os.chmod(closed, 0)
    source = Path(path.name)
    with permissions_hold():
        for access in (find_network, load_network, lambda network: check([network]), lambda _: convert(source)):
            with pytest.raises(UserError, match=r"clip-small\.safetensors cannot be read \(Permission denied\)"):
                access("clip-small")
        main(["list"])
    assert "cannot be read" in next(line for line in capsys.readouterr().out.splitlines() if "clip-small" in line)
    os.chmod(closed, 0o700)
    assert find_network("clip-small").read_bytes() == before
    source.chmod(0)
    with permissions_hold(), pytest.raises(UserError, match=r"small\.pt cannot be read \(Permission denied\)"):
        convert(source)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_written_with_the_permissions_of_any_new_file(umask, mode, tmp_path):
    path = write(tmp_path / "small.pt", openai_state())
    before = os.umask(umask)
    try:
        convert(path)
    finally:
        os.umask(before)
    assert find_network("clip-small").stat().st_mode & 0o777 == mode


def test_directories(tmp_path, monkeypatch):
    path = write(tmp_path / "small.pt", openai_state())
    convert(path)
    assert find_network("clip-small") == tmp_path / "weights" / "clip-small.safetensors"
    assert find_network("clip-small", str(tmp_path / "weights")).is_file()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NOISYTWINS_WEIGHTS")
    convert(path)
    assert find_network("clip-small") == tmp_path / "home/.cache/noisytwins_jax/weights/clip-small.safetensors"


def test_command(tmp_path, capsys):
    main(["convert", f"--from={write(tmp_path / 'small.pt', openai_state())}"])
    assert "Written to" in capsys.readouterr().out
    (tmp_path / "weights" / "dinov2-small.safetensors").write_text("damaged")
    main(["list"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines.keys() == weights.NETWORKS.keys()
    assert "small.pt, SHA-256" in lines["clip-small"] and "damaged" in lines["dinov2-small"]
    assert lines["dinov2-small"].endswith("https://a.org/small.pth")
    for network in PUBLIC:
        assert "missing" in lines[network] and lines[network].endswith(weights.NETWORKS[network].file.address)
    for mistake in (["get"], ["convert"], ["convert", "--from=missing.pt"], ["show"], []):
        with pytest.raises(SystemExit) as caught:
            main(mistake)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and error.startswith("Error: ") and error.count("\n") == 1


def test_help_says_what_a_directory_is_for(capsys):
    for command in ("get", "convert", "list"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "the directory of converted files (default: $NOISYTWINS_WEIGHTS, or ~/.cache/noisytwins_jax" in text


def test_module_runs_without_pytorch(tmp_path):
    program = "import sys; sys.modules['torch'] = None; from noisytwins_jax.metrics.weights import main; main(['list'])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "clip-vit-b32" in result.stdout
