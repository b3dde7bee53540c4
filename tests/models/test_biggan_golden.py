"""BigGAN and BigGAN-deep against the official implementation: forward passes, statistics and gradients.

The reference numbers are float32 runs whose own errors they state. Outputs agree to 1e-5 of their largest entry, and
where the reference is further off than that, to twice its error; training passes and gradients are taken in float64.
"""

import jax
import numpy as np
import pytest
from biggan_networks import quick_jit
from biggan_state import State
from golden_numbers import Golden, assert_close, nhwc, weight

from noisytwins_jax.losses.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.models.biggan import Discriminator, Generator, generator
from noisytwins_jax.models.biggan.batch_norm import BatchNorm

pytestmark = pytest.mark.usefixtures("fast_compilation")

SETS = ["biggan_32", "biggan_64", "biggandeep_32", "biggandeep_64"]
TRAINED = SETS[::2] + [pytest.param(name, marks=pytest.mark.slow) for name in SETS[1::2]]
HINGE = ADVERSARIAL_LOSSES["hinge"]


def resolutions(names: str) -> tuple[int, ...]:
    return tuple(int(r) for r in names.split("_"))


class Networks:
    """Both networks of a golden set, with its weights."""

    def __init__(self, name: str, dtype: type):
        self.golden = golden = Golden(name)
        c = golden.config
        deep, resolution = c["deep"], c["resolution"]
        shared = {"resolution": resolution, "num_classes": c["n_classes"], "deep": deep, "sn_epsilon": c["SN_eps"]}
        shared |= {"dtype": dtype}
        self.generator = Generator(
            **shared,
            z_dim=c["dim_z_actual"],
            width=c["G_ch"],
            embedding_dim=c["shared_dim"],
            attention=resolutions(c["G_attn"]),
            bn_epsilon=c["BN_eps"],
            bn_decay=1 - c["bn_momentum"],
        )
        # At 32 px the reference's discriminator of BigGAN is twice as wide, and it counts all blocks from the second
        # on, which are at 8 px, as blocks at 16 px.
        narrow = resolution == 32
        attention = resolutions(c["D_attn"]) + ((8,) if narrow else ())
        width = c["D_ch"] * (2 if narrow and not deep else 1)
        self.discriminator = Discriminator(**shared, width=width, attention=attention)
        self.states = {"G": State(True, deep), "D": State(False, deep)}
        variables = {m: self.states[m].variables(golden.weights(m)) for m in ("G", "D")}
        self.variables = jax.tree.map(lambda x: x.astype(dtype), variables)
        self.z, self.labels = golden["in/z"].astype(dtype), golden["in/labels"]
        self.real = nhwc(golden["in/real_images"]).astype(dtype)
        self.dtype, self.deep = dtype, deep

    def images(self, params, train: bool):
        """Images and moved statistics; the reference's vectors u take a step in every forward pass."""
        variables, moved = {**self.variables["G"], "params": params}, ["spectral", "batch_stats"]
        return self.generator.apply(variables, self.z, self.labels, train=train, update_stats=True, mutable=moved)

    def logits(self, params, images, labels):
        variables = {**self.variables["D"], "params": params}
        found, moved = self.discriminator.apply(variables, images, labels, update_stats=True, mutable=["spectral"])
        return found.logits, moved

    def assert_close(self, actual, name: str) -> None:
        error = self.golden.info["tolerance"]["observed"][f"out/{name}"]["rel_to_max"]
        assert_close(actual, self.golden[f"out/{name}"], max(1e-5, 2 * error))

    def assert_gradients(self, gradients, tag: str, module: str) -> None:
        order = self.golden.order(tag)
        values = self.states[module].tensors({"params": gradients}, order)
        norms = np.array([np.linalg.norm(v) for v in values])
        probes = [(v * weight(k, v.shape, "normal", 1, 0, "probe:")).sum() for k, v in zip(order, values, strict=True)]
        self.assert_close(norms, f"{tag}/grad_norm")
        self.assert_close(np.array(probes), f"{tag}/grad_probe")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def output_epsilon(monkeypatch):
    """The reference's last batch normalisation has an epsilon of its own."""
    epsilon = Golden(SETS[0]).config["output_bn_eps"]
    monkeypatch.setattr(generator, "BatchNorm", lambda _, decay: BatchNorm(epsilon, decay))


@pytest.mark.parametrize("name", SETS)
def test_images_with_stored_statistics(name):
    net = Networks(name, np.float32)
    images, moved = quick_jit(lambda p: net.images(p, train=False))(net.variables["G"]["params"])
    assert_close(images, nhwc(net.golden["out/img_eval"]), 1e-5)
    jax.tree.map(np.testing.assert_array_equal, moved["batch_stats"], net.variables["G"]["batch_stats"])


@pytest.mark.parametrize("name", TRAINED)
def test_discriminator(name, float64):
    """On the generator's images and on real ones, whose logits do not depend on each other."""
    net = Networks(name, np.float64)
    golden, n = net.golden, len(net.labels)
    images = np.concatenate([nhwc(golden["out/img_eval"]).astype(net.dtype), net.real])
    labels = np.concatenate([net.labels, net.labels])

    def loss(params):
        logits, moved = net.logits(params, images, labels)
        return HINGE.discriminator(logits[n:], logits[:n]).mean(), (logits, moved)

    (value, (logits, moved)), gradients = quick_jit(jax.value_and_grad(loss, has_aux=True))(
        net.variables["D"]["params"]
    )
    assert_close(logits[:n, None], golden["out/d_logits_fake_eval"], 1e-5)
    assert_close(logits[n:, None], golden["out/d_logits_real_eval"], 1e-5)
    assert_close(logits[n:, None], golden["out/d_logits_real_train"], 1e-5)
    assert_vectors(net, moved, "D")
    assert_close(value, golden["out/hinge_d_real"] + golden["out/hinge_d_fake"], 1e-5)
    net.assert_gradients(gradients, "hinge_d", "D")


@pytest.mark.parametrize("name", TRAINED)
def test_generator_in_training(name, float64):
    net = Networks(name, np.float64)

    def loss(params):
        images, moved = net.images(params, train=True)
        logits = net.logits(net.variables["D"]["params"], images, net.labels)[0]
        return HINGE.generator(logits).mean(), (images, moved)

    (value, (images, moved)), gradients = quick_jit(jax.value_and_grad(loss, has_aux=True))(
        net.variables["G"]["params"]
    )
    net.assert_close(images.transpose(0, 3, 1, 2), "img_train")
    assert_vectors(net, moved, "G")
    statistics = stored_statistics(net, moved, net.golden.order("G_bn_after_concat"))
    net.assert_close(np.concatenate(statistics), "G_bn_after_concat")
    net.assert_close(value, "hinge_g")
    net.assert_gradients(gradients, "hinge_g", "G")


def pixels(key: str, deep: bool, resolution: int) -> int:
    """Pixels of the activations that a batch normalisation of the reference normalises."""
    name = key.split(".")
    if name[0] == "output_layer":
        return resolution**2
    i, last = int(name[1]), int(name[3][2:])
    if deep:
        return (4 << (i // 2 + (i % 2 == 1 and last > 2))) ** 2
    return (4 << (i + last - 1)) ** 2


def stored_statistics(net: Networks, moved: dict, order: list[str]) -> list[np.ndarray]:
    """Batch statistics as the reference stores them: its variances are unbiased, ours are biased."""
    after = net.states["G"].tensors(moved, order)
    before = net.states["G"].tensors(net.variables["G"], order)
    kept, found = 1 - net.golden.config["bn_momentum"], []
    for key, new, old in zip(order, after, before, strict=True):
        n = len(net.z) * pixels(key, net.deep, net.golden.config["resolution"])
        unbiased = kept * old + (new - kept * old) * n / (n - 1)
        found.append(unbiased if key.endswith("var") else new)
    return found


def assert_vectors(net: Networks, moved: dict, module: str) -> None:
    """Means, deviations and first entries of every vector u."""
    tag = f"{module}_buffers_after"
    golden, order = net.golden, net.golden.order(tag)
    rows = [i for i, key in enumerate(order) if key.endswith("u0")]
    vectors = net.states[module].tensors(moved, [order[i] for i in rows])
    assert len(rows) == len(jax.tree.leaves(moved["spectral"]))
    first8 = np.stack([np.pad(v.ravel()[:8], (0, max(0, 8 - v.size)), constant_values=np.nan) for v in vectors])
    expected = golden[f"out/{tag}/first8"][rows]
    assert (np.isnan(first8) == np.isnan(expected)).all()
    assert_close(np.nan_to_num(first8), np.nan_to_num(expected), 1e-5)
    summary = [[v.mean(), v.std()] for v in vectors]
    assert_close(np.array(summary), golden[f"out/{tag}/mean_std"][rows], 1e-5)
