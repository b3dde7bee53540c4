"""Snapshots for StyleGAN2-ADA for PyTorch: our own reader reads them, and PyTorch copies from them (slow)."""

import pickle

import numpy as np
import pytest
from golden_numbers import weight

from noisytwins_jax.interop.stylegan2.architecture import Architecture
from noisytwins_jax.interop.stylegan2.nvidia_options import config_fields
from noisytwins_jax.interop.stylegan2.nvidia_pickle import read_nvidia_pickle
from noisytwins_jax.interop.stylegan2.nvidia_writer import write_nvidia_snapshot

SIZES = {"resolution": 8, "channels": 1, "num_classes": 3, "channel_base": 32, "channel_max": 4}
GENERATOR = Architecture("generator", **SIZES, blocks="skip", mapping_layers=2, z_dim=3, w_dim=4)
PARTS = {"G": GENERATOR, "D": Architecture("discriminator", **SIZES, blocks="resnet", mapping_layers=8)}
PARTS["G_ema"] = GENERATOR
FIELDS = {
    "generator.conv_clamp": 256.0,
    "generator.w_avg_decay": 0.99,
    "discriminator.conv_clamp": None,
    "discriminator.mbstd_group_size": 2,
}


@pytest.fixture
def snapshot(tmp_path):
    """The path of a snapshot, and its state dicts."""
    networks = {
        part: {key: weight(key, shape, "normal", 1, 0, part) for key, shape in made.shapes("nvidia").items()}
        for part, made in PARTS.items()
    }
    path = tmp_path / "network-snapshot-000007.pkl"
    write_nvidia_snapshot(path, networks, FIELDS, ada_p=0.25)
    assert list(tmp_path.iterdir()) == [path]
    return path, networks


def assert_same(have, want):
    assert have.keys() == want.keys()
    for key, x in want.items():
        assert have[key].dtype == x.dtype and have[key].shape == x.shape
        np.testing.assert_array_equal(have[key], x)


def test_our_reader_reads_it(snapshot):
    path, networks = snapshot
    found = read_nvidia_pickle(path)
    assert list(found.modules) == [*networks, "augment_pipe"] and found.training_set == {}
    for part, tensors in networks.items():
        assert_same(found.modules[part].tensors, tensors)
        role = PARTS[part].role
        told = config_fields(role, found.modules[part].init_kwargs)
        assert told == {name: value for name, value in FIELDS.items() if name.startswith(role)}
    assert found.modules["augment_pipe"].tensors == {"p": np.float32(0.25)}


@pytest.mark.slow
def test_pytorch_copies_from_it(snapshot):
    """As their training resumes: by the names of parameters and of buffers, all of which have to be there."""
    torch = pytest.importorskip("torch")
    from noisytwins_jax.interop.pytorch import stylegan2

    path, networks = snapshot
    content = pickle.loads(path.read_bytes())
    assert content["training_set_kwargs"] is None and float(content["augment_pipe"].p) == 0.25
    options = {"channel_base": 32, "channel_max": 4, "channels": 1}
    generator = {"z_dim": 3, "w_dim": 4, "mapping_layers": 2}
    targets = {
        "G": stylegan2.Generator(8, 3, **options, **generator),
        "D": stylegan2.Discriminator(8, 3, **options, naming="nvidia"),
        "G_ema": stylegan2.Generator(8, 3, **options, **generator),
    }
    for part, target in targets.items():
        source = content[part]
        assert isinstance(source, torch.nn.Module)
        given = dict(source.named_parameters()) | dict(source.named_buffers())
        assert {key for key, _ in target.named_buffers()} == {key for key, _ in source.named_buffers()}
        for key, x in [*target.named_parameters(), *target.named_buffers()]:
            with torch.no_grad():
                x.copy_(given.pop(key))
        assert not given
        assert_same({key: x.numpy() for key, x in target.state_dict().items()}, networks[part])
        source.eval().requires_grad_(False).to("cpu")  # what their code does with it first
        assert (source.c_dim, source.img_resolution, source.img_channels, source.init_args) == (3, 8, 1, ())
        assert source.init_kwargs["c_dim"] == 3
    ema = content["G_ema"]
    assert (ema.z_dim, ema.w_dim, ema.num_ws) == (3, 4, 4)
    assert ema.init_kwargs["synthesis_kwargs"]["conv_clamp"] == 256.0
