"""What is compared with ours in plain PyTorch: the extractors, and updates of StyleGAN2.

The extractors follow the specification of their public files, to compare speed and features. States are
``{key: torch.Tensor}`` by the public files' names. Images are float ``[n, 3, H, W]`` as the networks see them.
"""

import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from noisytwins_jax.config import RunConfig

State = Mapping[str, torch.Tensor]


def inception(state: State, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute features ``[n, 2048]`` and logits ``[n, 1008]`` of FID's InceptionV3, with the file's batch normalisation."""

    def unit(x, name, stride=1, padding=0):
        x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        parts = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *parts, eps=1e-3))

    def chain(x, block, *units):
        for name, *options in units:
            x = unit(x, f"{block}.{name}", *options)
        return x

    def row(name, size):
        return name, 1, (0, size // 2)

    def column(name, size):
        return name, 1, (size // 2, 0)

    def mean_pool(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def block_a(x, block):
        five = chain(x, block, ("branch5x5_1",), ("branch5x5_2", 1, 2))
        three = chain(x, block, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 1, 1))
        pooled = chain(mean_pool(x), block, ("branch_pool",))
        return torch.cat([chain(x, block, ("branch1x1",)), five, three, pooled], 1)

    def block_b(x, block):
        double = chain(x, block, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 2))
        return torch.cat([chain(x, block, ("branch3x3", 2)), double, F.max_pool2d(x, 3, 2)], 1)

    def block_c(x, block):
        seven = chain(x, block, ("branch7x7_1",), row("branch7x7_2", 7), column("branch7x7_3", 7))
        double = chain(
            x,
            block,
            ("branch7x7dbl_1",),
            *(
                column("branch7x7dbl_2", 7),
                row("branch7x7dbl_3", 7),
                column("branch7x7dbl_4", 7),
                row("branch7x7dbl_5", 7),
            ),
        )
        pooled = chain(mean_pool(x), block, ("branch_pool",))
        return torch.cat([chain(x, block, ("branch1x1",)), seven, double, pooled], 1)

    def block_d(x, block):
        three = chain(x, block, ("branch3x3_1",), ("branch3x3_2", 2))
        seven = chain(
            x, block, ("branch7x7x3_1",), row("branch7x7x3_2", 7), column("branch7x7x3_3", 7), ("branch7x7x3_4", 2)
        )
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def block_e(x, block, pool: Callable):
        three = chain(x, block, ("branch3x3_1",))
        double = chain(x, block, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1))
        parts = [chain(x, block, ("branch1x1",))]
        parts += [chain(three, block, make(f"branch3x3_2{end}", 3)) for make, end in ((row, "a"), (column, "b"))]
        parts += [chain(double, block, make(f"branch3x3dbl_3{end}", 3)) for make, end in ((row, "a"), (column, "b"))]
        return torch.cat([*parts, chain(pool(x), block, ("branch_pool",))], 1)

    x = unit(unit(unit(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=1)
    x = F.max_pool2d(x, 3, 2)
    x = F.max_pool2d(unit(unit(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
    for letter in "bcd":
        x = block_a(x, f"Mixed_5{letter}")
    x = block_b(x, "Mixed_6a")
    for letter in "bcde":
        x = block_c(x, f"Mixed_6{letter}")
    x = block_d(x, "Mixed_7a")
    x = block_e(block_e(x, "Mixed_7b", mean_pool), "Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, 1))
    features = x.mean((2, 3))
    return features, F.linear(features, state["fc.weight"], state["fc.bias"])


def clip_tower(state: State, x: torch.Tensor, heads: int) -> torch.Tensor:
    """Compute projected features ``[n, d]`` of CLIP's image tower, not normalised; `state` has OpenAI's names."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def attention(x, name):
        n, tokens, width = x.shape
        packed = F.linear(x, state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"])
        query, key, value = (
            part.view(n, tokens, heads, width // heads).transpose(1, 2) for part in packed.chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, tokens, width)
        return linear(mixed, f"{name}.out_proj")

    patches = F.conv2d(x, state["visual.conv1.weight"], stride=state["visual.conv1.weight"].shape[-1])
    patches = patches.flatten(2).transpose(1, 2)
    token = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = norm(torch.cat([token, patches], 1) + state["visual.positional_embedding"], "visual.ln_pre")
    layers = sum(key.endswith("ln_1.weight") for key in state)
    for i in range(layers):
        block = f"visual.transformer.resblocks.{i}"
        x = x + attention(norm(x, f"{block}.ln_1"), f"{block}.attn")
        hidden = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.c_proj")
    return norm(x[:, 0], "visual.ln_post") @ state["visual.proj"]


def stylegan2_updates(config: RunConfig, device: str, form: str, autocast: bool) -> tuple[Callable[[], None], ...]:
    """Build the networks of a configuration; return an update of G and one of D, with the logistic loss and Adam.

    Args:
      config: of a run on `synthetic` images.
      device: as PyTorch names it.
      form: ``eager`` or ``channels_last``; with ``, compiled`` the networks are compiled at their first use.
      autocast: whether networks run in bfloat16 where PyTorch's autocast does.
    """
    from noisytwins_jax.interop.pytorch import stylegan2

    n, resolution, classes = config.batch_size, config.data.resolution, config.data.options["num_classes"]
    shared = ("mapping_layers", "channel_base", "channel_max", "architecture")
    g_options = {name: getattr(config.generator, name) for name in (*shared, "z_dim", "w_dim")}
    d_options = {name: getattr(config.discriminator, name) for name in (*shared, "mbstd_group_size")}
    memory_format = torch.channels_last if form.startswith("channels_last") else torch.contiguous_format
    generator = stylegan2.Generator(resolution, classes, **g_options).to(device, memory_format=memory_format)
    discriminator = stylegan2.Discriminator(resolution, classes, **d_options).to(device, memory_format=memory_format)
    g_adam, d_adam = (torch.optim.Adam(x.parameters(), 0.0025, (0.0, 0.99)) for x in (generator, discriminator))
    compiled = form.endswith("compiled")
    generate, judge = (torch.compile(x) if compiled else x for x in (generator, discriminator))
    mixed = torch.autocast(device, torch.bfloat16, enabled=autocast)
    real = (torch.rand(n, 3, resolution, resolution, device=device) * 2 - 1).to(memory_format=memory_format)
    real_labels = torch.randint(classes, (n,), device=device)

    def random_inputs() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(n, config.generator.z_dim, device=device), torch.randint(classes, (n,), device=device)

    def apply(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def update_generator() -> None:
        discriminator.requires_grad_(False)
        z, labels = random_inputs()
        with mixed:
            logits = judge(generate(z, labels), labels)
        apply(F.softplus(-logits.float()).mean(), g_adam)

    def update_discriminator() -> None:
        discriminator.requires_grad_(True)
        z, labels = random_inputs()
        with mixed:
            with torch.no_grad():
                fake = generate(z, labels)
            real_logits, fake_logits = judge(real, real_labels), judge(fake, labels)
        apply((F.softplus(-real_logits.float()) + F.softplus(fake_logits.float())).mean(), d_adam)

    return update_generator, update_discriminator


def time_update(update: Callable[[], None], repeats: int) -> float:
    """Return the mean milliseconds of calls, after as many to warm up, at most three."""

    def run(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            update()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began) / count

    run(min(repeats, 3))
    return run(repeats)
