"""Adam's state between PyTorch and this project, on the networks of the golden sets."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden_numbers import Golden, assert_close, weight

from noisytwins_jax.config.groups import OptimizerConfig
from noisytwins_jax.interop.adam import adam_to_jax, adam_to_torch, get_moments, set_moments
from noisytwins_jax.interop.stylegan2 import state_dict as stylegan2
from noisytwins_jax.training.optimizer import lazy_adam, lazy_rates
from noisytwins_jax.utils.errors import UserError

SETS = {"studiogan": "stylegan2_studiogan_32_map2_orig", "nvidia": "stylegan2_nvidia_16_clamp_skip"}
UNREACHED = ("output", "bias")  # of the discriminator's parameters, by R1
INTERVAL, COUNT, FEWER = 16, 17, 16
ADAM = OptimizerConfig(beta1=0.5)
LR, BETA1, BETA2 = lazy_rates(ADAM.discriminator_lr, ADAM.beta1, ADAM.beta2, INTERVAL)
GROUP = {"lr": LR, "betas": (BETA1, BETA2), "eps": ADAM.epsilon, "weight_decay": 0, "amsgrad": False}


class Public:
    """A network of a golden set, with moments of its parameters; BigGAN's are tested in test_biggan_state_dict."""

    def __init__(self, naming, module="D"):
        self.weights = Golden(SETS[naming]).weights(module)
        self.network = stylegan2.read_stylegan2(self.weights)
        self.params = self.network.variables["params"]
        self.context = (self.network, naming, stylegan2)
        self.keys = list(stylegan2.write_parameters(self.params, self.network, naming))

    def random(self, kind):
        """Return random numbers of the parameters' shapes, by key."""
        return {key: weight(key, self.weights[key].shape, "normal", 1, 0, kind) for key in self.keys}

    def moments(self, kind):
        return {key: np.square(x) + np.float32(0.1) for key, x in self.random(kind).items()}

    def to_jax(self, tensors):
        """Convert tensors by key to Flax's layout, by path."""
        return flatten_dict(stylegan2.read_parameters(tensors, *self.context[:2]))

    def saved(self):
        """Return a state as PyTorch saves it, in which R1 skipped one parameter once."""
        mu, nu = self.moments("m:"), self.moments("v:")
        state = {}
        for i, key in enumerate(self.keys):
            count = np.array(FEWER if key in ("linear1.bias", "b4.out.bias") else COUNT, np.float32)
            state[i] = {"step": count, "exp_avg": mu[key], "exp_avg_sq": nu[key]}
        return {"state": state, "param_groups": [{**GROUP, "params": list(range(len(self.keys)))}]}

    def read(self):
        return adam_to_jax(self.saved(), *self.context)

    def written(self, moments):
        return adam_to_torch(moments, *self.context, LR, (BETA1, BETA2), ADAM.epsilon)


public = functools.cache(Public)


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys() and actual["param_groups"] == expected["param_groups"]
    assert list(actual["state"]) == list(expected["state"])
    for i, entry in expected["state"].items():
        assert actual["state"][i].keys() == entry.keys()
        for name, value in entry.items():
            found = actual["state"][i][name]
            assert (found.shape, found.dtype, found.tobytes()) == (value.shape, value.dtype, value.tobytes()), (i, name)


@pytest.mark.parametrize("module", ["G", "D"])
@pytest.mark.parametrize("naming", SETS)
def test_both_ways_change_no_bit(naming, module):
    net = public(naming, module)
    moments = net.read()
    for tree in (moments.mu, moments.nu, moments.counts):
        assert jax.tree.structure(tree) == jax.tree.structure(net.params)
    # Moments have their parameter's layout.
    own = net.to_jax({key: net.weights[key] for key in net.keys})
    jax.tree.map(np.testing.assert_array_equal, own, flatten_dict(net.params))
    jax.tree.map(np.testing.assert_array_equal, net.to_jax(net.moments("m:")), flatten_dict(moments.mu))
    jax.tree.map(np.testing.assert_array_equal, net.to_jax(net.moments("v:")), flatten_dict(moments.nu))
    assert_same_state(net.written(moments), net.saved())


@pytest.mark.parametrize("unreached", [(), (UNREACHED,)])
def test_the_optimiser_continues_from_there(unreached):
    """One more update by the formula, with a parameter's own count where the optimiser has one."""
    net = public("nvidia")
    adam = lazy_adam(ADAM, ADAM.discriminator_lr, INTERVAL, unreached)
    opt_state = set_moments(adam.init(net.params), net.read())
    assert jax.tree.structure(opt_state) == jax.tree.structure(adam.init(net.params))
    gradients = jax.tree.map(lambda x: x + 1.0, net.params)
    updates, _ = jax.jit(adam.update)(gradients, opt_state, net.params)
    mu, nu = (net.to_jax(net.moments(kind)) for kind in ("m:", "v:"))
    for path, update in flatten_dict(updates).items():
        count = 1 + (FEWER if unreached and path == UNREACHED else COUNT)
        g = np.float64(flatten_dict(gradients)[path])
        m = BETA1 * mu[path] + (1 - BETA1) * g
        v = BETA2 * nu[path] + (1 - BETA2) * g**2
        assert_close(update, -LR * m / (1 - BETA1**count) / (np.sqrt(v / (1 - BETA2**count)) + ADAM.epsilon), 1e-5)


@pytest.mark.parametrize("unreached", [(), (UNREACHED,)])
def test_moments_of_an_optimiser_state(unreached):
    net = public("studiogan")
    adam = lazy_adam(ADAM, ADAM.discriminator_lr, INTERVAL, unreached)
    moments = net.read()
    again = get_moments(set_moments(adam.init(net.params), moments))
    for tree in ("mu", "nu", *(["counts"] if unreached else [])):
        jax.tree.map(np.testing.assert_array_equal, getattr(again, tree), getattr(moments, tree))
    assert set(jax.tree.leaves(again.counts)) == ({COUNT, FEWER} if unreached else {COUNT})


def test_parameters_without_an_update_yet():
    net = public("studiogan")
    fresh = {**net.saved(), "state": {}}
    moments = adam_to_jax(fresh, *net.context)
    assert not any(np.any(x) for x in jax.tree.leaves((moments.mu, moments.nu, moments.counts)))
    assert_same_state(net.written(moments), fresh)


def test_what_is_wrong_is_named():
    net = public("studiogan")
    good = net.saved()

    def refused(state, *words):
        with pytest.raises(UserError) as caught:
            adam_to_jax(state, *net.context)
        assert all(word in str(caught.value) for word in words) and str(caught.value).endswith("."), caught.value

    def changed(i, **values):
        return {**good, "state": {**good["state"], i: {**good["state"][i], **values}}}

    shape = str(list(net.weights[net.keys[0]].shape))
    refused({**good, "param_groups": [{"params": [0, 1]}]}, "of 2 parameters", f"has {len(net.keys)}")
    refused(changed(0, exp_avg=np.zeros(3)), net.keys[0], "exp_avg of shape [3]", shape)
    refused(changed(0, step=np.zeros(2)), net.keys[0], "step of shape [2]")
    refused({**good, "state": {**good["state"], 1: {"step": 1}}}, net.keys[1], "lacks exp_avg")
    refused({**good, "state": {**good["state"], 999: {}}}, "999")
    refused({**good, "param_groups": [{**good["param_groups"][0], "amsgrad": True}]}, "amsgrad")
    for other in ({}, {"state": {}}, [], {"state": [], "param_groups": []}):
        refused(other, "no state of torch.optim.Adam")


def test_moments_of_another_network():
    d, g = public("studiogan"), public("studiogan", "G")
    adam, moments = lazy_adam(ADAM, 0.1, INTERVAL), d.read()
    with pytest.raises(UserError, match=r"^The moments of \S+ (are missing|have shape) "):
        set_moments(adam.init(g.params), moments)
    less = {key: value for key, value in d.params.items() if key != "output"}
    with pytest.raises(UserError, match="moments of output/bias, which the optimiser does not train"):
        set_moments(adam.init(less), moments)


@pytest.mark.slow
def test_pytorch_continues_from_there():
    """PyTorch's own Adam: some updates, its state to our layout and back, one more update in each."""
    torch = pytest.importorskip("torch")
    net = public("nvidia")
    tensors = {key: torch.nn.Parameter(torch.zeros(net.weights[key].shape)) for key in net.keys}

    def optimiser():
        return torch.optim.Adam(tensors.values(), lr=LR, betas=(BETA1, BETA2), eps=ADAM.epsilon)

    def update(adam, step):
        for key, gradient in net.random(f"{step}:").items():
            skipped = step == 2 and key == "b4.out.bias"  # as the bias of the logits in an update of R1
            tensors[key].grad = None if skipped else torch.from_numpy(gradient)
        adam.step()

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value.numpy().copy() if isinstance(value, torch.Tensor) else value

    def numbers():
        return net.to_jax({key: tensor.detach().numpy().copy() for key, tensor in tensors.items()})

    adam = optimiser()
    for step in range(4):
        update(adam, step)
    state, before = plain(adam.state_dict()), numbers()
    moments = adam_to_jax(state, *net.context)
    written = net.written(moments)
    entries = {i: {name: torch.from_numpy(x) for name, x in entry.items()} for i, entry in written["state"].items()}
    again = optimiser()
    again.load_state_dict({**written, "state": entries})
    jax.tree.map(np.testing.assert_array_equal, plain(again.state_dict())["state"], state["state"])
    update(again, 4)
    after = numbers()

    ours, params = lazy_adam(ADAM, ADAM.discriminator_lr, INTERVAL, (UNREACHED,)), unflatten_dict(before)
    gradients = unflatten_dict(net.to_jax(net.random("4:")))
    updates, _ = ours.update(gradients, set_moments(ours.init(params), moments), params)
    for path, found in flatten_dict(updates).items():
        assert_close(found, after[path] - before[path], 1e-5)
