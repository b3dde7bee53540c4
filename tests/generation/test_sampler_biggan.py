"""Samples of BigGAN: standing statistics, truncation, and the same images whatever is made beside them."""

import itertools
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_biggan
import tiny_run
from flax.traverse_util import flatten_dict
from paths import HELPERS
from waiting import TIMEOUT

from noisytwins_jax.generation import standing_statistics as standing_module
from noisytwins_jax.generation.sample_programs import quantize
from noisytwins_jax.generation.sampler import Sampler
from noisytwins_jax.generation.standing_statistics import standing_statistics
from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.training.build_model import build_model

pytestmark = pytest.mark.usefixtures("fast_compilation")

CLASSES, PASSES, BATCH = 4, 3, 8
CONFIG = tiny_biggan.tiny_config()
WIDTH = CONFIG.biggan.embedding_dim  # w is the class embedding, and the block's part of z from here on


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG, 1, CLASSES)


@pytest.fixture(scope="module")
def variables(model):
    found = jax.device_get(jax.jit(lambda: model.init(jax.random.key(0))[0])())
    return found | {"params": jax.device_get(tiny_biggan.perturbed(found["params"], 1))}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    monkeypatch.setattr(standing_module, "_cache", {})


def batch_statistics_of_passes(model, variables, truncation):
    """Mean and variance of what every BatchNorm is given in training, ``[PASSES, C]``, by NumPy."""
    kind, strength = truncation or (None, None)

    @jax.jit
    def given(number):
        z_key, label_key = jax.random.split(jax.random.fold_in(jax.random.key(standing_module._KEY), number))
        z = CONFIG.z.draw(z_key, BATCH, truncation_kind=kind, strength=strength)
        labels, inputs = jax.random.randint(label_key, (BATCH,), 0, CLASSES), {}

        def look(next_function, args, kwargs, context):
            if context.method_name == "standardize":
                inputs[context.module.path] = args[0]
            return next_function(*args, **kwargs)

        with nn.intercept_methods(look):
            model.generator.apply(variables, z, labels, train=True)
        return inputs

    found = {}
    for number in range(PASSES):
        for path, x in given(jnp.int32(number)).items():
            x = np.asarray(x, np.float64)
            for name, value in (("mean", x.mean(axis=(0, 1, 2))), ("var", x.var(axis=(0, 1, 2)))):
                found.setdefault((*path, name), []).append(value)
    return {path: np.stack(values) for path, values in found.items()}


@pytest.mark.parametrize("truncation", [None, Truncation("threshold", 0.5)])
def test_standing_statistics_are_means_of_batch_statistics(model, variables, truncation):
    standing = standing_statistics(model, CONFIG.z, variables, truncation, PASSES, BATCH)
    assert standing.keys() == variables.keys()
    assert all(standing[name] is variables[name] for name in standing if name != "batch_stats")
    found, passes = flatten_dict(standing["batch_stats"]), batch_statistics_of_passes(model, variables, truncation)
    assert found.keys() == passes.keys() and len(found) == 6  # of two BatchNorms in the block, and one at the end
    for path, statistics in passes.items():
        assert np.abs(statistics[0] - statistics[1]).max() > 1e-3, path  # each pass is another batch
        assert found[path].dtype == np.float32
        np.testing.assert_allclose(found[path], statistics.mean(axis=0), rtol=1e-4, atol=1e-5, err_msg=str(path))


def test_each_truncation_has_statistics_of_its_own(model, variables):
    found = [
        np.concatenate(
            jax.tree.leaves(standing_statistics(model, CONFIG.z, variables, cut, PASSES, BATCH)["batch_stats"])
        )
        for cut in (None, Truncation("threshold", 0.5), Truncation("threshold", 0.1), Truncation("std", 0.5))
    ]
    assert all(np.abs(a - b).max() > 1e-2 for i, a in enumerate(found) for b in found[:i])


def test_images_are_normalised_by_them(model, variables):
    standing = standing_statistics(model, CONFIG.z, variables, None, PASSES, BATCH)
    labels, indices = np.arange(4) % CLASSES, np.arange(4)
    images, w = Sampler(model, CONFIG.z, standing, per_device_batch=4)(labels, indices)
    stale, _ = Sampler(model, CONFIG.z, variables, per_device_batch=4)(labels, indices)
    assert (images != stale).any()
    # The same z in the network itself, outside training.
    keys = [jax.random.split(jax.random.fold_in(jax.random.key(0), i))[0] for i in indices]
    z = jnp.concatenate([CONFIG.z.draw(key, 1) for key in keys])
    expected = jax.jit(model.generator.apply)(standing, z, jnp.asarray(labels))
    difference = np.abs(images.astype(int) - np.asarray(quantize(expected)).astype(int))
    assert images.dtype == np.uint8 and images.shape == (4, 8, 8, 1) and difference.max() <= 1
    np.testing.assert_array_equal(w[:, WIDTH:], z[:, CONFIG.generator.z_dim // 2 :])
    np.testing.assert_allclose(w[:, :WIDTH], variables["params"]["shared"]["weight"][labels])


def test_statistics_are_computed_once(model, variables, monkeypatch):
    computed, compute = [], standing_module._compute
    monkeypatch.setattr(standing_module, "_compute", lambda *given: computed.append(given[3]) or compute(*given))
    cut = Truncation("threshold", 0.5)

    def statistics(variables, truncation, passes=PASSES):
        return standing_statistics(model, CONFIG.z, variables, truncation, passes, BATCH)["batch_stats"]

    first = statistics(variables, cut)
    copy = jax.tree.map(np.copy, variables)
    jax.tree.map(np.testing.assert_array_equal, statistics(copy, Truncation("threshold", 0.5)), first)
    assert computed == [cut]
    statistics(variables, None)
    statistics(variables, cut, passes=2)
    copy["params"]["shared"]["weight"][0, 0] += 1
    changed = statistics(copy, cut)
    assert computed == [cut, None, cut, cut]
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (changed, first)), strict=True))
    standing_module._cache.clear()
    jax.tree.map(np.testing.assert_array_equal, statistics(variables, cut), first)  # the same without the cache


def test_stylegan2_has_no_such_statistics():
    config = tiny_run.tiny_config()
    some = {"params": {}}
    assert standing_statistics(build_model(config, 1, CLASSES), config.z, some, None, PASSES, BATCH) is some
    assert not standing_module._cache


def test_truncations_change_the_latents(model, variables):
    labels, indices = np.zeros(32, int), np.arange(32)

    def latents(*truncation):
        cut = Truncation(*truncation) if truncation else None
        w = Sampler(model, CONFIG.z, variables, truncation=cut, per_device_batch=32)(labels, indices)[1]
        np.testing.assert_allclose(
            w[:, :WIDTH], np.broadcast_to(variables["params"]["shared"]["weight"][0], (32, WIDTH))
        )
        return w[:, WIDTH:]

    plain, wide, narrow = latents(), latents("threshold", 1.0), latents("threshold", 0.25)
    assert np.abs(plain).max() > 2.0
    for z, threshold in ((wide, 1.0), (narrow, 0.25)):
        assert 0.9 * threshold < np.abs(z).max() <= threshold
        np.testing.assert_array_equal(np.sign(z), np.sign(plain))
        np.testing.assert_array_equal(np.argsort(z.ravel()), np.argsort(plain.ravel()))  # the same z, squeezed
    np.testing.assert_allclose(latents("std", 0.5), 0.5 * plain, rtol=1e-6)
    scaled = latents("scaled", 0.5)
    assert 0.75 < np.abs(scaled).max() <= 1.0  # twice the scale
    np.testing.assert_allclose(scaled, 0.5 * latents("threshold", 2.0), rtol=1e-6)


def test_samples_depend_on_neither_batch_nor_devices(tmp_path):
    """The same bits from one program; on another number of devices, which is another program, the same up to rounding."""
    outputs = {devices: tmp_path / f"{devices}.npz" for devices in (1, 8)}
    processes = [
        subprocess.Popen(
            [sys.executable, HELPERS / "biggan_samples_program.py", out],
            env=tiny_run.environment(devices),
            stderr=subprocess.PIPE,
            text=True,
        )
        for devices, out in outputs.items()
    ]
    for process in processes:
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
    one, eight = (dict(np.load(out)) for out in outputs.values())
    assert (one["devices"], eight["devices"]) == (1, 8)
    for arrays in (one, eight):
        assert arrays["images/64"].shape == (64, 8, 8, 1) and arrays["images/64"].dtype == np.uint8
        assert len({x.tobytes() for x in arrays["images/64"]}) == 64
        for name, at_once in itertools.product(("images", "w"), ("1", "7", "backwards")):
            np.testing.assert_array_equal(arrays[f"{name}/{at_once}"], arrays[f"{name}/64"])
    assert one.keys() == eight.keys() and len(one) == 1 + 8 + 6
    for name in one.keys() - {"devices"}:
        if name.startswith("images"):
            differences = np.abs(one[name].astype(int) - eight[name])
            assert differences.max() <= 1 and (differences > 0).mean() <= 0.01
        else:
            np.testing.assert_allclose(one[name], eight[name], rtol=1e-5, atol=1e-6, err_msg=name)
