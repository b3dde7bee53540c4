"""Six whole training steps against the official implementation, with its draws: order, constants and every update.

In float64: Adam without momentum turns rounding of near-zero gradients into whole steps.
"""

import functools

import jax
import numpy as np
import optax
import pytest
from golden_numbers import Golden, nhwc
from stylegan2_state import tensors, variables

from noisytwins_jax.config import default_config, parse_config
from noisytwins_jax.training.model import FakeDraws, StyleGAN2Model, build_model
from noisytwins_jax.training.state import NetworkState, TrainState
from noisytwins_jax.training.step import PassDraws, TrainingStep

GOLDEN = "train_trajectory_base"


class StridedGroups(StyleGAN2Model):
    """The published minibatch-std groups are strided; ours are contiguous: permute the batch around the discriminator."""

    def discriminate(self, variables, images, labels, class_noise, update_stats=False):
        n, group = images.shape[0], self.discriminator.mbstd_group_size
        order = np.arange(n).reshape(group, n // group).T.ravel()
        logits, stats = super().discriminate(variables, images[order], labels[order], class_noise[order], update_stats)
        return logits[np.argsort(order)], stats


class StoredDraws(TrainingStep):
    """Takes draws, in the order they are asked for, from the argument that is otherwise the class table."""

    def draw_fakes(self, key, table, n, twins=False):
        self.passes = iter(table["passes"])
        return FakeDraws(*table["fakes"], None, None, None, key)

    def draw_pass(self, key, table, labels):
        return PassDraws(next(self.passes) if "fakes" in table else table["passes"][0], None)


def make_run(golden: Golden):
    c = golden.config
    config = default_config()
    config.batch_size = c["batch"]
    config.data.resolution = c["img_resolution"]
    config.up_impl = "phase"
    for network in (config.generator, config.discriminator):
        network.channel_base, network.channel_max = c["channel_base"], c["channel_max"]
    config.generator.z_dim, config.generator.w_dim = c["z_dim"], c["w_dim"]
    config.generator.mapping_layers = c["mapping_num_layers"]
    config.generator.noise_mode = c["noise_mode"]
    config.discriminator.architecture = c["d_architecture"]
    config.discriminator.mbstd_group_size = c["mbstd_group_size"]
    config.noisytwins.weight, config.noisytwins.gamma = c["noisytwins_lambda"], c["noisytwins_gamma"]
    config.noisytwins.start_step = c["noisytwins_start_iter"]
    config.r1.gamma, config.r1.interval = c["r1_lambda"], c["d_reg_interval"]
    config.path_length.weight, config.path_length.interval = float(c["pl_weight"]), c["g_reg_interval"]
    config.ema.kimg = float(c["ema_kimg"])
    return parse_config(config)


def make_state(golden: Golden, step: TrainingStep) -> TrainState:
    def network(module: str, optimizer: optax.GradientTransformation) -> NetworkState:
        tree = jax.tree.map(lambda x: jax.numpy.asarray(x, np.float64), variables(golden.weights(module)))
        params = tree.pop("params")
        return NetworkState(params, tree, optimizer.init(params), jax.numpy.int32(0))

    generator = network("G", step.generator_optimizer)
    ema = jax.tree.map(jax.numpy.copy, generator.variables)
    discriminator = network("D", step.discriminator_optimizer)
    return TrainState(jax.random.key(0), generator, discriminator, ema, jax.numpy.float64(0.0))


def sparing_the_last_bias(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """R1 does not reach the discriminator's last bias: PyTorch then leaves its Adam state alone, where ours decays it.

    The one difference between our updates and the published ones; taken out here, so that all else can be exact.
    """

    def update(gradient, state, params=None):
        step, moved = optimizer.update(gradient, state, params)
        reached = jax.numpy.any(jax.tree.leaves(gradient)[0] != 0)
        return jax.tree.map(lambda new: jax.numpy.where(reached, new, 0), step), jax.tree.map(
            lambda new, old: jax.numpy.where(reached, new, old), moved, state
        )

    def label(params):
        def is_last_bias(path, _):
            return "spared" if jax.tree_util.keystr(path) == "['output']['bias']" else "plain"

        return jax.tree_util.tree_map_with_path(is_last_bias, params)

    spared = optax.GradientTransformation(optimizer.init, update)
    return optax.partition({"spared": spared, "plain": optimizer}, label)


@pytest.fixture(scope="module")
def trajectory():
    with jax.enable_x64(True):
        return run_steps(Golden(GOLDEN))


def run_steps(golden: Golden):
    config = make_run(golden)
    plain = build_model(config, 3, golden.config["num_classes"])
    networks = (network.clone(dtype=np.float64) for network in (plain.generator, plain.discriminator))
    step = StoredDraws(config, StridedGroups(*networks, plain.noise_mode))
    step.discriminator_optimizer = sparing_the_last_bias(step.discriminator_optimizer)
    std = golden["out/lambda_c"] * golden.config["emb_noise_std"]
    updates = ("generator_update", "path_length_update", "average", "discriminator_update", "r1_update")
    run = {name: jax.jit(getattr(step, name)) for name in updates}

    def noise(name, index, labels):
        return golden[f"in/{name}"][index] * std[labels][:, None]

    state, traces = make_state(golden, step), []
    for t in range(golden.config["iterations"]):
        trace = {}
        labels = np.tile(golden["in/labels_g"][t], 2)
        fakes = (np.tile(golden["in/z_g"][t], (2, 1)), labels, noise("g_noise_g", t, labels))
        state, metrics = run["generator_update"](state, {"fakes": fakes, "passes": [noise("d_noise_g", t, labels)]})
        trace["g_adv"] = metrics["loss/generator"]
        trace["nt_loss"] = config.noisytwins.weight * metrics["loss/noisytwins"]
        if t % config.path_length.interval == 0:
            event = t // config.path_length.interval
            labels = golden["in/labels_pl"][event]
            table = {"fakes": (golden["in/z_pl"][event], labels, noise("g_noise_pl", event, labels)), "passes": []}
            path_length_noise = nhwc(golden["in/pl_noise_unit"][event])
            state, loss = jax.jit(functools.partial(path_length, step))(state, table, path_length_noise)
            trace["pl_reg_loss"] = loss
        trace["pl_mean"] = state.path_length_mean
        state = run["average"](state)
        trace["ema_probe"] = np.abs(state.ema["params"]["synthesis"]["b4"]["const"]).mean()

        fake_labels, real_labels = golden["in/labels_d"][t], golden["in/labels_real"][t]
        fakes = (golden["in/z_d"][t], fake_labels, noise("g_noise_d", t, fake_labels))
        passes = [noise("d_noise_real", t, real_labels), noise("d_noise_fake", t, fake_labels)]
        batch = {"image": (nhwc(golden["in/real_images"][t]).astype(np.float64) + 1) * 127.5, "label": real_labels}
        state, metrics = run["discriminator_update"](state, batch, {"fakes": fakes, "passes": passes})
        trace["d_adv"] = metrics["loss/discriminator"]
        trace["logit_real_mean"], trace["logit_fake_mean"] = metrics["logits/real"], metrics["logits/fake"]
        if t % config.r1.interval == 0:
            draws = {"passes": [noise("d_noise_r1", t // config.r1.interval, real_labels)]}
            state, metrics = run["r1_update"](state, batch, draws)
            trace["r1_penalty"] = metrics["loss/r1"]
        traces.append({name: float(value) for name, value in trace.items()})
    return golden, state, traces


def path_length(step, state, table, noise):
    """`TrainingStep.path_length_update` with its image noise given."""
    fakes = step.draw_fakes(state.key, table, len(noise))
    (loss, mean), gradients = jax.value_and_grad(step.path_length_loss, has_aux=True)(
        state.generator.params, state, fakes, noise
    )
    network = state.generator
    updates, opt_state = step.generator_optimizer.update(gradients, network.opt_state, network.params)
    network = network.replace(params=optax.apply_updates(network.params, updates), opt_state=opt_state)
    return state.replace(generator=network, path_length_mean=mean), loss


@pytest.mark.slow
def test_losses_of_every_step(trajectory):
    golden, _, traces = trajectory
    for name in sorted({name for trace in traces for name in trace}):
        expected = golden[f"out/trace/{name}"]
        actual = [trace.get(name, np.nan) for trace in traces]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["final_G", "final_G_ema", "final_D"])
def test_final_tensors(trajectory, name):
    golden, state, _ = trajectory
    params = {
        "final_G": state.generator.params,
        "final_G_ema": state.ema["params"],
        "final_D": state.discriminator.params,
    }[name]
    order = golden.order(name)
    trained = [key for key in order if not key.endswith(("w_avg", "noise_const", "resample_filter"))]
    statistics = [(value.mean(), value.std()) for value in tensors(params, trained)]
    expected = golden[f"out/{name}/mean_std"][[order.index(key) for key in trained]]
    scale = np.maximum(expected[:, 1:], np.abs(expected[:, :1]))
    assert (np.abs(np.array(statistics) - expected) <= 1e-3 * np.maximum(scale, 1e-3)).all()


@pytest.mark.slow
def test_running_mean_of_w(trajectory):
    golden, state, _ = trajectory
    order = golden.order("final_G")
    w_avg = np.asarray(state.generator.stats["buffers"]["mapping"]["w_avg"])
    np.testing.assert_allclose(
        w_avg[:8], golden["out/final_G/first8"][order.index("mapping.w_avg")], rtol=1e-4, atol=1e-6
    )
