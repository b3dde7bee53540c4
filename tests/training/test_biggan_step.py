"""A BigGAN step: what each forward pass moves, what the class noise and the options reach, and interventions."""

import json
import os
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

from noisytwins_jax.config.groups import InterventionConfig
from noisytwins_jax.losses.base import Progress
from noisytwins_jax.models import singular_values
from noisytwins_jax.models.model import DiscriminatorInputs
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.compiled_step import CompiledStep
from noisytwins_jax.training.interventions import intervene, with_rates
from noisytwins_jax.training.random_inputs import RandomInputs, class_table
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.step_metrics import fetch_in_order
from noisytwins_jax.utils.sharding import Layout

COUNTS = np.array([50, 20, 10, 5])
LOOKS = {"spectra.interval": 2, "spectra.iterations": 8, "spectra.clamp": 4.0}
RUN = {"biggan.dropout": 0.1, "optimizer.epsilon": 1e-3, "optimizer.generator_lr": 0.005, **LOOKS}


def make_step(**changes):
    config = tiny_biggan.tiny_config(**changes)
    return TrainingStep(config, build_model(config, 1, len(COUNTS)))


def batches(n=8):
    rng = np.random.default_rng(0)
    while True:
        images = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
        yield {"image": images, "label": rng.integers(0, len(COUNTS), n, dtype=np.int32)}


class Run:
    """Compiled programs of a run, and its state before the first step."""

    def __init__(self, **changes):
        self.step, self.layout = make_step(**RUN, **changes), Layout(jax.devices()[:1])
        self.table = class_table(self.step.config, COUNTS)
        self.programs = CompiledStep(self.step, self.table)
        state = jax.jit(lambda: self._start())()
        self._key, self._start_state = (
            np.asarray(jax.random.key_data(state.key)),
            jax.device_get(state.replace(key=None)),
        )

    def _start(self):
        state = self.step.init(0)
        generator, discriminator = (
            x.replace(params=tiny_biggan.perturbed(x.params, seed))
            for seed, x in enumerate((state.generator, state.discriminator))
        )
        return state.replace(generator=generator, discriminator=discriminator)

    def start(self):
        """A new copy: programs keep what they are given."""
        state = self._start_state.replace(key=jax.random.wrap_key_data(self._key))
        return jax.device_put(state, self.layout.replicated)

    def update(self, name, state):
        """The state after one update, and that before it on the host."""
        before = jax.device_get(state.replace(key=None))
        batch = (self.layout.put_batch(next(batches())),) if name == "discriminator" else ()
        return self.programs.programs[name](state, *batch, self.programs.table)[0], before


@pytest.fixture(scope="module")
def run():
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        return Run()
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def flat(tree):
    return {"/".join(path): np.asarray(x) for path, x in flatten_dict(tree).items()}


def same(one, other):
    one, other = (jax.tree.leaves(jax.device_get(x)) for x in (one, other))
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# --- devices ---------------------------------------------------------------------------------------------------------


def on_eight_devices(*arguments):
    program, helpers = HELPERS / "biggan_step_program.py", HELPERS
    path = os.pathsep.join(filter(None, [str(helpers), os.environ.get("PYTHONPATH")]))
    environment = {**tiny_run.environment(8), "JAX_ENABLE_X64": "1", "PYTHONPATH": path}
    result = subprocess.run(
        [sys.executable, program, *arguments], env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["devices"] == 8
    assert len(report["moved"]) == 8 and min(report["moved"].values()) > 1e-4, report["moved"]
    for found in report["found"].values():
        assert found["dtypes"] == ["float64"]
        assert set(report["moved"]) <= set(found["differences"])
        assert max(found["differences"].values()) < 1e-10, found["differences"]
        assert max(found["metrics"].values()) < 1e-10, found["metrics"]
    return report["found"]


@pytest.mark.slow
def test_a_step_is_the_same_on_any_devices():
    """Moments of BatchNorm, vectors of spectral normalisation, optimisers and averages, with a state that is shared."""
    assert on_eight_devices("plain", "4")["4"]["split"] > 20


@pytest.mark.slow
def test_with_attention_and_spectra_too():
    found = on_eight_devices("everything", "1", "8")
    assert found["1"]["split"] == 0 < found["8"]["split"]
    assert all("spectra/generator/linear/weight/0" in found[fsdp]["metrics"] for fsdp in found)


# --- statistics ------------------------------------------------------------------------------------------------------


def check_moved(network, before):
    """Every u made one step of power iteration with the weights that it went with."""
    moved = tiny_biggan.power_iteration({"params": before.params, "spectral": before.stats["spectral"]})
    found, old = flat(network.stats["spectral"]), flat(before.stats["spectral"])
    assert found.keys() == moved.keys()
    for name, expected in moved.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
    assert max(np.abs(found[name] - old[name]).max() for name in found) > 1e-2


def test_each_forward_in_training_moves_u_and_the_running_moments_once(run):
    state, before = run.update("generator", run.start())
    check_moved(state.generator, before.generator)
    assert not same(state.generator.stats["batch_stats"], before.generator.stats["batch_stats"])
    assert same(state.discriminator, before.discriminator)  # the generator's update only asks it

    state, before = run.update("discriminator", state)
    check_moved(state.generator, before.generator)  # with the parameters of its own update
    check_moved(state.discriminator, before.discriminator)  # once, in the one pass over real and generated images
    assert not same(state.generator.stats["batch_stats"], before.generator.stats["batch_stats"])
    assert same(state.generator.params, before.generator.params)

    state, before = run.update("average", state)
    assert same(state.generator, before.generator)
    assert same(
        [state.ema["spectral"], state.ema["batch_stats"]],
        [before.generator.stats[x] for x in ("spectral", "batch_stats")],
    )


def test_one_pass_says_what_two_passes_say():
    step = make_step()
    model, rng = step.model, np.random.default_rng(0)

    def inputs():
        images = jnp.asarray(rng.standard_normal((8, 8, 8, 1)), jnp.float32)
        return DiscriminatorInputs(images, jnp.asarray(rng.integers(0, 4, 8)), jnp.zeros((8, 0)))

    @jax.jit
    def said(real, fake):
        variables = model.init(jax.random.key(0))[1]
        two = [model.discriminate(variables, shown, update_stats=True) for shown in (real, fake)]
        return two, model.discriminate_both(variables, real, fake)

    two, (*one, stats) = said(inputs(), inputs())
    for (expected, u), found in zip(two, one, strict=True):
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
        jax.tree.map(np.testing.assert_array_equal, stats, u)  # of the same u
    assert np.abs(two[0][0].logits - two[1][0].logits).max() > 1e-2


def test_the_average_starts_late():
    step = make_step(**{"ema.start_step": 2, "ema.kimg": 0.05, "ema.rampup": None})
    state = jax.eval_shape(step.init, 0)
    network = {"params": {"a": jnp.array([1.0])}, "spectral": {}, "batch_stats": {"b": jnp.array([3.0])}}
    state = state.replace(ema={**network, "params": {"a": jnp.array([5.0])}}, key=None)
    generator = state.generator.replace(
        params=network["params"], stats={"spectral": {}, "batch_stats": network["batch_stats"]}
    )
    found = []
    for updates in (1, 2, 3):  # done, the present one included
        moved, _ = step.update_average(state.replace(generator=generator.replace(updates=jnp.int32(updates))), None)
        found.append(float(moved.ema["params"]["a"][0]))
    decay = 0.5 ** (8 / 50)
    np.testing.assert_allclose(found, [1.0, 1.0, 1.0 + decay * 4.0], rtol=1e-6)


# --- draws and losses ------------------------------------------------------------------------------------------------


class RecordingInputs(RandomInputs):
    """Records the standard deviation of the latents that it samples."""

    def generator_inputs(self, key, table, n, twins=False, std=1.0, labels=None):
        self.stds.append(std)
        return super().generator_inputs(key, table, n, twins, std, labels)


def test_latents_are_annealed_in_both_updates():
    config = tiny_biggan.tiny_config(**{"latents.anneal_kimg": 0.08, "latents.start_std": 3.0})
    step = TrainingStep(config, build_model(config, 1, len(COUNTS)))
    step.random = RecordingInputs(config, step.model, step.layout)
    table, batch = jax.tree.map(jnp.asarray, class_table(config, COUNTS)), next(batches())

    def stds(updates):
        step.random.stds, state = [], step.init(0)
        generator, discriminator = (x.replace(updates=updates) for x in (state.generator, state.discriminator))
        state = state.replace(generator=generator, discriminator=discriminator)
        step.update_generator(state, table)
        step.update_discriminator(state, batch, table)
        return step.random.stds

    program = jax.jit(stds)
    for updates, expected in ((0, 3.0), (5, 2.0), (10, 1.0), (50, 1.0)):  # 8 images each
        np.testing.assert_allclose(program(jnp.int32(updates)), [expected, expected], rtol=1e-6)

    key, drawn = jax.random.key(0), {}
    for std in (1.0, 3.0):
        drawn[std] = RandomInputs.generator_inputs(step.random, key, table, 8, std=std)
    np.testing.assert_allclose(drawn[3.0].z, 3.0 * drawn[1.0].z, rtol=1e-6)
    np.testing.assert_array_equal(drawn[3.0].labels, drawn[1.0].labels)
    assert make_step().random.latent_std(Progress(jnp.int32(0), 0.0)) == 1.0


def test_the_margin_is_that_of_the_hinge_loss():
    real, fake = jnp.array([-1.0, 0.5, 2.0, 4.0]), jnp.array([-4.0, -2.0, 0.0, 1.0])
    for margin in (1.0, 3.0):
        loss = make_step(loss_margin=margin).adversarial
        expected = np.maximum(margin - real, 0) + np.maximum(margin + fake, 0)
        np.testing.assert_allclose(loss.discriminator(real, fake), expected)
        np.testing.assert_array_equal(loss.generator(fake), -fake)


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_features_are_dropped_in_both_updates_and_nowhere_else(dropout):
    step = make_step(**{"biggan.dropout": dropout})
    table, seen = class_table(step.config, COUNTS), []

    def look(next_function, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            seen.append((context.module.rate, kwargs["deterministic"]))
        return next_function(*args, **kwargs)

    state = jax.eval_shape(step.init, 0)
    with nn.intercept_methods(look):
        jax.eval_shape(step.update_generator, state, table)
        jax.eval_shape(step.update_discriminator, state, next(batches()), table)
    assert seen == [(dropout, dropout == 0.0)] * 2  # one pass of the discriminator each

    variables = jax.jit(step.model.init)(jax.random.key(0))[1]
    images, labels = jax.random.normal(jax.random.key(1), (8, 8, 8, 1)), jnp.arange(8) % 4

    @jax.jit
    def logits(key):
        inputs = step.random.discriminator_inputs(key, table, images, labels)._replace(augment_key=None)
        return step.model.discriminate(variables, inputs)[0].logits

    one, again, other = (logits(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (np.abs(one - other).max() > 1e-3) == (dropout > 0)


def test_class_noise_is_on_the_embedding_alone_and_twins_share_the_rest():
    step = make_step()
    width = step.config.biggan.embedding_dim
    table = jax.tree.map(jnp.asarray, class_table(step.config, COUNTS))

    @jax.jit
    def drawn():
        variables = step.model.init(jax.random.key(0))[0]
        draws = step.random.generator_inputs(jax.random.key(1), table, 8, twins=True)
        w, (z, embedding), stats = step.model.map(variables, draws, update_stats=True)
        assert stats == {}
        return draws._replace(key=None), w, z, embedding, step.model.latent_w(variables, draws.z, draws.labels)

    draws, w, z, embedding, plain = jax.device_get(drawn())
    assert w.shape == (8, width + step.config.generator.z_dim // 2)  # the chunk of the one block
    a, b = w[:4], w[4:]
    np.testing.assert_array_equal(draws.labels[:4], draws.labels[4:])
    np.testing.assert_array_equal(z[:4], z[4:])
    np.testing.assert_array_equal(a[:, width:], b[:, width:])
    assert (a[:, :width] != b[:, :width]).all()
    np.testing.assert_allclose(w[:, :width] - plain[:, :width], draws.class_noise, atol=1e-6)
    np.testing.assert_array_equal(w[:, width:], plain[:, width:])
    np.testing.assert_array_equal(w[:, :width], embedding)


def test_the_loss_of_twins_reaches_the_shared_embedding():
    step = make_step()
    table = jax.tree.map(jnp.asarray, class_table(step.config, COUNTS))

    @jax.jit
    def gradients():
        state = step.init(0)
        fakes = step.random.generator_inputs(jax.random.key(1), table, 8, twins=True)
        progress = Progress(jnp.int32(0), jnp.float32(0.0))

        def twins_loss(params):
            return step.generator_loss(params, state, table, fakes, jax.random.key(2), progress)[1][0][
                "loss/generator/noisytwins"
            ]

        return fakes.labels, jax.grad(twins_loss)(state.generator.params)

    labels, found = jax.device_get(gradients())
    rows = np.abs(found.pop("shared")["weight"]).max(axis=1)
    present = np.isin(np.arange(len(COUNTS)), labels)
    assert present.any() and (rows[present] > 1e-3).all() and (rows[~present] == 0).all()
    assert not any(np.abs(x).max() for x in jax.tree.leaves(found))  # W has no other parameters


# --- interventions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frozen", "other"), [("generator", "discriminator"), ("discriminator", "generator")])
def test_a_frozen_network_stays_as_it_is(run, frozen, other):
    state = intervene(run.start(), InterventionConfig(freeze=frozen))
    before = jax.device_get(state.replace(key=None))
    for step in (1, 2):  # no look at the spectra in the first, and none too large in the second
        state, _ = run.programs(state, step, batches())
    assert same(getattr(state, frozen).params, getattr(before, frozen).params)
    old, new = flat(getattr(before, other).params), flat(getattr(state, other).params)
    assert all(np.abs(new[name] - x).max() > 0 for name, x in old.items() if x.ndim > 1)


def test_optimisers_forget(run):
    state, _ = run.programs(run.start(), 1, batches())
    kept = intervene(state, InterventionConfig(reset_momenta=False))
    networks = ("generator", "discriminator")
    assert all(same(getattr(kept, name).opt_state, getattr(state, name).opt_state) for name in networks)
    assert all(any(np.any(x) for x in jax.tree.leaves(getattr(state, name).opt_state)) for name in networks)
    reset = intervene(state, InterventionConfig(reset_momenta=True))
    for name in networks:
        assert not any(np.any(x) for x in jax.tree.leaves(getattr(reset, name).opt_state))
        assert same(getattr(reset, name).params, getattr(state, name).params)
    run.programs(reset, 2, batches())  # lies as the programs expect


def test_rates_multiply(run):
    changes = {}
    for factors in ((1.0, 1.0), (0.5, 0.25)):
        state = intervene(run.start(), InterventionConfig(generator_lr=factors[0], discriminator_lr=factors[1]))
        before = jax.device_get(state.replace(key=None))
        # The discriminator's update does not see that of the generator: each from the start.
        generator, _ = run.update("generator", state)
        state = intervene(run.start(), InterventionConfig(generator_lr=factors[0], discriminator_lr=factors[1]))
        discriminator, _ = run.update("discriminator", state)
        after = generator.generator.params, discriminator.discriminator.params
        old = before.generator.params, before.discriminator.params
        changes[factors] = jax.tree.map(lambda a, b: np.asarray(a) - b, after, old)
    for i, factor in enumerate((0.5, 0.25)):
        whole, part = flat(changes[1.0, 1.0][i]), flat(changes[0.5, 0.25][i])
        assert max(np.abs(x).max() for x in whole.values()) > 1e-3
        for name, x in whole.items():
            np.testing.assert_allclose(part[name], factor * x, atol=1e-6, err_msg=name)


# --- spectra ---------------------------------------------------------------------------------------------------------


def test_singular_values_are_those_of_the_weights(run):
    state = run.start()
    for step in range(9):  # looks in every other one, the last among them
        state, reported = run.programs(state, step, batches())
    assert sum("spectra/generator/linear/weight/0" in update.metrics for update in reported) == 1
    numbers = fetch_in_order(reported)[-1][1]
    logged = {name: value for name, value in numbers.items() if name.startswith("spectra/")}
    expected = {}
    for name in ("generator", "discriminator"):
        for path, matrix in singular_values.weight_matrices(getattr(state, name).params).items():
            values = np.linalg.svd(np.asarray(matrix), compute_uv=False)[:3]
            expected |= {f"spectra/{name}/{path}/{i}": x for i, x in enumerate(values)}
    assert logged.keys() == expected.keys()
    largest = [name for name in expected if name.endswith("/0")]
    assert max(abs(expected[name] - 1) for name in largest) > 0.1  # not as they start
    for name in largest:
        assert logged[name] == pytest.approx(expected[name], rel=1e-3), name
    norms = np.linalg.norm(np.asarray(state.generator.params["shared"]["weight"]), axis=1)
    found = [numbers[f"embedding_norm/{name}"] for name in ("min", "mean", "max")]
    np.testing.assert_allclose(found, [norms.min(), norms.mean(), norms.max()], rtol=1e-5)


def test_the_clamp_holds(run):
    """A weight of each network is given a singular value that is too large, and keeps to the clamp from then on."""
    limit, state = run.step.config.spectra.clamp, run.start()
    rng = np.random.default_rng(0)

    def sigma(network):
        return max(
            np.linalg.svd(np.asarray(x), compute_uv=False)[0]
            for x in singular_values.weight_matrices(network.params).values()
        )

    def enlarged(network):
        params, block = dict(network.params), dict(network.params["blocks_0"])
        weight = np.asarray(block["conv2"]["weight"])
        outer = np.outer(rng.standard_normal(weight[..., 0].size), rng.standard_normal(weight.shape[-1]))
        large = weight + 10 * (outer / np.linalg.norm(outer)).reshape(weight.shape)
        block["conv2"] = {**block["conv2"], "weight": jax.device_put(large.astype(np.float32), run.layout.replicated)}
        return network.replace(params=params | {"blocks_0": block})

    state = state.replace(generator=enlarged(state.generator), discriminator=enlarged(state.discriminator))
    assert min(sigma(state.generator), sigma(state.discriminator)) > 2 * limit
    for step in range(0, 6, 2):  # looks after each of these
        state, reported = run.programs(state, step, batches())
        assert max(sigma(state.generator), sigma(state.discriminator)) < limit * 1.001
        numbers = fetch_in_order(reported)[-1][1]
        found = numbers["spectra/generator/blocks_0/conv2/weight/0"]
        assert found > 2 * limit if step == 0 else found < 1.2 * limit  # as it was before it was clamped
    state = with_rates(
        state.replace(generator=enlarged(state.generator)), generator=0.0, discriminator=1.0, reset_momenta=False
    )
    state, _ = run.programs(state, 6, batches())
    assert sigma(state.generator) > 2 * limit  # frozen
    assert sigma(state.discriminator) < limit * 1.001


# --- several steps in one program ------------------------------------------------------------------------------------


@pytest.mark.slow  # as in test_phases, with the states of BigGAN
def test_several_steps_in_one_program_are_the_same_steps(fast_compilation):
    run = Run(steps_per_dispatch=2)

    def train(together):
        state, reported, source = run.start(), [], batches()
        for step in range(0, 4, 2 if together else 1):
            state, some = run.programs(state, step, source, 2 if together else 1)
            reported += some
        return jax.device_get(state.replace(key=None)), fetch_in_order(reported)

    (one, reports), (several, reports_several) = train(False), train(True)
    assert [(step, set(numbers)) for step, numbers in reports] == [(s, set(n)) for s, n in reports_several]
    assert sum("spectra/generator/linear/weight/0" in numbers for _, numbers in reports) == 2
    for (number, want), (_, have) in zip(reports, reports_several, strict=True):
        for name in want:
            np.testing.assert_allclose(have[name], want[name], rtol=2e-3, atol=2e-4, err_msg=f"{name} of step {number}")
    want, have = tiny_run.arrays(one), tiny_run.arrays(several)
    for name in want:
        np.testing.assert_allclose(have[name], want[name], rtol=0.01, atol=1e-3, err_msg=name)
