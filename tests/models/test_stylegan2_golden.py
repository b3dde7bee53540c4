"""StyleGAN2 networks against the official implementations: forward passes to 1e-5, gradients to 1e-4.

Gradients are taken in float64: in float32 an activation within rounding of a leaky ReLU's kink can land on its other
side, and the reference numbers say what happens without that accident.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from biggan_networks import quick_jit
from golden_numbers import Golden, assert_close, nhwc, weight
from stylegan2_state import tensors, variables

from noisytwins_jax.losses.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.losses.path_length import path_length_penalty, path_lengths
from noisytwins_jax.losses.r1 import r1_penalty
from noisytwins_jax.models.stylegan2 import Discriminator, Generator, truncate

FORWARD, GRADIENT = 1e-5, 1e-4
LOSS = ADVERSARIAL_LOSSES["logistic"]
STUDIOGAN = ["stylegan2_studiogan_32_map2_orig", "stylegan2_studiogan_32_map8_resnet"]
NVIDIA = ["stylegan2_nvidia_64", "stylegan2_nvidia_16_clamp_skip"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Networks:
    """Both networks of a golden set, with its weights."""

    def __init__(self, name: str, up_impl: str, dtype: type):
        self.golden = golden = Golden(name)
        c = golden.config
        shared = {
            "resolution": c["img_resolution"],
            "channels": 3,
            "num_classes": c.get("num_classes", c.get("c_dim")),
            "channel_base": c["channel_base"],
            "channel_max": c["channel_max"],
            "conv_clamp": c["conv_clamp"],
            "up_impl": up_impl,
            "dtype": dtype,
        }
        self.generator = Generator(
            **shared,
            z_dim=c["z_dim"],
            w_dim=c["w_dim"],
            mapping_layers=c["mapping_num_layers"],
            w_avg_decay=c["w_avg_beta"],
        )
        self.discriminator = Discriminator(
            **shared, architecture=c["d_architecture"], mbstd_group_size=c["mbstd_group_size"]
        )
        weights = (variables(golden.weights(module)) for module in ("G", "D"))
        self.g, self.d = (jax.tree.map(lambda x: x.astype(dtype), tree) for tree in weights)
        self.z, self.labels = golden["in/z"].astype(dtype), golden["in/labels"]
        self.real = nhwc(golden["in/real_images"]).astype(dtype)
        # The published groups are strided; ours are contiguous: the same groups after this permutation of the batch.
        n, group = c["batch"], c["mbstd_group_size"]
        self.permutation = np.arange(n).reshape(group, n // group).T.ravel()

    def with_variables(self, g, d):
        """Return the same networks with these variables, which may be traced."""
        other = copy.copy(self)
        other.g, other.d = g, d
        return other

    def map(self, params=None, noise=None):
        return self.generator.apply(self._g(params), self.z, self.labels, noise, method="map")

    def synthesize(self, ws, params=None, noise_mode="const"):
        return self.generator.apply(self._g(params), ws, noise_mode, method="synthesize")

    def images(self, params=None):
        return self.synthesize(self.generator.broadcast(self.map(params)), params)

    def logits(self, images, params=None, noise=None):
        p = self.permutation
        d = {**self.d, "params": self.d["params"] if params is None else params}
        noise = None if noise is None else noise[p]
        logits = self.discriminator.apply(d, images[p], self.labels[p], noise).logits
        return logits[np.argsort(p)]

    def path_length(self, params, rows):
        g = self.golden
        w = self.generator.apply(self._g(params), self.z[:rows], self.labels[:rows], method="map")
        noise = nhwc(g["in/pl_noise_unit"]).astype(self.z.dtype)
        lengths = path_lengths(lambda ws: self.synthesize(ws, params), self.generator.broadcast(w), noise)
        penalty, mean = path_length_penalty(lengths, self.z.dtype.type(g.config["pl_mean_in"]), g.config["pl_decay"])
        return penalty, (mean, lengths)

    def _g(self, params):
        return self.g if params is None else {**self.g, "params": params}


def assert_gradients(golden: Golden, tag: str, gradients: dict) -> None:
    order = golden.order(tag)
    values = tensors(gradients, order)
    norms = np.array([np.linalg.norm(v) for v in values])
    probes = np.array(
        [(v * weight(k, v.shape, "normal", 1, 0, "probe:")).sum() for k, v in zip(order, values, strict=True)]
    )
    assert_close(norms, golden[f"out/{tag}/grad_norm"], GRADIENT)
    assert_close(probes, golden[f"out/{tag}/grad_probe"], GRADIENT)


def truncate_first(ws, w_avg, config: dict) -> np.ndarray:
    """Truncate the first layers only, as the reference does."""
    cutoff = config["truncation_cutoff"]
    return np.concatenate([truncate(ws[:, :cutoff], w_avg, config["truncation_psi"]), ws[:, cutoff:]], axis=1)


@functools.cache
def networks(name: str, up_impl: str) -> Networks:
    return Networks(name, up_impl, np.float32)


@pytest.fixture
def float64(fast_compilation):
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["conv", "shift"])
def up_impl(request):
    return request.param


@pytest.mark.parametrize("name", STUDIOGAN)
def test_mapping(name):
    net = networks(name, "shift")
    golden, c = net.golden, net.golden.config
    std = golden["out/lambda_c"][net.labels][:, None] * c["emb_noise_std"]
    assert_close(net.map(), golden["out/w_nonoise"], FORWARD)
    noise = std * golden["in/g_class_noise_unit"]
    w, updated = net.generator.apply(
        net.g, net.z, net.labels, noise, update_w_avg=True, method="map", mutable=["buffers"]
    )
    assert_close(w, golden["out/w_noise"], FORWARD)
    w_avg, decay = net.g["buffers"]["mapping"]["w_avg"], c["w_avg_beta"]
    moved = decay * w_avg + (1 - decay) * golden["out/w_noise"].mean(axis=0)
    assert_close(updated["buffers"]["mapping"]["w_avg"], moved, FORWARD)
    ws = net.generator.broadcast(net.map())
    assert_close(truncate(ws, w_avg, c["truncation_psi"])[:, 0], golden["out/w_psi"], FORWARD)
    assert_close(truncate_first(ws, w_avg, c), golden["out/ws_psi_cutoff"], FORWARD)
    d_noise = std[:, : net.discriminator.embedding_dim] * golden["in/d_class_noise_unit"]
    assert_close(net.discriminator.apply(net.d, net.labels, method="embed"), golden["out/d_cmap_nonoise"], FORWARD)
    logits = net.logits(net.real, noise=d_noise)
    assert_close(logits[:, None], golden["out/d_logits_real_noise"], FORWARD)


@pytest.mark.parametrize("name", STUDIOGAN + NVIDIA)
def test_forward(name, up_impl):
    net = networks(name, up_impl)
    golden, studiogan = net.golden, name in STUDIOGAN

    @quick_jit
    def forward(g, d):
        net = networks(name, up_impl).with_variables(g, d)
        w = net.map()
        ws = net.generator.broadcast(w)
        images = net.synthesize(ws)
        logits = [net.logits(x)[:, None] for x in (net.real, images)]
        cutoff = net.synthesize(golden["out/ws_psi_cutoff"][:2])
        features = net.discriminator.apply(net.d, net.real[net.permutation], method="features")
        return w, ws, images, net.synthesize(ws, noise_mode="none"), logits, cutoff, features

    w, ws, images, without_noise, (real, fake), cutoff, features = forward(net.g, net.d)
    assert_close(images, nhwc(golden["out/img_const"]), FORWARD)
    assert_close(without_noise, nhwc(golden["out/img_none"]), FORWARD)
    suffix = "_nonoise" if studiogan else ""
    assert_close(real, golden[f"out/d_logits_real{suffix}"], FORWARD)
    assert_close(fake, golden[f"out/d_logits_fake{suffix}"], FORWARD)
    if studiogan:
        assert_close(features[np.argsort(net.permutation)], golden["out/d_h_real"], FORWARD)
        assert_close(cutoff, nhwc(golden["out/img_psi_cutoff_const"]), FORWARD)
    else:
        w_avg = net.g["buffers"]["mapping"]["w_avg"]
        assert_close(w, golden["out/w"], FORWARD)
        assert_close(truncate_first(ws, w_avg, golden.config), golden["out/ws_psi_cutoff"], FORWARD)


# The two formulations are compared in test_fir: here one network has its gradients taken in each; the others are slow.
@pytest.mark.parametrize(
    "name, up_impl", [slow(STUDIOGAN[0], "shift"), (STUDIOGAN[1], "shift"), slow(STUDIOGAN[1], "conv")]
)
def test_gradients_studiogan(name, up_impl, float64):
    net = Networks(name, up_impl, np.float64)
    golden, g, d = net.golden, net.g["params"], net.d["params"]
    fake = nhwc(golden["out/img_const"]).astype(np.float64)

    r1, gradients = jax.jit(jax.value_and_grad(lambda p: r1_penalty(lambda x: net.logits(x, p), net.real)[0]))(d)
    assert_close(r1, golden["out/r1_penalty"], GRADIENT)
    assert_gradients(golden, "r1", gradients)
    image_gradient = jax.jit(jax.grad(lambda x: net.logits(x).sum()))(jnp.asarray(net.real))[0]
    assert_close(image_gradient.transpose(2, 0, 1), golden["out/r1_image_grad_sample0"], GRADIENT)

    def d_loss(p):
        return LOSS.discriminator(net.logits(net.real, p), net.logits(fake, p)).mean()

    loss, gradients = jax.jit(jax.value_and_grad(d_loss))(d)
    assert_close(loss, golden["out/d_loss"], FORWARD)
    assert_gradients(golden, "d_loss", gradients)

    loss, gradients = jax.jit(jax.value_and_grad(lambda p: LOSS.generator(net.logits(net.images(p))).mean()))(g)
    assert_close(loss, golden["out/g_loss"], FORWARD)
    assert_gradients(golden, "g_loss", gradients)

    weight = golden.config["pl_weight"]
    path_length = jax.jit(jax.value_and_grad(lambda p: net.path_length(p, 4), has_aux=True))
    (penalty, (mean, lengths)), gradients = path_length(g)
    assert_close(lengths, golden["out/pl_lengths"], GRADIENT)
    assert_close(penalty * weight, golden["out/pl_loss"], GRADIENT)
    assert_close(mean, golden["out/pl_mean_new"], FORWARD)
    assert_gradients(golden, "pl", jax.tree.map(lambda x: x * weight, gradients))


@pytest.mark.parametrize("name, up_impl", [(NVIDIA[1], "conv"), slow(NVIDIA[1], "shift"), slow(NVIDIA[0], "shift")])
def test_gradients_nvidia(name, up_impl, float64):
    net = Networks(name, up_impl, np.float64)
    golden, c, g, d = net.golden, net.golden.config, net.g["params"], net.d["params"]
    fake = net.images()

    def scaled(tree, factor):
        return jax.tree.map(lambda x: x * factor, tree)

    gradients = jax.jit(jax.grad(lambda p: LOSS.generator(net.logits(net.images(p))).mean()))(g)
    assert_gradients(golden, "Gmain", gradients)
    gradients, (mean, _) = jax.jit(
        jax.grad(lambda p: net.path_length(p, c["batch"] // c["pl_batch_shrink"]), has_aux=True)
    )(g)
    assert_gradients(golden, "Greg", scaled(gradients, c["pl_weight"] * c["gain_Greg"]))
    assert_close(mean, golden["out/pl_mean_new"], FORWARD)

    def d_loss(p):
        return LOSS.discriminator(net.logits(net.real, p), net.logits(fake, p)).mean()

    assert_gradients(golden, "Dmain", jax.jit(jax.grad(d_loss))(d))
    gradients = jax.jit(jax.grad(lambda p: r1_penalty(lambda x: net.logits(x, p), net.real)[0]))(d)
    assert_gradients(golden, "Dreg", scaled(gradients, c["r1_gamma"] * c["gain_Dreg"]))
