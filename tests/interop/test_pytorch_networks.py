"""The self-contained PyTorch networks: public key lists, the official implementations' numbers, and our Flax networks."""

import ast
from pathlib import Path

import jax
import numpy as np
import pytest
from biggan_networks import quick_jit
from biggan_state import State
from golden_numbers import Golden, assert_close, nhwc, weight
from statedicts import statedict, statedicts
from stylegan2_state import tensors, variables

import noisytwins_jax.interop.pytorch
from noisytwins_jax.models import biggan as flax_biggan
from noisytwins_jax.models import stylegan2 as flax_stylegan2

torch = pytest.importorskip("torch")

from noisytwins_jax.interop.pytorch import biggan, stylegan2  # noqa: E402 (these need PyTorch)

pytestmark = pytest.mark.slow

STUDIOGAN = ["stylegan2_studiogan_32_map2_orig", "stylegan2_studiogan_32_map8_resnet"]
NVIDIA = ["stylegan2_nvidia_64", "stylegan2_nvidia_16_clamp_skip"]
BIGGAN = ["biggan_32", "biggan_64", "biggandeep_32", "biggandeep_64"]
CLASSES = 5
one_hot, softplus = torch.nn.functional.one_hot, torch.nn.functional.softplus


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def load(module, state: dict[str, np.ndarray], dtype=torch.float32):
    """The module with exactly these tensors, in this order."""
    assert list(module.state_dict()) == list(state)
    module.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}, strict=True)
    return module.to(dtype)


def state_of(module) -> dict[str, np.ndarray]:
    return {key: value.numpy().copy() for key, value in module.state_dict().items()}


def numbers(x) -> np.ndarray:
    return x.detach().numpy()


def images_of(x) -> np.ndarray:
    return nhwc(numbers(x))


def assert_golden_gradients(golden: Golden, tag: str, module, factor: float = 1.0, rtol: float = 1e-4) -> None:
    """Norms and probes of every parameter's gradient, zero where there is none."""
    order, parameters = golden.order(tag), dict(module.named_parameters())
    assert order == list(parameters)
    found = [torch.zeros_like(p) if p.grad is None else p.grad * factor for p in parameters.values()]
    probes = [
        (numbers(g) * weight(key, g.shape, "normal", 1, 0, "probe:")).sum() for key, g in zip(order, found, strict=True)
    ]
    assert_close([g.norm().item() for g in found], golden[f"out/{tag}/grad_norm"], rtol)
    assert_close(probes, golden[f"out/{tag}/grad_probe"], rtol)
    module.zero_grad()


# --- the files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["__init__", "stylegan2", "biggan"])
def test_files_stand_alone(name):
    text = (Path(noisytwins_jax.interop.pytorch.__file__).parent / f"{name}.py").read_text()
    if name == "__init__":  # the package itself does without PyTorch
        assert "import" not in text.split('"""')[2]
        return
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported <= {"torch", "math", "itertools", "typing"}


def entries(module) -> list[list]:
    parameters = dict(module.named_parameters())
    return [
        [key, list(value.shape), "param" if key in parameters else "buffer", str(value.dtype).removeprefix("torch.")]
        for key, value in module.state_dict().items()
    ]


def assert_keys(module, listed: list[list]) -> None:
    expected = [[key, shape, kind, dtype.removeprefix("torch.")] for key, shape, kind, dtype in listed]
    assert entries(module) == expected


def test_there_are_key_lists():
    assert len(stylegan2_lists()) == 9 and len(statedicts("bigganpytorch")) == 9


def stylegan2_lists() -> list[str]:
    return [name for name in statedicts("stylegan2") if "heads" not in name]


@pytest.mark.parametrize("name", stylegan2_lists())
def test_stylegan2_keys(name):
    listed = statedict(name)
    c = listed["config"]
    shared = {"resolution": c["res"], "num_classes": c["ncls"], "channel_base": c["cb"]}
    naming = "nvidia" if name.startswith("nvidia") else "studiogan"
    with torch.device("meta"):
        assert_keys(stylegan2.Generator(**shared, mapping_layers=c["maplayers"]), listed["G"])
        assert_keys(stylegan2.Discriminator(**shared, architecture=c["arch"], naming=naming), listed["D"])


def resolutions(names: str) -> tuple[int, ...]:
    return tuple(int(r) for r in names.split("_") if int(r))


@pytest.mark.parametrize("name", statedicts("bigganpytorch"))
def test_biggan_keys(name):
    listed = statedict(name)
    c, deep = listed["config"], "deep" in name
    resolution = c["resolution"]
    shared = {"resolution": resolution, "num_classes": c["n_classes"], "deep": deep}
    # At 32 px BigGAN-PyTorch's discriminator of BigGAN is twice as wide.
    width = c["D_ch"] * (2 if resolution == 32 and not deep else 1)
    with torch.device("meta"):
        generator = biggan.Generator(
            **shared,
            width=c["G_ch"],
            z_dim=c["dim_z"],
            embedding_dim=c["shared_dim"],
            attention=resolutions(c["G_attn"]),
            standing_statistics=c["mybn"],
        )
        assert_keys(generator, listed["G"])
        if listed["D"]:
            attention = resolutions(c["D_attn"])
            assert_keys(biggan.Discriminator(**shared, width=width, attention=attention), listed["D"])


# --- StyleGAN2 against the official implementations ---------------------------------------------------------------------


class StyleGAN2:
    """Both networks of a golden set, with its weights."""

    def __init__(self, name: str, dtype=torch.float32):
        self.golden = golden = Golden(name)
        c = golden.config
        shared = {
            "resolution": c["img_resolution"],
            "num_classes": c.get("num_classes", c.get("c_dim")),
            "channel_base": c["channel_base"],
            "channel_max": c["channel_max"],
            "conv_clamp": c["conv_clamp"],
        }
        generator = stylegan2.Generator(
            **shared,
            z_dim=c["z_dim"],
            w_dim=c["w_dim"],
            mapping_layers=c["mapping_num_layers"],
            w_avg_decay=c["w_avg_beta"],
        )
        discriminator = stylegan2.Discriminator(
            **shared,
            architecture=c["d_architecture"],
            mbstd_group_size=c["mbstd_group_size"],
            naming="nvidia" if name in NVIDIA else "studiogan",
        )
        self.g = load(generator, golden.weights("G"), dtype)
        self.d = load(discriminator, golden.weights("D"), dtype)
        self.z, self.real = self.tensor("in/z"), self.tensor("in/real_images")
        self.labels = torch.from_numpy(golden["in/labels"]).long()
        self.dtype = dtype

    def tensor(self, name: str):
        return torch.from_numpy(self.golden[name]).to(next(self.g.parameters()).dtype)

    def assert_close(self, x, name: str, rtol: float = 1e-5) -> None:
        assert_close(numbers(x), self.golden[f"out/{name}"], rtol)


@pytest.mark.parametrize("name", STUDIOGAN + NVIDIA)
def test_stylegan2_forward(name):
    net = StyleGAN2(name)
    c, studiogan = net.golden.config, name in STUDIOGAN
    ws = net.g.mapping(net.z, net.labels)
    assert ws.shape[1] == net.g.num_ws == c["num_ws"]
    net.assert_close(ws[:, 0], "w_nonoise" if studiogan else "w")
    net.assert_close(net.g.mapping(net.z, net.labels, c["truncation_psi"])[:, -1], "w_psi")
    truncated = net.g.mapping(net.z, net.labels, c["truncation_psi"], c["truncation_cutoff"])
    net.assert_close(truncated, "ws_psi_cutoff")
    images = net.g(net.z, net.labels, noise_mode="const")
    net.assert_close(images, "img_const")
    net.assert_close(net.g.synthesis(ws, "none"), "img_none")
    suffix = "_nonoise" if studiogan else ""
    net.assert_close(net.d(net.real, net.labels), f"d_logits_real{suffix}")
    net.assert_close(net.d(images, one_hot(net.labels, net.d.num_classes).float()), f"d_logits_fake{suffix}")
    noise = None
    if studiogan:
        net.assert_close(net.d.features(net.real), "d_h_real")
        net.assert_close(net.d.mapping(None, net.labels), "d_cmap_nonoise")
        mixed = net.g.synthesis(truncated[:2], "const")
        net.assert_close(mixed, "img_psi_cutoff_const")
        std = net.tensor("out/lambda_c")[net.labels][:, None] * c["emb_noise_std"]
        noise = std * net.tensor("in/g_class_noise_unit")
        net.assert_close(net.g.mapping(net.z, net.labels, class_noise=noise)[:, 0], "w_noise")
        d_noise = std * net.tensor("in/d_class_noise_unit")
        net.assert_close(net.d(net.real, net.labels, d_noise), "d_logits_real_noise")
    # The sets' own w_avg_updated is what they start from.
    w, decay = net.golden["out/w_noise" if studiogan else "out/w"], c["w_avg_beta"]
    moved = decay * numbers(net.g.mapping.w_avg) + (1 - decay) * w.mean(axis=0)
    net.g.mapping(net.z, net.labels, class_noise=noise, update_w_avg=True)
    assert_close(numbers(net.g.mapping.w_avg), moved, 1e-6)


def r1_penalty(net: StyleGAN2):
    real = net.real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net.d(real, net.labels).sum(), real, create_graph=True)
    return 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()


def path_length_loss(net: StyleGAN2, rows: int):
    c = net.golden.config
    noise = net.tensor("in/pl_noise_unit")
    ws = net.g.mapping(net.z[:rows], net.labels[:rows])
    images = net.g.synthesis(ws, "const")
    value = (images * noise / noise.shape[-1]).sum()
    (gradient,) = torch.autograd.grad(value, ws, create_graph=True)
    lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
    mean = c["pl_mean_in"] + c["pl_decay"] * (lengths.mean() - c["pl_mean_in"])
    return (lengths - mean).square().mean() * c["pl_weight"]


@pytest.mark.parametrize("name", STUDIOGAN)
def test_stylegan2_gradients(name):
    """In float64: see tests/models/test_stylegan2_golden.py."""
    net = StyleGAN2(name, torch.float64)
    penalty = r1_penalty(net)
    net.assert_close(penalty, "r1_penalty", 1e-4)
    penalty.backward()
    assert_golden_gradients(net.golden, "r1", net.d)

    fake = net.tensor("out/img_const")
    loss = (softplus(-net.d(net.real, net.labels)) + softplus(net.d(fake, net.labels))).mean()
    net.assert_close(loss, "d_loss")
    loss.backward()
    assert_golden_gradients(net.golden, "d_loss", net.d)

    loss = softplus(-net.d(net.g(net.z, net.labels, noise_mode="const"), net.labels)).mean()
    net.assert_close(loss, "g_loss")
    loss.backward()
    assert_golden_gradients(net.golden, "g_loss", net.g)

    loss = path_length_loss(net, 4)
    net.assert_close(loss, "pl_loss", 1e-4)
    loss.backward()
    assert_golden_gradients(net.golden, "pl", net.g)


@pytest.mark.parametrize("name", NVIDIA)
def test_stylegan2_gradients_with_clamps(name):
    net = StyleGAN2(name, torch.float64)
    c = net.golden.config
    softplus(-net.d(net.g(net.z, net.labels, noise_mode="const"), net.labels)).mean().backward()
    assert_golden_gradients(net.golden, "Gmain", net.g)
    net.d.zero_grad()
    r1_penalty(net).backward()
    assert_golden_gradients(net.golden, "Dreg", net.d, c["r1_gamma"] * c["gain_Dreg"])
    path_length_loss(net, c["batch"] // c["pl_batch_shrink"]).backward()
    assert_golden_gradients(net.golden, "Greg", net.g, c["gain_Greg"])


def test_stylegan2_noise():
    generator = randomized(stylegan2.Generator(16, 0, z_dim=4, w_dim=4, channel_base=64, channel_max=4))
    z = torch.randn(2, 4)
    first, second = (generator(z) for _ in range(2))
    assert (first - second).abs().max() > 1e-3
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.zero_()
    torch.testing.assert_close(generator(z), generator(z, noise_mode="none"), rtol=0, atol=0)


# --- StyleGAN2 against Flax ---------------------------------------------------------------------------------------------


def randomized(module, seed: int = 0):
    """The module with normal tensors throughout; mapping layers' are larger, against their learning-rate multiplier."""
    rng = np.random.default_rng(seed)
    state = state_of(module)
    for key, value in state.items():
        if not key.endswith("resample_filter"):
            scale = 100.0 if key.startswith("mapping.fc") else 1.0
            state[key] = (scale * rng.standard_normal(value.shape)).astype(np.float32)
    return load(module, state)


def stylegan2_pair(resolution, g_architecture, d_architecture, classes, naming, dtype=np.float32):
    """Both networks in PyTorch with random tensors, the same in Flax, and inputs."""
    shared = {"resolution": resolution, "num_classes": classes, "channel_base": 4 * resolution, "channel_max": 8}
    shared |= {"channels": 1 if naming == "nvidia" else 3}
    g_options = {"z_dim": 6, "w_dim": 5, "mapping_layers": 2, "architecture": g_architecture}
    d_options = {"architecture": d_architecture, "mbstd_group_size": 2, "mapping_layers": 3}
    torch_dtype = torch.float64 if dtype is np.float64 else torch.float32
    pytorch = (
        randomized(stylegan2.Generator(**shared, **g_options), 1).to(torch_dtype),
        randomized(stylegan2.Discriminator(**shared, **d_options, naming=naming), 2).to(torch_dtype),
    )
    flax = (
        flax_stylegan2.Generator(**shared, **g_options, up_impl="shift", dtype=dtype),
        flax_stylegan2.Discriminator(**shared, **d_options, up_impl="shift", dtype=dtype),
    )
    rng = np.random.default_rng(3)
    z = rng.standard_normal((4, 6)).astype(dtype)
    labels = rng.integers(classes, size=4) if classes else None
    return pytorch, flax, [variables(state_of(m)) for m in pytorch], z, labels


# Our groups of minibatch standard deviation are contiguous: the published ones after this permutation of the batch.
PERMUTATION = np.array([0, 2, 1, 3])


@pytest.mark.parametrize(
    "options",
    [
        (32, "skip", "resnet", CLASSES, "studiogan"),
        (32, "orig", "orig", CLASSES, "nvidia"),
        (32, "resnet", "skip", 0, "studiogan"),
        (64, "skip", "resnet", 0, "nvidia"),
        (128, "skip", "resnet", CLASSES, "studiogan"),
        (256, "resnet", "resnet", CLASSES, "studiogan"),
        (256, "skip", "skip", CLASSES, "nvidia"),
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_stylegan2_against_flax(options):
    (g, d), (flax_g, flax_d), (g_variables, d_variables), z, labels = stylegan2_pair(*options)
    given = None if labels is None else torch.from_numpy(labels)

    @quick_jit
    def both(g_variables, d_variables):
        images = flax_g.apply(g_variables, z, labels, psi=0.7, noise_mode="const")
        p = PERMUTATION
        return images, flax_d.apply(d_variables, images[p], None if labels is None else labels[p]).logits[p]

    images, logits = both(g_variables, d_variables)
    with torch.no_grad():
        found = g(torch.from_numpy(z), given, truncation_psi=0.7, noise_mode="const")
        found_logits = d(found, given)
    assert_close(images_of(found), images, 1e-4)
    assert_close(numbers(found_logits)[:, 0], logits, 1e-4)


def test_stylegan2_gradients_against_flax(float64):
    """Of the generator's loss, in both networks."""
    (g, d), (flax_g, flax_d), both_variables, z, labels = stylegan2_pair(
        32, "skip", "resnet", CLASSES, "studiogan", np.float64
    )
    buffers = both_variables[0]["buffers"]
    given = torch.from_numpy(labels)

    def loss(g_params, d_params):
        images = flax_g.apply({"params": g_params, "buffers": buffers}, z, labels, noise_mode="const")
        logits = flax_d.apply({"params": d_params}, images[PERMUTATION], labels[PERMUTATION]).logits
        return jax.nn.softplus(-logits).mean()

    gradients = quick_jit(jax.grad(loss, argnums=(0, 1)))(*(v["params"] for v in both_variables))
    softplus(-d(g(torch.from_numpy(z), given, noise_mode="const"), given)).mean().backward()
    for module, expected in zip((g, d), gradients, strict=True):
        parameters = dict(module.named_parameters())
        for parameter, value in zip(parameters.values(), tensors(expected, list(parameters)), strict=True):
            assert_close(numbers(parameter.grad), value, 1e-6)


# --- BigGAN against the official implementation -------------------------------------------------------------------------


class BigGAN:
    """Both networks of a golden set, with its weights."""

    def __init__(self, name: str, dtype=torch.float32):
        self.golden = golden = Golden(name)
        c = golden.config
        deep, resolution = c["deep"], c["resolution"]
        shared = {"resolution": resolution, "num_classes": c["n_classes"], "deep": deep, "sn_epsilon": c["SN_eps"]}
        generator = biggan.Generator(
            **shared,
            z_dim=c["dim_z_actual"],
            width=c["G_ch"],
            embedding_dim=c["shared_dim"],
            attention=resolutions(c["G_attn"]),
            bn_epsilon=c["BN_eps"],
            output_bn_epsilon=c["output_bn_eps"],
            bn_decay=1 - c["bn_momentum"],
        )
        # At 32 px the reference's discriminator of BigGAN is twice as wide, and it counts all blocks from the second
        # on, which are at 8 px, as blocks at 16 px.
        narrow = resolution == 32
        discriminator = biggan.Discriminator(
            **shared,
            width=c["D_ch"] * (2 if narrow and not deep else 1),
            attention=resolutions(c["D_attn"]) + ((8,) if narrow else ()),
        )
        self.g = load(generator, golden.weights("G"), dtype)
        self.d = load(discriminator, golden.weights("D"), dtype)
        self.z = torch.from_numpy(golden["in/z"]).to(dtype)
        self.real = torch.from_numpy(golden["in/real_images"]).to(dtype)
        self.labels = torch.from_numpy(golden["in/labels"]).long()

    def assert_close(self, x, name: str) -> None:
        error = self.golden.info["tolerance"]["observed"][f"out/{name}"]["rel_to_max"]
        assert_close(numbers(x), self.golden[f"out/{name}"], max(1e-5, 2 * error))

    def gradient_tolerance(self, tag: str) -> float:
        observed = self.golden.info["tolerance"]["observed"]
        return max(1e-5, *(2 * observed[f"out/{tag}/{kind}"]["rel_to_max"] for kind in ("grad_norm", "grad_probe")))


@pytest.mark.parametrize("name", BIGGAN)
def test_biggan_eval(name):
    net = BigGAN(name)
    g, d = net.g.eval(), net.d.eval()
    before = [state_of(m) for m in (g, d)]
    images = g(net.z, net.labels)
    net.assert_close(images, "img_eval")
    net.assert_close(d(net.real, net.labels), "d_logits_real_eval")
    net.assert_close(d(images, net.labels), "d_logits_fake_eval")
    for module, state in zip((g, d), before, strict=True):
        for key, value in state_of(module).items():
            np.testing.assert_array_equal(value, state[key], err_msg=key)


@pytest.mark.parametrize("name", BIGGAN)
def test_biggan_train(name):
    net = BigGAN(name, torch.float64)
    net.assert_close(net.g(net.z, net.labels), "img_train")
    assert_buffers(net, net.g, "G")
    net.assert_close(net.d(net.real, net.labels), "d_logits_real_train")
    assert_buffers(net, net.d, "D")


def assert_buffers(net: BigGAN, module, role: str) -> None:
    """After one pass: vectors u, singular values and stored statistics."""
    state, golden, tag = module.state_dict(), net.golden, f"{role}_buffers_after"
    values = [numbers(state[key]).ravel() for key in golden.order(tag)]
    first8 = np.stack([np.pad(v[:8], (0, max(0, 8 - v.size)), constant_values=np.nan) for v in values])
    expected = golden[f"out/{tag}/first8"]
    assert (np.isnan(first8) == np.isnan(expected)).all()
    assert_close(np.nan_to_num(first8), np.nan_to_num(expected), 1e-5)
    assert_close([[v.mean(), v.std()] for v in values], golden[f"out/{tag}/mean_std"], 1e-5)
    if role == "G":
        statistics = torch.cat([state[key] for key in golden.order("G_bn_after_concat")])
        net.assert_close(statistics, "G_bn_after_concat")


@pytest.mark.parametrize("name", BIGGAN)
def test_biggan_gradients(name):
    net = BigGAN(name, torch.float64)
    fake = torch.from_numpy(net.golden["out/img_eval"]).double()
    fake_logits, real_logits = net.d(torch.cat([fake, net.real]), net.labels.repeat(2)).chunk(2)
    on_real, on_fake = torch.relu(1 - real_logits).mean(), torch.relu(1 + fake_logits).mean()
    net.assert_close(on_real, "hinge_d_real")
    net.assert_close(on_fake, "hinge_d_fake")
    (on_real + on_fake).backward()
    assert_golden_gradients(net.golden, "hinge_d", net.d, rtol=net.gradient_tolerance("hinge_d"))

    net = BigGAN(name, torch.float64)
    loss = -net.d(net.g(net.z, net.labels), net.labels).mean()
    net.assert_close(loss, "hinge_g")
    loss.backward()
    assert_golden_gradients(net.golden, "hinge_g", net.g, rtol=net.gradient_tolerance("hinge_g"))


# --- BigGAN against Flax ------------------------------------------------------------------------------------------------


def biggan_pair(resolution: int, deep: bool, dtype=np.float32):
    """Both networks in PyTorch, as they are after some passes in training, the same in Flax, and inputs."""
    shared = {"resolution": resolution, "num_classes": CLASSES, "deep": deep, "sn_epsilon": 1e-5}
    z_dim = 6 if deep else flax_biggan.default_z_dim(resolution, deep) // 10
    g_options = {"z_dim": z_dim, "width": 4, "embedding_dim": 7, "bn_epsilon": 1e-3, "bn_decay": 0.4}
    torch.manual_seed(resolution)
    torch_dtype = torch.float64 if dtype is np.float64 else torch.float32
    g = biggan.Generator(**shared, **g_options).to(torch_dtype)
    d = biggan.Discriminator(**shared, width=8).to(torch_dtype)
    z, labels = torch.randn(2, z_dim, dtype=torch_dtype), torch.arange(2) + 1
    with torch.no_grad():
        for module in (g, d):
            for parameter in module.parameters():
                noise = torch.randn_like(parameter)
                # Orthogonal weights have one singular value; others are the test of spectral normalisation.
                parameter.add_(noise * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3))
        for _ in range(2):
            d(g(z, labels), labels)
    flax = (
        flax_biggan.Generator(**shared, **g_options, dtype=dtype),
        flax_biggan.Discriminator(**shared, width=8, dtype=dtype),
    )
    return (g, d), flax, [State(i == 0, deep).variables(state_of(m)) for i, m in enumerate((g, d))], z, labels


@pytest.mark.parametrize("deep", [False, True], ids=["biggan", "deep"])
@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256, 512])
def test_biggan_against_flax(resolution, deep):
    (g, d), (flax_g, flax_d), (g_variables, d_variables), z, labels = biggan_pair(resolution, deep)

    @quick_jit
    def both(g_variables, d_variables):
        moved = {"update_stats": True, "mutable": ["spectral", "batch_stats"]}
        images, _ = flax_g.apply(g_variables, z.numpy(), labels.numpy(), **moved)
        return images, flax_d.apply(d_variables, images, labels.numpy(), **moved)[0].logits

    images, logits = both(g_variables, d_variables)
    assert images.std() > 0.01 and np.abs(images).mean() < 0.9  # not all at the ends of tanh
    with torch.no_grad():
        found = g.eval()(z, labels)
        found_logits = d.eval()(found, labels)
    assert_close(images_of(found), images, 1e-4)
    assert_close(numbers(found_logits)[:, 0], logits, 1e-4)


@pytest.mark.parametrize("deep", [False, True], ids=["biggan", "deep"])
def test_biggan_gradients_against_flax(deep, float64):
    """Of the generator's loss, in both networks, in training mode."""
    (g, d), (flax_g, flax_d), both_variables, z, labels = biggan_pair(32, deep, np.float64)
    (g_rest, d_rest) = ({k: v for k, v in tree.items() if k != "params"} for tree in both_variables)

    def loss(g_params, d_params):
        moved = {"update_stats": True, "mutable": ["spectral", "batch_stats"]}
        images, _ = flax_g.apply({"params": g_params, **g_rest}, z.numpy(), labels.numpy(), train=True, **moved)
        found, _ = flax_d.apply({"params": d_params, **d_rest}, images, labels.numpy(), **moved)
        return jax.nn.softplus(-found.logits).mean()

    gradients = quick_jit(jax.grad(loss, argnums=(0, 1)))(*(v["params"] for v in both_variables))
    softplus(-d(g(z, labels), labels)).mean().backward()
    for module, expected, is_generator in zip((g, d), gradients, (True, False), strict=True):
        parameters = dict(module.named_parameters())
        values = State(is_generator, deep).tensors({"params": expected}, list(parameters))
        largest = max(np.abs(value).max() for value in values)
        for (key, parameter), value in zip(parameters.items(), values, strict=True):
            # Biases before a batch normalisation have no gradient but for rounding.
            np.testing.assert_allclose(
                numbers(parameter.grad), value, rtol=1e-5, atol=1e-9 * largest, err_msg=key, strict=True
            )


def test_biggan_loaded_without_initial_values():
    (g, _), _, _, z, labels = biggan_pair(8, True)
    options = {"resolution": 8, "num_classes": CLASSES, "z_dim": 6, "width": 4, "deep": True, "embedding_dim": 7}
    with torch.device("meta"):
        loaded = biggan.Generator(**options, sn_epsilon=1e-5, bn_epsilon=1e-3)
    loaded.load_state_dict(g.state_dict(), strict=True, assign=True)
    torch.testing.assert_close(loaded.eval()(z, labels), g.eval()(z, labels), rtol=0, atol=0)


def test_biggan_of_embeddings():
    (g, _), _, _, z, labels = biggan_pair(8, False)
    g.eval()
    torch.testing.assert_close(g.synthesize(z, g.shared(labels)), g(z, labels), rtol=0, atol=0)


# --- BigGAN's standing statistics ---------------------------------------------------------------------------------------


def test_standing_statistics_are_sums():
    options = {"resolution": 8, "num_classes": 3, "z_dim": 4, "width": 4, "embedding_dim": 5}
    plain = biggan.Generator(**options)
    z, labels = torch.randn(4, 4), torch.arange(4) % 3
    plain(z, labels)  # updates the statistics
    standing = biggan.Generator(**options, standing_statistics=True)
    count, state = 16, plain.state_dict()
    for key in standing.state_dict():
        if key.endswith("accumulation_counter"):
            state[key] = torch.tensor([float(count)])
        elif ".bn.stored_" in key:
            state[key] = state.pop(key.replace(".bn.stored_", ".stored_")) * count
    standing.load_state_dict(state, strict=True)
    expected = plain.eval()(z, labels)
    torch.testing.assert_close(standing.eval()(z, labels), expected)


def test_standing_statistics_in_training():
    statistics = biggan.StandingStatistics(3, epsilon=1e-3, decay=0.75)
    statistics.stored_mean.fill_(8.0)
    statistics.stored_var.fill_(12.0)
    statistics.accumulation_counter.fill_(4.0)
    x = torch.randn(5, 3, 2, 2, dtype=torch.float32) * 2 + 1
    found = numbers(statistics(x))
    values = x.numpy().transpose(0, 2, 3, 1).reshape(-1, 3)
    mean, var = values.mean(axis=0), values.var(axis=0)
    standardized = (x.numpy() - mean[:, None, None]) / np.sqrt(var + 1e-3)[:, None, None]
    np.testing.assert_allclose(found, standardized, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics.stored_mean, 0.75 * 2 + 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(statistics.stored_var, 0.75 * 3 + 0.25 * var, rtol=1e-5)
    assert statistics.accumulation_counter.item() == 0


# --- what cannot be -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: stylegan2.Generator(48, 0), "power of two"),
        (lambda: stylegan2.Generator(32, 0, architecture="plain"), "'plain'"),
        (lambda: stylegan2.Discriminator(32, 0, naming="linear1"), "'linear1'"),
        (lambda: biggan.Generator(48, 3, 120, 8), "48 px"),
        (lambda: biggan.Generator(32, 3, 30, 8), "4 equal chunks"),
        (lambda: biggan.Discriminator(32, 3, 2), "at least 8 channels"),
    ],
)
def test_networks_that_cannot_be(make, words):
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        make()


def test_inputs_that_cannot_be():
    generator = stylegan2.Generator(8, 0, z_dim=4, w_dim=4, channel_max=4)
    with pytest.raises(ValueError, match="'fixed'"):
        generator(torch.zeros(1, 4), noise_mode="fixed")
    with pytest.raises(ValueError, match="batch of 3"):
        stylegan2.Discriminator(8, 0, channel_max=4, mbstd_group_size=2)(torch.zeros(3, 3, 8, 8))
