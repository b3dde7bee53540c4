"""One command that measures an accelerator: correctness, speed, memory, the time to the first step, PyTorch, a training.

    python tests/benchmarks/accelerator.py --minutes=8 --out=DIR [--data-dir=data] [--peer-command="python step.py"]
                                              [--only=training,start]

Runs on the devices that JAX finds, and takes no longer than the minutes given. Every measurement is a process of its own
with a share of the time: one that fails, or does not finish, is recorded and leaves the others alone. Results are appended
to DIR/results.jsonl as they come, DIR/table.md is written at the end, and DIR/logs has the output of each process. A second
run with the same DIR adds to the table. On a CPU everything is smaller. README.md explains the parts.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# JAX and the package are imported by the processes that measure: the one that starts them must not hold an accelerator.

ROOT = Path(__file__).resolve().parents[2]
# Configurations of the training at the end: with a GPU or TPU, on CPUs, and where the data set is not prepared.
TRAINED = ("configs/fashion_mnist_lt.py:noisytwins", "configs/fashion_mnist_lt.py:noisytwins,cpu")
TRAINED_WITHOUT_DATA = "configs/digits_lt.py:noisytwins"
RESULTS, TABLE, LOGS = "results.jsonl", "table.md", "logs"
SHORTEST = 15.0  # seconds: no part is started with less; starting and compiling take most of them
SIZES = ("cifar10_lt", "inat19_64", "biggan_128")
BATCHES, CPU_BATCHES = (128, 64, 32), (4,)
STEPS, REPEATS = 4, 3  # whole steps, rounded up to windows, and timed calls of each program; on CPUs one call
# Singular values are computed every 100 steps: too rarely to be part of a short measurement.
FIELDS = {"biggan_128": ("spectra.interval=0",)}
CPU_FIELDS = {"biggan_128": ("biggan.generator_width=16", "biggan.discriminator_width=16")}
# What PyTorch's step has not: augmentation, the noise and the loss of the twins, R1.
PLAIN = ("augment.diffaugment=", "noisytwins.sigma=0", "noisytwins.weight=0", "r1.gamma=0")
GOLDEN = (
    *("stylegan2_studiogan_32_map8_resnet", "biggan_32", "stylegan2_nvidia_64", "biggandeep_32"),
    *("stylegan2_studiogan_32_map2_orig", "stylegan2_nvidia_16_clamp_skip", "biggan_64", "biggandeep_64"),
)
# dtype of activations, and what JAX calls the precision of products of float32.
PRECISIONS = {
    "bfloat16": ("bfloat16", None),
    "tensorfloat32": ("float32", "tensorfloat32"),
    "float32": ("float32", "highest"),
}
PRECISIONS_OF = {"cpu": ("float32",), "gpu": tuple(PRECISIONS)}  # TensorFloat-32 is of GPUs
# Parts by the first word of their name: the title of their table, and their share of the time, in seconds of a run of nine
# minutes. What a group leaves over, those after it may use.
GROUPS = {
    "golden": ("Golden numbers: largest relative differences in float32", 60),
    "step": ("One step of the digits against the CPU: largest relative differences", 30),
    "training": ("Training", 190),
    "sampling": ("Sampling: the 64 px generator of iNat19", 25),
    "extractors": ("Extractors, float32", 35),
    "start": ("From the start of the process to the end of the first step of CIFAR10-LT", 70),
    "pytorch": ("Updates of G and D alone, without R1, augmentation and twins: CIFAR10-LT", 60),
    "peer": ("Another program", 40),
    "run": ("A training for the rest of the time", 60),
}


# --- the process that starts the others ------------------------------------------------------------------------------


def main() -> None:
    """Measure, or take the single measurement that ``--part`` names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--peer-command", default="", help="shell command whose last line of JSON is recorded")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where fashion_mnist_lt is prepared")
    parser.add_argument("--only", default="", help="comma-separated beginnings of parts: training/cifar10_lt,pytorch")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out, options.data_dir = options.out.absolute(), options.data_dir.absolute()
    if options.part:
        run_measurement(options)
        return
    deadline = time.monotonic() + 60 * options.minutes

    def command(part: str, seconds: float) -> list[str]:
        arguments = [f"--part={part}", f"--out={options.out}", f"--seconds={seconds}", f"--began={time.time()}"]
        arguments += [f"--peer-command={options.peer_command}", f"--data-dir={options.data_dir}"]
        return [sys.executable, str(Path(__file__).resolve()), *arguments]

    (options.out / LOGS).mkdir(parents=True, exist_ok=True)
    run_part("device", 20 * options.minutes, options.out, command)
    device = read_lines(options.out)[-1]
    if "platform" not in device:
        raise SystemExit(f"error: JAX found no device; {device['error']}")
    wanted = tuple(options.only.split(","))
    parts = [part for part in list_parts(device["platform"], bool(options.peer_command)) if part.startswith(wanted)]
    if not parts:
        raise SystemExit(f"error: --only={options.only} is the beginning of no part; they are {', '.join(GROUPS)}.")
    try:
        run_parts(parts, deadline, options.out, command)
    finally:
        write_table(options.out)
        print(f"Table: {options.out / TABLE}")


def list_parts(platform: str, peer: bool) -> list[str]:
    """Return all parts in order, the most telling combinations first: a measurement and its arguments, between slashes."""
    batches = CPU_BATCHES if platform == "cpu" else BATCHES
    combinations = itertools.product(batches, precisions(platform), SIZES)
    training = [f"training/{size}/{precision}/{batch}" for batch, precision, size in combinations]
    parts = ["golden", "step", *training, "sampling", "extractors", "start/empty", "start/filled"]
    return [*parts, "pytorch/jax", "pytorch/torch", *(["peer"] if peer else []), "run"]


def run_parts(parts: Sequence[str], deadline: float, out: Path, command: Callable[[str, float], list[str]]) -> None:
    """Run the process of each part; see `run_part`. `deadline` is on the monotonic clock."""
    groups = list(dict.fromkeys(part.split("/")[0] for part in parts))
    shares = [GROUPS[group][1] for group in groups]
    began = time.monotonic()
    per_share = (deadline - began) / max(1, sum(shares))
    deadlines = dict(zip(groups, (began + per_share * x for x in itertools.accumulate(shares)), strict=True))
    for part in parts:
        group = part.split("/")[0]
        seconds = deadlines[group] - time.monotonic()
        if seconds < SHORTEST:
            record(out, part, skipped=f"less than {SHORTEST:.0f} s were left for {group}")
        else:
            run_part(part, seconds, out, command)


def run_part(part: str, seconds: float, out: Path, command: Callable[[str, float], list[str]]) -> None:
    """Run the process of a part, which records its results; record that it failed or did not finish in time."""
    log, began = out / LOGS / f"{part.replace('/', '-')}.txt", time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(command(part, seconds), stderr=stream, env=environment(), start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # with everything that it started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    passed = round(time.monotonic() - began, 1)
    if status is None:
        record(out, part, seconds=passed, error=f"not finished in the {seconds:.0f} s left for it")
    elif status:
        last = (log.read_text(errors="replace").strip() or "no message").splitlines()[-1][:200]
        record(out, part, seconds=passed, error=f"status {status}: {last}")


def environment() -> dict[str, str]:
    """Return the environment of the processes that measure."""
    variables = dict(os.environ)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), variables.get("PYTHONPATH")]))
    # JAX would otherwise reserve most of a GPU's memory, and its peak would say nothing.
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if variables.get("JAX_PLATFORMS") and "cpu" not in variables["JAX_PLATFORMS"]:
        variables["JAX_PLATFORMS"] += ",cpu"  # for the comparison with the CPU
    return variables


# --- results ---------------------------------------------------------------------------------------------------------


def read_lines(out: Path) -> list[dict[str, Any]]:
    """Read the results written so far."""
    path = out / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(out: Path, part: str, **fields: Any) -> None:
    """Append a line to the results, with the device and JAX's version, and print it."""
    device = next((line for line in reversed(read_lines(out)) if "platform" in line), {})
    common = {name: device[name] for name in ("device", "jax") if name in device}
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps({"part": part} | common | fields) + "\n")
    print(f"{part}: {', '.join(f'{name} {cell(value)}' for name, value in fields.items())}", flush=True)


def write_table(out: Path) -> None:
    """Write a table for each group from the last line of each case, and a list of what was not measured."""
    cases, last = {}, {}
    for line in read_lines(out):
        last[line["part"]] = line
        if "case" in line:
            cases[line["part"], line["case"]] = line
    device = last.get("device", {})
    text = [f"# Measurements: {device.get('device', 'unknown device')}, JAX {device.get('jax', 'unknown')}", ""]
    for group, (title, _) in GROUPS.items():
        rows = [line for (part, _), line in cases.items() if part.split("/")[0] == group]
        if not rows:
            continue
        hidden = ("part", "device", "jax", "seconds", "precision")
        columns = list(dict.fromkeys(name for row in rows for name in row if name not in hidden))
        text += [f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        text += [f"| {' | '.join(cell(row.get(name)) for name in columns)} |" for row in rows]
        text += [""]
    failed = [line for line in last.values() if "error" in line or "skipped" in line]
    if failed:
        text += ["## Not measured, or not to the end", "", "| part | reason |", "|---|---|"]
        text += [f"| {line['part']} | {cell(line.get('error') or line['skipped'])} |" for line in failed]
    (out / TABLE).write_text("\n".join(text).rstrip() + "\n")


def cell(value: Any) -> str:
    """Format a value for a table: numbers with four digits, mappings as a list."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {cell(entry)}" for name, entry in value.items())
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "/")


# --- measurements: each yields its results, one case at a time -------------------------------------------------------


def run_measurement(options: argparse.Namespace) -> None:
    """Take the measurement that ``--part`` names, and record each result as it comes, or why it failed."""
    name, *arguments = options.part.split("/")
    began = options.began

    def passed() -> float:
        nonlocal began
        before, began = began, time.time()
        return round(began - before, 1)

    try:
        for fields in MEASUREMENTS[name](options, *arguments):
            record(options.out, options.part, **fields, seconds=passed())
    except ModuleNotFoundError as error:  # PyTorch
        record(options.out, options.part, skipped=str(error), seconds=passed())
    except Exception as error:
        traceback.print_exc()
        message = (str(error).strip() or "no message").splitlines()[0][:200]
        record(options.out, options.part, error=f"{type(error).__name__}: {message}", seconds=passed())


def describe_device(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what JAX runs on."""
    import jax

    first = jax.devices()[0]
    memory = (first.memory_stats() or {}).get("bytes_limit")
    yield {"case": "device", "device": first.device_kind, "platform": jax.default_backend(), "jax": jax.__version__} | {
        "devices": jax.device_count(),
        "memory_gb": memory and round(memory / 1e9, 1),
        "cpus": os.cpu_count(),
    }


def compare_golden(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the differences of forward passes and gradients from the numbers of the official implementations."""
    use_precision("float32")
    sys.path += [str(ROOT / "tests" / folder) for folder in ("helpers", "models")]
    for name in GOLDEN[:2] if on_cpu(options) else GOLDEN:  # the tests compare all of them on CPUs
        losses = biggan_losses(name) if name.startswith("biggan") else stylegan2_losses(name)
        yield {"case": name} | {field: x for loss in losses for field, x in compare_loss(*loss).items()}


# Of a golden set: the set, the network's name, a loss (parameters → value and outputs), its parameters, the expected
# outputs, the name of the expected gradients, and a function that puts gradients into their order.
GoldenLoss = tuple[Any, str, Callable, dict, list, str, Callable]


def stylegan2_losses(name: str) -> Iterator[GoldenLoss]:
    """Yield both losses of a golden set of StyleGAN2."""
    import numpy as np
    from golden_numbers import nhwc
    from stylegan2_state import tensors
    from test_stylegan2_golden import LOSS, Networks

    from noisytwins_jax.models.fir import resolve_up_impl

    net = Networks(name, resolve_up_impl("auto"), np.float32)
    golden, images = net.golden, nhwc(net.golden["out/img_const"])
    suffix, g_tag, d_tag = ("_nonoise", "g_loss", "d_loss") if "studiogan" in name else ("", "Gmain", "Dmain")

    def generator(params: dict) -> tuple:
        found = net.images(params)
        return LOSS.generator(net.logits(found)).mean(), [found]

    def discriminator(params: dict) -> tuple:
        logits = [net.logits(net.real, params), net.logits(images, params)]
        return LOSS.discriminator(*logits).mean(), logits

    expected = [golden[f"out/d_logits_{kind}{suffix}"][:, 0] for kind in ("real", "fake")]
    yield golden, "generator", generator, net.g["params"], [images], g_tag, tensors
    yield golden, "discriminator", discriminator, net.d["params"], expected, d_tag, tensors


def biggan_losses(name: str) -> Iterator[GoldenLoss]:
    """Yield both losses of a golden set of BigGAN, in training mode."""
    import numpy as np
    from golden_numbers import nhwc
    from test_biggan_golden import HINGE, Networks

    net = Networks(name, np.float32)
    golden, n = net.golden, len(net.labels)
    net.generator = net.generator.clone(output_bn_epsilon=golden.config["output_bn_eps"])
    images = np.concatenate([nhwc(golden["out/img_eval"]), net.real])
    g, d = (net.variables[module]["params"] for module in "GD")

    def generator(params: dict) -> tuple:
        found, _ = net.images(params, train=True)
        return HINGE.generator(net.logits(d, found, net.labels)[0]).mean(), [found]

    def discriminator(params: dict) -> tuple:
        logits, _ = net.logits(params, images, np.concatenate([net.labels, net.labels]))
        return HINGE.discriminator(logits[n:], logits[:n]).mean(), [logits[n:], logits[:n]]

    def tensors(module: str) -> Callable:
        return lambda gradients, order: net.states[module].tensors({"params": gradients}, order)

    expected = [golden[f"out/d_logits_{kind}_eval"][:, 0] for kind in ("real", "fake")]
    yield golden, "generator", generator, g, [nhwc(golden["out/img_train"])], "hinge_g", tensors("G")
    yield golden, "discriminator", discriminator, d, expected, "hinge_d", tensors("D")


def compare_loss(
    golden: Any, network: str, loss: Callable, params: dict, expected: list, tag: str, tensors: Callable
) -> dict[str, float]:
    """Compute the largest relative differences of a loss's outputs and gradients; gradients by norms and projections."""
    import jax
    import numpy as np
    from golden_numbers import weight

    (_, outputs), tree = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    order = golden.order(tag)
    gradients = tensors(tree, order)
    norms = np.array([np.linalg.norm(x) for x in gradients])
    probes = [(x * weight(k, x.shape, "normal", 1, 0, "probe:")).sum() for k, x in zip(order, gradients, strict=True)]
    found, names = (norms, probes), ("grad_norm", "grad_probe")
    return {
        network: max(map(relative, outputs, expected)),
        f"{network}_gradients": max(relative(x, golden[f"out/{tag}/{k}"]) for x, k in zip(found, names, strict=True)),
    }


def relative(actual: Any, expected: Any) -> float:
    """Compute the largest difference, relative to the largest expected magnitude."""
    import numpy as np

    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    if actual.shape != expected.shape:
        raise ValueError(f"shapes {actual.shape} and {expected.shape} differ")
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def compare_step(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the differences of a step of the digits, R1 included, from the same step on the CPU."""
    if on_cpu(options):
        yield {"skipped": "the devices are CPUs"}
        return
    use_precision("float32")
    import jax
    from training import prepare, process_batches
    from workloads import build_workload

    config = build_workload("digits", dtype="float32")
    here, cpu = (prepare(config, [device]) for device in (jax.devices()[0], jax.devices("cpu")[0]))
    with process_batches(config, cpu.splits) as batches:
        batch = next(batches)
    # Both start from the CPU's state: another device may draw it differently in the last bit.
    states = jax.block_until_ready(jax.device_put(cpu.state, here.compiled.layout.replicated)), cpu.state
    ours, theirs = (
        results_of_step(*side.compiled(state, 0, iter([batch])))
        for side, state in zip((here, cpu), states, strict=True)
    )
    yield {"case": "float32"} | {name: max(map(relative, ours[name], theirs[name])) for name in ours}


def results_of_step(state: Any, reported: list) -> dict[str, list]:
    """Return the arrays that a step computed, by kind."""
    import jax

    networks = state.generator, state.discriminator
    losses = [{k: v for k, v in metrics.items() if k.startswith("loss/")} for _, metrics, *_ in reported]
    found = {"losses": losses, "parameters": [x.params for x in networks], "adam": [x.opt_state for x in networks]}
    return {name: jax.tree.leaves(jax.device_get(tree)) for name, tree in found.items()}


def measure_training(options: argparse.Namespace, size: str, precision: str, batch: str) -> Iterator[dict[str, Any]]:
    """Yield speed and memory of training."""
    dtype = use_precision(precision)
    from training import measure
    from workloads import build_workload

    cpu = on_cpu(options)
    fields = (*FIELDS.get(size, ()), *(CPU_FIELDS.get(size, ()) if cpu else ()))
    config = build_workload(size, int(batch), dtype=dtype, fields=fields)
    report = measure(config, steps=0 if cpu else STEPS, repeats=1 if cpu else REPEATS)
    peak = "peak_rss_mb" if cpu else "device_peak_mb"
    shown = ("images_per_second", "ms_per_step", "ms_per_program", "compile_s", peak)
    yield {"case": f"{size}, {precision}, batch {batch}"} | {name: report[name] for name in shown}


def measure_sampling(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the speed of a generator, in the first of the platform's precisions."""
    precision = precisions(platform_of(options))[0]
    dtype = use_precision(precision)
    from sampling import build_generator, images_per_second, our_program, sample_inputs

    from noisytwins_jax.utils.sharding import use_all_cores

    use_all_cores()
    config, model, variables = build_generator(64, dtype)
    for batch in (1, 8) if on_cpu(options) else (1, 64):
        program = our_program(model, variables, *sample_inputs(config, batch))
        program()
        rate = max(images_per_second(program, batch, seconds=1.0) for _ in range(3))
        yield {"case": f"{precision}, batch {batch}", "images_per_second": round(rate, 1)}


def measure_extractors(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the speed of Inception and CLIP, and of the same networks in PyTorch."""
    from extractors import measure

    from noisytwins_jax.utils.sharding import use_all_cores

    use_all_cores()
    for network in ("inception", "clip-vit-b32"):
        report = measure(network, per_device_batch=0, rounds=1 if on_cpu(options) else 3, seconds=1.0)
        yield {"case": network} | {name: report[name] for name in report if name not in ("network", "device", "rounds")}


def measure_start(options: argparse.Namespace, cache: str) -> Iterator[dict[str, Any]]:
    """Yield the time from the start of the process to the end of the first step, with an empty cache or a filled one."""
    directory = options.out / "cache"
    if cache == "empty":
        shutil.rmtree(directory, ignore_errors=True)
    elif not any(line["part"] == "start/empty" and "case" in line for line in read_lines(options.out)):
        raise RuntimeError("the start that fills the cache did not finish")
    import jax
    from training import prepare, process_batches
    from workloads import build_workload

    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)  # as training does
    batch, dtype = (CPU_BATCHES[0], "float32") if on_cpu(options) else (None, None)
    config, splits, _, compiled, state, compile_seconds = prepare(build_workload("cifar10_lt", batch, dtype=dtype))
    with process_batches(config, splits) as batches:
        jax.block_until_ready(compiled(state, 0, batches)[0])
    seconds = round(time.time() - options.began, 1)
    yield {"case": f"cache: {cache}", "seconds_to_first_step": seconds, "compile_s": round(compile_seconds, 1)}


def measure_updates(options: argparse.Namespace, framework: str) -> Iterator[dict[str, Any]]:
    """Yield the speed of one update of G and one of D, of the same networks here and in PyTorch."""
    from workloads import build_workload

    batch = CPU_BATCHES[0] if on_cpu(options) else BATCHES[0]
    time_updates = {"jax": time_jax_updates, "torch": time_torch_updates}[framework]
    rates = {}
    for line in read_lines(options.out):
        if line["part"] == "pytorch/jax" and "case" in line:
            rates[line["precision"]] = line["images_per_second"]
    for form, precision, *ms in time_updates(options, build_workload, batch):
        rate = 1e3 * batch / sum(ms)
        found = {"case": f"{form}, {precision}", "precision": precision, "batch": batch, "images_per_second": rate}
        found |= dict(zip(("generator_ms", "discriminator_ms"), ms, strict=True))
        yield found | (
            {"jax_over_this": rates[precision] / rate} if framework == "torch" and precision in rates else {}
        )


Updates = Iterator[tuple[str, str, float, float]]  # form, precision, milliseconds of G's update and of D's


def time_jax_updates(options: argparse.Namespace, build_workload: Callable, batch: int) -> Updates:
    """Time the updates of this project in every precision of the platform."""
    from training import measure

    for precision in precisions(platform_of(options)):
        config = build_workload("cifar10_lt", batch, dtype=use_precision(precision), fields=PLAIN)
        ms = measure(config, steps=0, repeats=1 if on_cpu(options) else 10)["ms_per_program"]
        yield "JAX", precision, ms["generator"], ms["discriminator"]


def time_torch_updates(options: argparse.Namespace, build_workload: Callable, batch: int) -> Updates:
    """Time the updates of `noisytwins_jax.interop.pytorch` in the forms that its users know."""
    import torch
    from torch_networks import stylegan2_updates, time_update

    cuda = not on_cpu(options)
    if cuda and not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")
    torch.backends.cudnn.benchmark = True
    config = build_workload("cifar10_lt", batch, fields=PLAIN)
    # What compiles, and may fail, comes last.
    forms = [("eager", "float32"), ("eager", "tensorfloat32"), ("channels_last", "tensorfloat32")]
    forms += [("channels_last", "bfloat16"), ("channels_last, compiled", "bfloat16")]
    for form, precision in forms if cuda else [("eager", "float32"), ("channels_last", "float32")]:
        allowed = precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        updates = stylegan2_updates(config, "cuda" if cuda else "cpu", form, precision == "bfloat16")
        yield f"PyTorch {torch.__version__}, {form}", precision, *(time_update(x, 10 if cuda else 1) for x in updates)


def run_peer(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the last line of JSON that another program prints."""
    printed = subprocess.run(options.peer_command, shell=True, stdout=subprocess.PIPE, text=True)
    lines = [line for line in printed.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"the command printed no line of JSON; its status is {printed.returncode}")
    yield {"case": "peer", "result": json.loads(lines[-1])}


def measure_run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train by the public command until the time is over; yield its speed and the last line of its log."""
    from noisytwins_jax.utils.logging import METRICS_FILE, read_metrics

    workdir = options.out / "run" / "training"
    shutil.rmtree(workdir, ignore_errors=True)
    prepared = (options.data_dir / "fashion_mnist_lt").is_dir()
    trained = TRAINED[on_cpu(options)] if prepared else TRAINED_WITHOUT_DATA
    command = [sys.executable, "-m", "noisytwins_jax.main", f"--config={ROOT / trained}", f"--workdir={workdir}"]
    command += [f"--config.data.dir={options.data_dir}"] if prepared else []
    process = subprocess.Popen(command, stdout=sys.stderr)
    left = options.seconds - (time.time() - options.began)
    to_stop = min(20.0, 0.3 * left)
    try:
        process.wait(left - to_stop)
    except subprocess.TimeoutExpired:
        process.terminate()  # it saves its state
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.7 * to_stop)
    logged = read_metrics(workdir) if (workdir / METRICS_FILE).exists() else []
    speeds = [line["img_per_second"] for line in logged if "img_per_second" in line]
    if not speeds:
        raise RuntimeError(f"nothing was logged in {left - to_stop:.0f} s; the status is {process.poll()}")
    ended = {None: "killed", 0: "finished"}.get(process.poll(), "stopped")
    yield {"case": trained, "images_per_second": statistics.median(speeds), "ended": ended, "last_line": logged[-1]}


MEASUREMENTS = {
    "device": describe_device,
    "golden": compare_golden,
    "step": compare_step,
    "training": measure_training,
    "sampling": measure_sampling,
    "extractors": measure_extractors,
    "start": measure_start,
    "pytorch": measure_updates,
    "peer": run_peer,
    "run": measure_run,
}


def use_precision(name: str) -> str:
    """Set the precision of products of float32; return the dtype of activations."""
    import jax

    dtype, products = PRECISIONS[name]
    jax.config.update("jax_default_matmul_precision", products)
    return dtype


def precisions(platform: str) -> tuple[str, ...]:
    """Return the precisions to measure, the most used first."""
    return PRECISIONS_OF.get(platform, ("bfloat16", "float32"))


def platform_of(options: argparse.Namespace) -> str:
    """Return the platform that the results name."""
    return next(line["platform"] for line in reversed(read_lines(options.out)) if "platform" in line)


def on_cpu(options: argparse.Namespace) -> bool:
    """Return whether the devices are CPUs, without asking JAX, which must not hold a GPU that PyTorch measures."""
    return platform_of(options) == "cpu"


if __name__ == "__main__":
    main()
