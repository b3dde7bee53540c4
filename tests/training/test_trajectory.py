"""Six whole training steps against the official implementation, with its draws: order, constants and every update.

In float64: Adam without momentum turns rounding of near-zero gradients into whole steps.
"""

import jax
import numpy as np
import optax
import pytest
from golden_numbers import Golden, nhwc
from stylegan2_state import tensors, variables

from noisytwins_jax.config import default_config, parse_config
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs
from noisytwins_jax.models.stylegan2_model import StyleGAN2Model
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.phases import build_phases
from noisytwins_jax.training.random_inputs import ClassTable, RandomInputs
from noisytwins_jax.training.state import AdaState, NetworkState, Rates, TrainState
from noisytwins_jax.training.step import TrainingStep

GOLDEN = ("train_trajectory_base", "train_trajectory_lecam_rampup")


class StridedGroups(StyleGAN2Model):
    """The published minibatch-std groups are strided; ours are contiguous: permute the batch around the discriminator."""

    def discriminate(self, variables, inputs, update_stats=False):
        order = self.order(inputs.labels)
        found, stats = super().discriminate(variables, jax.tree.map(lambda x: x[order], inputs))
        return found._replace(logits=found.logits[np.argsort(order)]), stats

    def discriminate_both(self, variables, real, fake):
        order, plain = self.order(real.labels), StyleGAN2Model(self.generator, self.discriminator, self.noise_mode)
        real, fake = (jax.tree.map(lambda x: x[order], inputs) for inputs in (real, fake))
        *both, stats = plain.discriminate_both(variables, real, fake)
        return *(found._replace(logits=found.logits[np.argsort(order)]) for found in both), stats

    def order(self, labels):
        n, group = len(labels), self.discriminator.mbstd_group_size
        return np.arange(n).reshape(group, n // group).T.ravel()


class StoredInputs(RandomInputs):
    """Takes random inputs, in the order they are asked for, from the place of the class table's noise."""

    def generator_inputs(self, key, table, n, twins=False, std=1.0, labels=None):
        self.passes, self.noise = iter(table.noise_std["passes"]), table.noise_std.get("noise")
        return GeneratorInputs(*table.noise_std["fakes"], None, None, None, key)

    def discriminator_inputs(self, key, table, images, labels, low_images=None, instances=None):
        stored = table.noise_std
        noise = next(self.passes) if "fakes" in stored else stored["passes"][0]
        return DiscriminatorInputs(images, labels, noise, augment_key=key)

    def image_noise(self, key, n):
        return self.noise


def make_run(golden: Golden):
    c = golden.config
    config = default_config()
    config.batch_size = c["batch"]
    config.data.resolution = c["img_resolution"]
    config.up_impl = "shift"
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
    config.ema.rampup = None if c["ema_rampup"] == "N/A" else c["ema_rampup"]
    if c["lecam"]:
        config.lecam.update(weight=c["lecam"]["lambda"], decay=c["lecam"]["decay"], start_step=c["lecam"]["start_iter"])
    return parse_config(config)


def make_state(golden: Golden, step: TrainingStep) -> TrainState:
    def network(module: str, optimizer: optax.GradientTransformation) -> NetworkState:
        tree = jax.tree.map(lambda x: jax.numpy.asarray(x, np.float64), variables(golden.weights(module)))
        params = tree.pop("params")
        return NetworkState(params, tree, optimizer.init(params), jax.numpy.int32(0))

    generator = network("G", step.generator_optimizer)
    ema = jax.tree.map(jax.numpy.copy, generator.variables)
    discriminator = network("D", step.discriminator_optimizer)
    zero, one = jax.numpy.float64(0.0), jax.numpy.float64(1.0)
    losses = {name: loss.init(generator.params, discriminator.params) for name, loss in step.losses.items()}
    losses["path_length"] = zero
    return TrainState(
        key=jax.random.key(0),
        generator=generator,
        discriminator=discriminator,
        ema=ema,
        ada=AdaState(zero, zero, zero),
        losses=losses,
        rates=Rates(one, one),
        singular_vectors={},
    )


@pytest.fixture(scope="module", params=GOLDEN)
def trajectory(request):
    with jax.enable_x64(True):
        return run_steps(Golden(request.param))


def run_steps(golden: Golden):
    config = make_run(golden)
    plain = build_model(config, 3, golden.config["num_classes"])
    networks = (network.clone(dtype=np.float64) for network in (plain.generator, plain.discriminator))
    step = TrainingStep(config, StridedGroups(*networks, plain.noise_mode))
    step.random = StoredInputs(config, step.model, step.layout)
    std = golden["out/lambda_c"] * golden.config["emb_noise_std"]
    run = {phase.name: jax.jit(phase.update) for phase in build_phases(step)}

    def noise(name, index, labels):
        return golden[f"in/{name}"][index] * std[labels][:, None]

    def stored(**draws):
        return ClassTable(draws, None, np.array(golden.config["class_counts"]))

    state, traces = make_state(golden, step), []
    for t in range(golden.config["iterations"]):
        trace = {}
        labels = np.tile(golden["in/labels_g"][t], 2)
        fakes = (np.tile(golden["in/z_g"][t], (2, 1)), labels, noise("g_noise_g", t, labels))
        state, metrics = run["generator"](state, stored(fakes=fakes, passes=[noise("d_noise_g", t, labels)]))
        trace["g_adv"] = metrics["loss/generator"]
        trace["nt_loss"] = (
            config.noisytwins.weight * metrics["loss/generator/noisytwins"] * (t >= config.noisytwins.start_step)
        )
        if t % config.path_length.interval == 0:
            event = t // config.path_length.interval
            labels = golden["in/labels_pl"][event]
            fakes = (golden["in/z_pl"][event], labels, noise("g_noise_pl", event, labels))
            table = stored(fakes=fakes, passes=[], noise=nhwc(golden["in/pl_noise_unit"][event]))
            state, metrics = run["path_length"](state, table)
            trace["pl_reg_loss"] = metrics["loss/path_length"]
        trace["pl_mean"] = state.losses["path_length"]
        state, _ = run["average"](state, stored())
        trace["ema_probe"] = np.abs(state.ema["params"]["synthesis"]["b4"]["const"]).mean()

        fake_labels, real_labels = golden["in/labels_d"][t], golden["in/labels_real"][t]
        fakes = (golden["in/z_d"][t], fake_labels, noise("g_noise_d", t, fake_labels))
        passes = [noise("d_noise_real", t, real_labels), noise("d_noise_fake", t, fake_labels)]
        batch = {"image": (nhwc(golden["in/real_images"][t]).astype(np.float64) + 1) * 127.5, "label": real_labels}
        state, metrics = run["discriminator"](state, batch, stored(fakes=fakes, passes=passes))
        trace["d_adv"] = metrics["loss/discriminator"]
        trace["logit_real_mean"], trace["logit_fake_mean"] = metrics["logits/real"], metrics["logits/fake"]
        if config.lecam.weight > 0:
            trace["lecam_loss"] = metrics["loss/discriminator/lecam"] * (t > config.lecam.start_step)
            trace["lecam_ema_real"], trace["lecam_ema_fake"] = state.losses["lecam"]
        if t % config.r1.interval == 0:
            draws = stored(passes=[noise("d_noise_r1", t // config.r1.interval, real_labels)])
            state, metrics = run["r1"](state, batch, draws)
            trace["r1_penalty"] = metrics["loss/r1"]
        traces.append({name: float(value) for name, value in trace.items()})
    return golden, state, traces


@pytest.mark.slow
def test_losses_of_every_step(trajectory):
    golden, _, traces = trajectory
    for name in sorted({name for trace in traces for name in trace}):
        expected = golden[f"out/trace/{name}"]
        actual = [trace.get(name, np.nan) for trace in traces]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["final_G", "final_G_ema", "final_D", "delta_G", "delta_G_ema", "delta_D"])
def test_final_tensors(trajectory, name):
    golden, state, _ = trajectory
    what, _, network = name.partition("_")
    trees = {"G": state.generator.params, "G_ema": state.ema["params"], "D": state.discriminator.params}
    order = golden.order(name)
    trained = [key for key in order if not key.endswith(("w_avg", "noise_const", "resample_filter"))]
    values = tensors(trees[network], trained)
    if what == "delta":
        initial = golden.weights(network[0])
        values = [value - initial[key] for key, value in zip(trained, values, strict=True)]
    statistics = [(value.mean(), value.std()) for value in values]
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
