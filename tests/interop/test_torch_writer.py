"""Files for PyTorch: our own reader reads them, and PyTorch does (slow)."""

import numpy as np
import pytest

from noisytwins_jax.interop.torch_writer import write_torch_file
from noisytwins_jax.utils.torch_file import read_torch_file

CONTENT = {
    "state_dict": {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "count": np.array(7, np.int64),
        "half": np.array([1.5], np.float16),
    },
    "step": 70000,
    "negative": -(2**40),
    "best": None,
    "lr": 0.0025,
    "flags": [True, False],
    "betas": (0.0, 0.99),
    "name": "Ärger/δ",
    3: {},
}


def same(have, want):
    if isinstance(want, dict):
        assert list(have) == list(want)
        for key in want:
            same(have[key], want[key])
    elif isinstance(want, np.ndarray):
        have = np.asarray(have)
        assert have.dtype == want.dtype and have.shape == want.shape and np.array_equal(have, want)
    else:
        assert type(have) is type(want) and have == want


def test_our_reader_reads_it(tmp_path):
    path = tmp_path / "x.pth"
    write_torch_file(path, CONTENT)
    same(read_torch_file(path), CONTENT)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pth"]


def test_the_same_content_is_the_same_file(tmp_path):
    for name in "ab":
        write_torch_file(tmp_path / name, CONTENT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.pth"
    write_torch_file(path, {"a": 1})
    with pytest.raises(TypeError, match="object is not written"):
        write_torch_file(path, {"a": object()})
    assert read_torch_file(path) == {"a": 1}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"weights_only": True}, {"weights_only": True, "mmap": True}])
def test_pytorch_reads_it(tmp_path, options):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pth"
    write_torch_file(path, CONTENT)

    def arrays(x):
        if isinstance(x, dict):
            return {key: arrays(value) for key, value in x.items()}
        return x.numpy() if isinstance(x, torch.Tensor) else x

    same(arrays(torch.load(path, **options)), CONTENT)
