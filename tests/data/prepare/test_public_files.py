"""What is known of the public files, against what TFDS has recorded of them, and where they are put."""

from pathlib import Path

import pytest
import tensorflow_datasets
from file_server import serve_public_set

from noisytwins_jax.data.prepare.command import PREPARERS, main
from noisytwins_jax.data.prepare.public_files import PUBLIC_SETS, get_source
from noisytwins_jax.data.prepared import KNOWN_SETS, NOT_FREE
from noisytwins_jax.utils.errors import UserError


def test_sizes_and_hashes_are_those_of_tfds():
    lines = [
        line.split()
        for pattern in ("url_checksums/*.txt", "**/checksums.tsv")
        for path in Path(tensorflow_datasets.__file__).parent.glob(pattern)
        for line in path.read_text().splitlines()
    ]
    recorded = {address: tuple(known[:2]) for address, *known in filter(None, lines)}
    files = {file for public in PUBLIC_SETS.values() for file in public.files if file.sha256}
    assert len(files) == 12
    for file in files:
        assert recorded[file.address] == (str(file.size), file.sha256), file


def test_every_set_is_free_or_needs_a_source(tmp_path, capsys):
    assert PUBLIC_SETS.keys() | {*NOT_FREE, "petals"} == KNOWN_SETS.keys() and not PUBLIC_SETS.keys() & set(NOT_FREE)
    assert KNOWN_SETS.keys() | {"image_folder", "digits_lt"} == PREPARERS.keys()
    for dataset in NOT_FREE:
        with pytest.raises(SystemExit):
            main([dataset, f"--data_dir={tmp_path}"])
        assert f"{dataset} needs --source=" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", PUBLIC_SETS)
def test_where_files_are_put(dataset, tmp_path, monkeypatch):
    files = {file.name: file.name.encode() for file in PUBLIC_SETS[dataset].files}
    with serve_public_set(monkeypatch, dataset, files) as server:
        public = PUBLIC_SETS[dataset]
        server.behaviours = ["status:404"]
        with pytest.raises(UserError, match=f"put it into {tmp_path / public.folder}, or give --source"):
            get_source(public, tmp_path)
        source = get_source(public, tmp_path)
        assert get_source(public, tmp_path) == source and len(server.requests) == 1 + len(files)
    folder = tmp_path / public.folder
    assert source == (folder if len(files) > 1 else folder / next(iter(files)))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == files
    assert all(file.terms for file in public.files)


def test_what_a_package_installs_is_not_downloaded(tmp_path):
    public = PUBLIC_SETS["fashion_mnist_lt"]._replace(installed=str(tmp_path))
    assert get_source(public, tmp_path / "downloads") == tmp_path and not list(tmp_path.iterdir())
