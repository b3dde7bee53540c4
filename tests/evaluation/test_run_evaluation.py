"""What becomes of the numbers of a generator; how they are measured is tested with the metrics."""

import copy
import dataclasses
import hashlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_biggan
import tiny_run

from noisytwins_jax.data.registry import load_data
from noisytwins_jax.evaluation import run_evaluation
from noisytwins_jax.evaluation.protocol_record import build_protocol_record
from noisytwins_jax.evaluation.table import check_one_protocol, distance_entries, protocol_line
from noisytwins_jax.utils.errors import UserError

MEASURED = {
    "protocol": {"name": "embedded", "k": 5, "truncation_psi": 1.0, "class_noise": False},
    "metrics": {"fid": 1.0, "w_ratio": 0.5, "tail_w_ratio": 0.25},
    "per_class": [{"class": 0, "ifid": 2.0, "w_ratio": 0.5}],
    "real_vs_real": {"fid": 0.5},
}


@pytest.fixture
def evaluated(monkeypatch, tmp_path):
    """Configuration → the numbers, of a generator that was measured as `MEASURED`."""
    monkeypatch.setattr(run_evaluation, "evaluate_generator", lambda *_, **__: copy.deepcopy(MEASURED))
    monkeypatch.setattr(run_evaluation, "load_extractors", lambda *_: {})
    monkeypatch.setattr(run_evaluation, "build_sampler", lambda *_, **__: None)
    return lambda config: run_evaluation.evaluate_variables(config, {}, load_data(config.data), tmp_path)


def test_all_that_is_of_w_is_left_out_where_there_is_none(evaluated):
    assert evaluated(tiny_run.tiny_config()) == MEASURED
    assert evaluated(tiny_biggan.tiny_config()) == {
        "protocol": {"name": "embedded", "k": 5, "class_noise": False, "truncation": "none"},
        "metrics": {"fid": 1.0},
        "per_class": [{"class": 0, "ifid": 2.0, "w_ratio": None}],
        "real_vs_real": {"fid": 0.5},
    }


def test_no_truncation_is_comparable_however_it_was_recorded(evaluated):
    now = evaluated(tiny_biggan.tiny_config())
    check_one_protocol({"BigGAN": now, "BigGAN, with the record of ψ": MEASURED})
    assert distance_entries(now) == distance_entries(MEASURED) and protocol_line(now) == protocol_line(MEASURED)
    truncated = MEASURED | {"protocol": MEASURED["protocol"] | {"truncation_psi": 0.7}}
    with pytest.raises(UserError, match=r"truncation_psi: 1\.0 and 0\.7"):
        check_one_protocol({"BigGAN": now, "StyleGAN2": truncated})


def test_an_own_extractor_is_checked_before_a_run_and_distinguishes_protocols(tmp_path):
    path, config = tmp_path / "own.jax", tiny_run.tiny_config(**{"evaluation.extractors": f"file:{tmp_path}/own.jax"})
    with pytest.raises(UserError, match=r"own\.jax: there is no such file.*or measure without them"):
        run_evaluation.check_evaluation(config)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.uint8)
    means = jax.export.export(jax.jit(lambda x: x.astype(jnp.float32).mean(axis=(1, 2))))(images)
    path.write_bytes(means.serialize())
    run_evaluation.check_evaluation(config)
    splits = load_data(config.data)  # grey images, which are repeated
    run_evaluation.check_counts(config, splits)
    ((kind, extractor),) = run_evaluation.load_extractors(config, splits, tmp_path).items()
    settings, n_real = config.evaluation.settings, np.full(4, 25)
    counts = settings.counts(4)
    record = build_protocol_record(splits.reference, {kind: extractor}, {}, n_real, settings, counts, counts)
    assert record["headline_extractor"] == "file" and record["extractor"] == extractor.name
    assert record["extractors"]["file"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    other = record | {"extractor_sha256": "0" * 64}
    with pytest.raises(UserError, match="different protocols \\(extractor_sha256: "):
        check_one_protocol({"a": {"protocol": record}, "b": {"protocol": other}})

    grey = jax.ShapeDtypeStruct((batch, 8, 8, 1), jnp.uint8)
    means = jax.export.export(jax.jit(lambda x: x.astype(jnp.float32).mean(axis=(1, 2))))(grey)
    (tmp_path / "grey.jax").write_bytes(means.serialize())
    config = tiny_run.tiny_config(**{"evaluation.extractors": f"file:{tmp_path}/grey.jax"})
    data = dataclasses.replace(config.data, options={**config.data.options, "channels": 3})
    with pytest.raises(UserError, match="takes images of 1 channels, and these have 3"):
        run_evaluation.check_counts(config, load_data(data))
