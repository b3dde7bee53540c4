"""Micro-batches: the step of the whole batch, with the activations of a part of it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_biggan
import tiny_run
from test_devices import measure

from noisytwins_jax.data.registry import load_data
from noisytwins_jax.training import memory as training_memory
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.compiled_step import CompiledStep, check_batch
from noisytwins_jax.training.memory import MemoryCheck, largest_need
from noisytwins_jax.training.micro_batches import in_micro_batches, micro_batch_rows
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils import device_memory
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

ONE = Layout(jax.devices()[:1])
PROGRAMS = ["generator", "discriminator", "r1", "path_length"]


@pytest.mark.parametrize(
    ("devices", "program", "variants"),
    [
        (4, "generator", ["accumulation=4,remat=1"]),
        *(
            pytest.param(devices, program, ["accumulation=2", "accumulation=4", "remat=1"], marks=pytest.mark.slow)
            for devices in (1, 4)
            for program in PROGRAMS
        ),
    ],
)
def test_gradients_are_those_of_one_batch(devices, program, variants):
    """In float64, with twins, LeCam, groups of minibatch standard deviation, per-pixel noise and augmentation."""
    for found in measure("micro", program, *variants, devices=devices).values():
        assert found["dtypes"] == ["float64"] and found["norm"] > 1e-4
        assert found["gradient"] < 1e-10 and max(found["metrics"].values()) < 1e-10


def test_second_order_gradients_and_what_is_not_differentiated():
    def network(shared, rows):
        weight, key = shared
        x, labels = rows
        return jnp.tanh(x @ weight) * labels[:, None], {"mean": jax.random.uniform(key)}

    rng = np.random.default_rng(0)
    weight, x = jnp.asarray(rng.standard_normal((3, 2))), jnp.asarray(rng.standard_normal((6, 3)))
    shared, labels = jax.random.key(0), jnp.arange(6)

    def penalty(function, weight, x):
        def total(x):
            return jnp.square(function((weight, shared), (x, labels))[0]).sum()

        return jnp.square(jax.grad(total)(x)).sum()

    expected = jax.grad(penalty, (1, 2))(network, weight, x)
    found = jax.jit(jax.grad(lambda w, x: penalty(in_micro_batches(network, 3, ONE), w, x), (0, 1)))(weight, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize(
    ("fields", "rows"),
    [({}, 32), ({"accumulation": 4}, 8), ({"device_batch": 12}, 8), ({"device_batch": 100}, 32)],
)
def test_rows_of_a_micro_batch(fields, rows):
    config = tiny_run.tiny_config(batch_size=32, **{"discriminator.mbstd_group_size": 4, **fields})
    assert micro_batch_rows(config, ONE) == rows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"accumulation": 3},
            r"accumulation=3 does not divide the 32 images .* groups of 8; give 2 or 4, or smaller groups \(",
        ),
        (
            {"accumulation": 8},
            r"accumulation=8 does not divide .* whole minibatch-std groups of 8; give 4, or smaller groups \(",
        ),
        ({"device_batch": 7}, r"device_batch=7 is smaller than a minibatch-std group of 8 images; give at least 8"),
    ],
)
def test_micro_batches_that_cannot_be(fields, message):
    config = tiny_run.tiny_config(batch_size=32, **{"discriminator.mbstd_group_size": 8, **fields})
    with pytest.raises(UserError, match=message):
        check_batch(config, ONE)


def test_one_of_the_two_fields():
    with pytest.raises(UserError, match=r"config\.accumulation and config\.device_batch both set"):
        tiny_run.tiny_config(accumulation=2, device_batch=4)


def compiled_programs(config):
    step = TrainingStep(config, build_model(config, 1, 4), ONE)
    return step, CompiledStep(step, class_table(config, np.array([50, 20, 10, 5])))


@pytest.mark.slow
def test_batch_statistics_are_means_over_micro_batches():
    """BigGAN's: each micro-batch is normalised by its own; spectral norms and what is logged stay those of a step."""
    batch = {"image": np.zeros((8, 8, 8, 1), np.uint8), "label": np.zeros(8, np.int32)}
    states = {}
    for accumulation in (1, 2):
        step, compiled = compiled_programs(tiny_biggan.tiny_config(accumulation=accumulation))
        state, _ = compiled(jax.jit(step.init, static_argnums=0)(0), 0, iter([batch]))
        states[accumulation] = jax.tree.map(np.asarray, state.generator.stats)
    spectral = [jax.tree.leaves(states[n]["spectral"]) for n in (1, 2)]
    # After the first half of a step, whose weights are the same; later ones follow other gradients.
    assert all(a.shape == b.shape and np.isfinite(b).all() for a, b in zip(*spectral, strict=True))
    means = [np.concatenate([x.ravel() for x in jax.tree.leaves(states[n]["batch_stats"])]) for n in (1, 2)]
    assert np.isfinite(means[1]).all() and not np.array_equal(*means)
    np.testing.assert_allclose(*means, rtol=0.3, atol=0.1)


class Planned:
    """A compiled program, of which only its memory plan is wanted."""

    def __init__(self, argument, output, alias, temp):
        sizes = {"argument": argument, "output": output, "alias": alias, "temp": temp}
        self.plan = types.SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})

    def memory_analysis(self):
        return self.plan


PROGRAMS_PLANNED = {"generator": Planned(100e6, 101e6, 100e6, 1e9), "r1": Planned(100e6, 101e6, 100e6, 500e6)}


@pytest.fixture
def memory(monkeypatch):
    """A check whose other configurations need a gigabyte, less for more micro-batches and with remat."""
    config = tiny_run.tiny_config(batch_size=32, **{"discriminator.mbstd_group_size": 4})
    run = types.SimpleNamespace(config=config, step=types.SimpleNamespace(layout=ONE))

    def compile_other(self, config):
        return {"generator": Planned(100e6, 0, 0, 1e9 / config.accumulation / (1.5 if config.remat else 1))}

    monkeypatch.setattr(MemoryCheck, "_compile", compile_other)
    return MemoryCheck(run, None)


def test_memory_is_said(memory, monkeypatch):
    assert largest_need(PROGRAMS_PLANNED) == (1101e6, "generator")
    for place in (training_memory, device_memory):
        monkeypatch.setattr(place, "available_bytes", lambda: 8e9)
    line = "Training needs 1.1 GB of a device's 8 GB of memory (program: generator)."
    assert memory.check(PROGRAMS_PLANNED) == line


def test_what_does_not_fit_is_refused_with_what_would(memory, monkeypatch, capsys):
    monkeypatch.setattr(training_memory, "available_bytes", lambda: 400e6)
    with pytest.raises(UserError) as error:
        memory.check(PROGRAMS_PLANNED)
    assert str(error.value) == (
        "The training step needs 1.1 GB (generator) on a device that has 400 MB: --config.remat=True needs 767 MB; "
        "--config.accumulation=2 needs 600 MB; --config.accumulation=4 needs 350 MB and fits; a smaller --config.batch_size "
        "needs less, too."
    )
    assert "Compiling it with --config.remat=True" in capsys.readouterr().err


@pytest.mark.slow
def test_other_settings_are_compiled_and_need_less(tmp_path):
    """The plans of real programs: the largest holds the state at least, and half of the activations in micro-batches."""
    config = tiny_run.tiny_config(batch_size=32, **{"path_length.weight": 0.0, "noisytwins.weight": 0.0})
    step, compiled = compiled_programs(config)
    run = types.SimpleNamespace(config=config, step=step, splits=load_data(config.data))
    needs = {}
    for accumulation in (1, 2, 4):
        programs = MemoryCheck(run, compiled.table)._compile(dataclasses.replace(config, accumulation=accumulation))
        needs[accumulation] = largest_need(programs).bytes
    state = sum(x.nbytes for x in jax.tree.leaves(step.init(0).generator.params))
    assert device_memory.available_bytes() > needs[1] > needs[2] > needs[4] > 4 * state


def test_running_out_of_memory_is_explained(memory, monkeypatch):
    monkeypatch.setattr(MemoryCheck, "_smaller_settings", lambda self: iter([]))
    with pytest.raises(UserError, match="needs more memory on a device that has"), memory.explain():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte.")
    with pytest.raises(jax.errors.JaxRuntimeError, match="other"), memory.explain():
        raise jax.errors.JaxRuntimeError("INTERNAL: other")
