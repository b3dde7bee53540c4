"""``--mode=compile``: reading HLO, counting FLOPs, comparing results, and the TPU compiler itself where it is installed."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from paths import ROOT
from tiny_run import tiny_config

from noisytwins_jax.config.flags import load_config
from noisytwins_jax.data.config import DataConfig
from noisytwins_jax.data.registry import classes_and_channels, load_data
from noisytwins_jax.models.r3gan.layers import grouped_conv3x3
from noisytwins_jax.tpu_cost import compile as compile_module
from noisytwins_jax.tpu_cost import topology as topology_module
from noisytwins_jax.tpu_cost.chips import CHIPS, communication_seconds, get_chip
from noisytwins_jax.tpu_cost.comparison import compare_results, read_result
from noisytwins_jax.tpu_cost.compile import compile_run
from noisytwins_jax.tpu_cost.hlo import parse, read_program
from noisytwins_jax.tpu_cost.model_flops import count_flops, network_flops, program_flops
from noisytwins_jax.tpu_cost.topology import tpu_devices
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.phases import build_phases, runs_per_step
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.errors import UserError

FEW_PROGRAMS = tiny_config(**{"path_length.weight": 0.0, "r1.gamma": 0.0, "augment.diffaugment": ""})
CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
HLO = f"""HloModule jit_update, is_scheduled=true, entry_computation_layout={{(f32[8])->f32[8]}}

%fused_conv (p0: bf16[16,8,8,4]) -> bf16[16,8,8,4] {{
  %p0 = bf16[16,8,8,4]{{3,2,1,0:T(8,128)(2,1)}} parameter(0)
  %filtered = bf16[16,8,8,4]{{3,2,1,0}} convolution(%p0, %p0), window={{size=4x1 pad=1_1x0_0}}, dim_labels=b01f_01io->b01f, feature_group_count=4
  ROOT %conv = bf16[16,8,8,4]{{3,2,1,0}} convolution(%filtered, %p0), window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_01io->b01f
}}

%fused_filter (p1: bf16[16,8,8,4]) -> bf16[16,8,8,4] {{
  ROOT %filter = bf16[16,8,8,4]{{3,2,1,0}} convolution(%p1, %p1), window={{size=4x1}}, dim_labels=b01f_01io->b01f, feature_group_count=4
}}

%fused_gradient_of_1x1 (p2: bf16[16,8,8,4]) -> f32[3,4,1,1] {{
  ROOT %wgrad = f32[3,4,1,1]{{1,0,3,2}} convolution(%p2, %p2), window={{size=8x8}}, dim_labels=f01b_i01o->bf01
}}

%fused_move (p3: f32[4,8]) -> bf16[8,4] {{
  %turned = f32[8,4]{{1,0}} transpose(%p3), dimensions={{1,0}}
  ROOT %rounded = bf16[8,4]{{1,0}} convert(%turned)
}}

%all-reduce-scatter.1 (input: bf16[64]) -> bf16[16] {{
  %all-reduce.9 = bf16[64]{{0}} all-reduce(%input), channel_id=7, replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}, to_apply=%add
  ROOT %cut = bf16[16]{{0}} dynamic-slice(%all-reduce.9, %index), dynamic_slice_sizes={{16}}
}}

%async_collective_fusion.1 (p4: f32[4]) -> f32[8] {{
  ROOT %all-gather.21 = f32[8]{{0}} all-gather(%p4), channel_id=4, replica_groups=mesh['axis_0'=4,'axis_1'=2] {{'axis_1'}}, dimensions={{0}}
}}

%async_collective_fusion.2 (p5: f32[4]) -> f32[8] {{
  ROOT %all-gather.22 = f32[8]{{0}} all-gather(%p5), channel_id=4, replica_groups=mesh['axis_0'=4,'axis_1'=2] {{'axis_1'}}, dimensions={{0}}
}}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %product = f32[8]{{0}} fusion(%state), kind=kLoop, calls=%fused_move, metadata={{op_name="jit(update)/while/body/mul"}}, {CYCLES % 10}
  ROOT %next = (s32[], f32[8]{{0}}) tuple(%one, %product)
}}

%condition (state.1: (s32[], f32[8])) -> pred[] {{
  %limit = s32[]{{:T(256)}} constant(5)
  ROOT %lt = pred[]{{:T(1024)}} compare(%counter, %limit), direction=LT
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %fusion.1 = (u8[16,8]{{1,0:T(8,128)(4,1)S(3)}}, /*index=1*/bf16[16,8,8,4]{{3,2,1,0:T(8,128)(2,1)}}) fusion(%x), kind=kOutput, calls=%fused_conv, metadata={{op_name="jit(update)/jvp(Discriminator)/b8/conv0/conv_general_dilated"}}, {CYCLES % 1000}
  %fusion.2 = bf16[16,8,8,4]{{3,2,1,0}} fusion(%x), kind=kOutput, calls=%fused_filter, {CYCLES % 200}
  %fusion.3 = f32[3,4,1,1]{{1,0,3,2}} fusion(%x), kind=kOutput, calls=%fused_gradient_of_1x1, {CYCLES % 40}
  %copy.1 = f32[8]{{0}} copy(%x), {CYCLES % 7}
  %bits = u32[8]{{0}} add(%x, %x), {CYCLES % 3}
  %all-reduce.1 = (f32[100]{{0:T(512)}}, bf16[4,25]{{1,0}}) all-reduce(%a, %b), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %fusion.4 = bf16[16]{{0}} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %fusion.5 = f32[8]{{0}} fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  %fusion.6 = f32[8]{{0}} fusion(%x), kind=kCustom, calls=%async_collective_fusion.2
  %collective-permute-start = (f32[8]{{0}}, f32[8]{{0}}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) collective-permute-start(%x), channel_id=3, source_target_pairs={{{{0,1}},{{1,0}}}}
  %collective-permute-done = f32[8]{{0}} collective-permute-done(%collective-permute-start)
  %while.1 = (s32[], f32[8]{{0}}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[8]{{0}} sort(%x), dimensions={{0}}
}}
"""


def test_cycles_are_summed_and_named():
    read = read_program(HLO, num_devices=8, most_expensive=2)
    assert read["cycles"] == 1000 + 200 + 40 + 7 + 3 + 5 * 10  # a loop of five
    assert read["kinds"] == {
        "convolution": 1000,  # the filter that is fused into it counts with it
        "depthwise convolution": 200,
        "copy and layout": 57,
        "matrix product": 40,
        "elementwise": 3,
    }
    first = read["most_expensive"][0]
    assert first["where"] == "jvp(Discriminator)/b8/conv0/conv_general_dilated"
    assert first == first | {"cycles": 1000, "result": "(u8[16,8], bf16[16,8,8,4])"}
    assert len(read["most_expensive"]) == 2 and read["most_expensive"][1]["cycles"] == 200
    assert read["uncounted"] == {"sort": 1}


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    read = read_program(HLO.replace("direction=LT", "direction=NE"), 8)
    assert read["cycles"] == 1000 + 200 + 40 + 7 + 3 + 10
    assert read["uncounted"] == {"while": 1, "sort": 1}


@pytest.mark.parametrize("opcode", ["pad", "reduce-window"])
def test_what_has_no_estimate_when_not_fused_is_reported(opcode):
    alone = HLO.replace("  ROOT %result", f"  %alone.9 = f32[10]{{0}} {opcode}(%x, %x)\n  ROOT %result")
    assert read_program(alone, 8)["uncounted"] == {opcode: 1, "sort": 1}
    assert read_program(alone, 8)["cycles"] == read_program(HLO, 8)["cycles"]


def test_collectives_are_counted_once_with_the_size_of_their_arrays():
    found = read_program(HLO, num_devices=8)["collectives"]
    assert found == {
        "all-reduce": {"count": 1, "bytes": {"f32": 400, "bf16": 200}, "sent_bytes": 900},  # 2 · 3/4 of 600
        "all-gather": {"count": 1, "bytes": {"f32": 32}, "sent_bytes": 16},  # groups of 2; spread over two fusions
        "reduce-scatter": {"count": 1, "bytes": {"bf16": 128}, "sent_bytes": 96},  # an all-reduce that is cut
        "collective-permute": {"count": 1, "bytes": {"f32": 32}, "sent_bytes": 32},  # without its context
    }


def test_a_real_program_of_this_machine_is_read():
    def step(x, w):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x).sum()

    text = jax.jit(step).lower(jnp.ones((8, 8)), jnp.ones((8, 8))).compile().as_text()
    instructions, repeats = parse(text)
    assert {"while", "parameter"} <= {instruction.opcode for instruction in instructions}
    assert max(repeats.values()) == 3
    assert read_program(text, 1)["cycles"] == 0  # a CPU's compiler estimates none


def test_model_flops_of_the_published_networks():
    config = load_config([f"--config={ROOT}/configs/inat19.py"])
    flops = network_flops(config, channels=3, num_classes=1010)
    assert flops["generator"] == pytest.approx(15.26e9, rel=0.01)
    assert flops["discriminator"] == pytest.approx(15.71e9, rel=0.01)
    shift = dataclasses.replace(config, up_impl="shift")
    assert network_flops(shift, 3, 1010) == flops  # what is asked for, not how it is computed
    g, d = flops["generator"], flops["discriminator"]
    of_programs = program_flops(config, flops)
    assert of_programs["discriminator"] == 128 * (g + 6 * d)
    assert of_programs["generator"] == 128 * (3 * g + 2 * d)
    assert of_programs["path_length"] == 64 * 6 * g  # half the batch
    assert of_programs["average"] == 0


def test_flops_of_single_operations():
    x, w = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def conv(x, w, stride=1, padding="SAME", dilation=1, groups=1):
        return jax.lax.conv_general_dilated(
            *(x, w, (stride, stride), padding, (dilation, dilation)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    one = 2 * 2 * 9 * 3 * 5  # FLOPs of a pixel, both images
    assert count_flops(conv, x, w) == 64 * one
    assert count_flops(lambda x, w: conv(x, w, stride=2), x, w) == 16 * one
    assert count_flops(lambda x, w: conv(x, w, padding=[(2, 2), (2, 2)], dilation=2), x, w) == 64 * one  # transposed
    assert count_flops(lambda x: conv(x, jnp.zeros((4, 4, 1, 3)), groups=3), x) == 0  # a filter
    x, w = jnp.zeros((2, 8, 8, 12)), jnp.zeros((3, 3, 4, 12))  # of 3 groups, whatever a TPU makes of them
    assert count_flops(lambda x, w: grouped_conv3x3(x, w, 3), x, w) == 2 * 2 * 64 * 9 * 4 * 12
    a, b = jnp.zeros((4, 6)), jnp.zeros((6, 7))
    assert count_flops(jax.jit(jnp.matmul), a, b) == 2 * 4 * 6 * 7
    square = jnp.zeros((6, 6))
    assert count_flops(lambda a: jax.lax.fori_loop(0, 5, lambda _, a: a @ square, a), a) == 5 * 2 * 4 * 6 * 6


def test_chips_have_their_published_peaks():
    peaks = {chip.name: chip.peak_flops * chip.cores / 1e12 for chip in CHIPS}
    assert peaks == pytest.approx({"v2": 46, "v3": 123, "v4": 275, "v5e": 197, "v5p": 459, "v6e": 918}, rel=0.01)
    assert get_chip("v4:2x2x1").name == "v4" and get_chip("v9:1x1") is None
    assert communication_seconds(300e9, get_chip("v4:2x2x1")) == pytest.approx(
        2.0
    )  # a core has half of its chip's links


def test_classes_are_known_without_the_data():
    assert classes_and_channels(DataConfig("inat19", 64)) == (1010, 3)
    assert classes_and_channels(DataConfig("cifar10_lt", 32)) == (10, 3)
    assert classes_and_channels(DataConfig("digits_lt", 8)) == (10, 1)
    options = {"num_classes": 7, "num_images": 14, "channels": 1}
    assert classes_and_channels(DataConfig("synthetic", 8, options=options)) == (7, 1)
    with pytest.raises(UserError, match="There is no prepared data set inat19 of 64 px in data"):
        load_data(DataConfig("inat19", 64))


def test_programs_run_as_often_as_their_intervals_say():
    config = tiny_config(**{"optimizer.discriminator_updates": 2, "r1.interval": 4, "path_length.interval": 5})
    phases = build_phases(TrainingStep(config, build_model(config, 1, 4)))
    runs = runs_per_step(phases, batches=2)
    assert runs["discriminator"] == 2 and runs["r1"] == 0.5 and runs["path_length"] == 0.2 and runs["average"] == 1


@pytest.fixture
def this_machine(monkeypatch):
    """The compiler of this machine's CPU in place of a TPU's: everything but its estimates."""
    monkeypatch.setattr(compile_module, "tpu_devices", lambda _: jax.devices()[:1])


def test_a_run_is_compiled_printed_and_compared(this_machine, tmp_path, capsys):
    result = compile_run(FEW_PROGRAMS, "v3:1x1", ["average", "classifier"])
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == json.loads(json.dumps(result))
    assert "Faster on TPUs: --config.up_impl=conv --config.dtype=bfloat16." in out
    assert "average: " in err and "classifier: " in err
    average = result["programs"]["average"]
    assert average["memory_mb"]["aliased"] > 0.9 * average["memory_mb"]["arguments"] > 0
    assert average["fits"] and result["programs"]["classifier"]["model_gflop"] > 0
    assert result["step"]["missing"] == ["discriminator", "generator"]
    assert result["step"]["images_per_s"] is None

    (tmp_path / "earlier.txt").write_text(out)
    other = dataclasses.replace(FEW_PROGRAMS, generator=dataclasses.replace(FEW_PROGRAMS.generator, channel_max=16))
    compile_run(other, "v3:1x1", ["average"], str(tmp_path / "earlier.txt"))
    out, _ = capsys.readouterr()
    assert "Different config.generator.channel_max: 8 → 16." in out
    assert "classifier: only in the earlier result." in out


def test_differences_are_in_per_cent():
    def result(cycles, temporary, count, batch):
        memory = {"all": 200.0, "temporary": temporary}
        collectives = {"all-reduce": {"count": count, "bytes": {"f32": 4_000_000 * count}}} if count else {}
        program = {"mcycles": cycles, "memory_mb": memory, "sent_mb": 8.0, "collectives": collectives}
        step = {"runs": {"r1": 0.5}, "mcycles": cycles / 2, "sent_mb": 4.0}
        fields = {"batch_size": batch, "class_list": (1, 2)}
        return {"topology": "v3:1x1", "jax": "1", "libtpu": "1", "programs": {"r1": program}, "step": step} | {
            "fields": fields
        }

    text = compare_results(json.loads(json.dumps(result(50.0, 80.0, 1, 64))), result(40.0, 100.0, 2, 128))
    assert "50 → 40 (-20.0 %)" in text and "25 → 20 (-20.0 %)" in text
    assert "80 → 100 (+25.0 %)" in text
    assert "r1: all-reduce 1 → 2 (f32 4 MB → f32 8 MB)." in text
    assert "Different config.batch_size: 64 → 128." in text and "class_list" not in text


@pytest.mark.parametrize("text", ["", "no result\n", "[1, 2]\n", '{"topology": "v3:1x1"}\n', "3\n"])
def test_a_file_without_a_result_is_refused(tmp_path, text):
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match="not a result of --mode=compile"):
        read_result(tmp_path / "file")


def test_a_file_that_is_not_there_is_refused_first(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        compile_run(tiny_config(), "v3:1x1", None, str(tmp_path / "none"))


def test_user_errors(this_machine):
    with pytest.raises(UserError, match=r"no program 'discriminate'; did you mean 'discriminator'\?"):
        compile_run(FEW_PROGRAMS, "v3:1x1", ["discriminate"])
    config = tiny_config(batch_size=9)
    with pytest.raises(UserError, match="batch_size=9 does not divide"):
        compile_run(config, "v3:1x1")


def test_no_compiler_and_unknown_topologies(monkeypatch):
    monkeypatch.setattr(topology_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install libtpu"):
        tpu_devices("v3:2x2")
    monkeypatch.setattr(topology_module.importlib.util, "find_spec", lambda _: object())
    with pytest.raises(UserError, match="v9:1x1 is not a known TPU topology; give one of v2:2x2"):
        tpu_devices("v9:1x1")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed: pip install libtpu"
)
def test_the_digits_step_on_eight_cores_of_a_v4():
    """The real compiler on the networks of configs/digits_lt.py."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TPU_", "XLA_"))}
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "noisytwins_jax.main", f"--config={ROOT}/configs/digits_lt.py", "--mode=compile"),
            *("--topology=v4:2x2x1", "--programs=generator,average,discriminator,r1"),
            *("--config.up_impl=conv", "--config.dtype=bfloat16", "--config.discriminator.mbstd_group_size=4"),
        ],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    progress = re.compile(r"(Compiling .*|(generator|average|discriminator|r1): \d+ s)")
    assert all(progress.fullmatch(line) for line in finished.stderr.splitlines()), finished.stderr  # libtpu is quiet
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["cores"] == 8 and result["cores_per_chip"] == 2
    programs = result["programs"]
    assert set(programs) == {"generator", "average", "discriminator", "r1"}
    for name, costs in programs.items():
        assert costs["mcycles"] > 0.01 and costs["fits"]
        assert sum(costs["kinds"].values()) == round(1e6 * costs["mcycles"])
        assert "all-to-all" not in costs["collectives"]
        if name == "average":
            assert not costs["collectives"]
        else:
            gradients = costs["collectives"]["all-reduce"]
            assert gradients["count"] == 1 and set(gradients["bytes"]) == {"f32"}
            assert 0.1e6 < gradients["bytes"]["f32"] < 0.4e6  # 43 thousand parameters and more
            # The compiler counts FLOPs that the model does not ask for (filters, noise), and not fewer.
            assert 0.8 < costs["compiler_gflop"] / costs["model_gflop"] < 2
    step = result["step"]
    assert step["missing"] == []
    rates = {"generator": 1, "average": 1, "discriminator": 1, "r1": 1 / 16}
    assert step["mcycles"] == pytest.approx(sum(rate * programs[name]["mcycles"] for name, rate in rates.items()))
    assert step["images_per_s"] == pytest.approx(32 / (step["mcycles"] * 1e6 / 1050e6))
    assert 0 < step["mfu"] < 0.1 and 0 < step["communication_ms"] < step["ms"]


def test_a_program_that_jaxlib_cannot_read_is_reported(capsys):
    """As libtpu's scatters for v6e."""

    class Unreadable:
        def compile(self):
            return self

        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: async-update instruction should have 1 operands but sees 4")

    costs = compile_module._compile("generator", Unreadable(), 1.0, 8, get_chip("v6e:2x4"))
    assert costs.keys() == {"error"} and "LIBTPU_INIT_ARGS=--xla_tpu_enable_offloading" in costs["error"]
    assert "jaxlib cannot read generator" in capsys.readouterr().err
