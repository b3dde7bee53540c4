"""A result of ``--mode=compile`` as readable text."""

from typing import Any

from noisytwins_jax.tpu_cost.chips import get_chip

Result = dict[str, Any]


def format_result(result: Result) -> str:
    """Format all numbers of a result of `compile.compile_run` as tables."""
    programs = {name: costs for name, costs in result["programs"].items() if "error" not in costs}
    parts = [_heading(result)]
    parts += [
        f"{name} DOES NOT COMPILE: {costs['error']}." for name, costs in result["programs"].items() if "error" in costs
    ]
    parts += [
        f"{name} DOES NOT FIT: it needs {costs['memory_mb']['all']:.0f} MB of the {result['memory_mb']} MB of a core."
        for name, costs in programs.items()
        if not costs["fits"]
    ]
    if programs:
        parts += [_costs(programs, result["step"]), _memory(programs, result["memory_mb"]), _kinds(programs)]
        parts += [_collectives(programs), *(_most_expensive(name, costs) for name, costs in programs.items())]
    if result["step"]:
        parts.append(_step(result))
    return "\n\n".join(parts)


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """Format rows as aligned columns, the first left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _heading(result: Result) -> str:
    chip = get_chip(result["topology"])
    lines = [
        f"{result['config']} for {result['topology']}: {result['cores']} cores, {result['cores_per_chip']} per chip; each "
        f"{result['peak_tflops']} TFLOP/s in bfloat16 at {result['clock_mhz']} MHz and {result['memory_mb']} MB of memory.",
        f"{result['batch_size']} images per batch, {result['images_per_core']:g} per core; {result['dtype']}, "
        f"up_impl={result['up_impl']}; jax {result['jax']}, libtpu {result['libtpu']}.",
        "All numbers are the compiler's estimates for one core; nothing was run on a TPU.",
    ]
    if chip is not None and chip.note:
        lines.append(chip.note)
    hints = {"up_impl": "conv", "dtype": "bfloat16"}
    if options := [f"--config.{name}={best}" for name, best in hints.items() if result[name] != best]:
        lines.append(f"Faster on TPUs: {' '.join(options)}.")
    return "\n".join(lines)


def _costs(programs: Result, step: Result | None) -> str:
    header = ["program", "per step", "Mcycles", "ms", "MFU %", "model GFLOP", "compiler GFLOP", "compile s"]
    rows = []
    for name, costs in programs.items():
        runs = step["runs"].get(name) if step else None
        rows.append(
            [
                name,
                "" if runs is None else f"{runs:.3g}",
                f"{costs['mcycles']:.3f}",
                f"{costs['ms']:.3f}",
                f"{100 * costs['mfu']:.1f}",
                f"{costs['model_gflop']:.4g}",
                f"{costs['compiler_gflop']:.4g}",
                f"{costs['compile_s']:.0f}",
            ]
        )
    uncounted = [
        f"{name}: {', '.join(f'{count} {opcode}' for opcode, count in costs['uncounted'].items())}"
        for name, costs in programs.items()
        if costs["uncounted"]
    ]
    note = f"\nNot counted correctly in the cycles: {'; '.join(uncounted)}." if uncounted else ""
    return format_table(header, rows) + note


def _memory(programs: Result, available: float) -> str:
    parts = ["arguments", "outputs", "aliased", "temporary", "all"]
    rows = [
        [
            name,
            *(f"{costs['memory_mb'][part]:.1f}" for part in parts),
            f"{costs['memory_mb']['all'] / available:.1%}",
        ]
        for name, costs in programs.items()
    ]
    return format_table(["MB of a core", *parts, "of it"], rows)


def _kinds(programs: Result) -> str:
    kinds = sorted(
        {kind for costs in programs.values() for kind in costs["kinds"]},
        key=lambda kind: -sum(costs["kinds"].get(kind, 0) for costs in programs.values()),
    )
    rows = [[kind, *(f"{f['kinds'].get(kind, 0) / 1e6:.3f}" for f in programs.values())] for kind in kinds]
    return format_table(["Mcycles in", *programs], rows)


def _collectives(programs: Result) -> str:
    rows = []
    for name, costs in programs.items():
        for opcode, entry in costs["collectives"].items():
            sizes = ", ".join(f"{dtype} {size / 1e6:.3g}" for dtype, size in entry["bytes"].items())
            rows.append([f"{name} {opcode}", str(entry["count"]), sizes, f"{entry['sent_bytes'] / 1e6:.3g}"])
    if not rows:
        return "No communication between cores."
    return format_table(["communication", "count", "MB of arrays", "MB a core sends"], rows)


def _most_expensive(name: str, costs: Result) -> str:
    total = max(costs["mcycles"] * 1e6, 1)
    lines = [
        f"  {entry['cycles'] / 1e6:8.3f} Mcycles {entry['cycles'] / total:6.1%}  {entry['result']}  {entry['where']}"
        for entry in costs["most_expensive"]
    ]
    return "\n".join([f"Most expensive operations of {name}:", *lines])


def _step(result: Result) -> str:
    step = result["step"]
    lines = [f"A step on average: {step['mcycles']:.2f} Mcycles, {step['ms']:.2f} ms."]
    lines.append(
        f"A core sends {step['sent_mb']:.1f} MB per step: {step['communication_ms']:.2f} ms over its share of the links, if "
        "reductions are rings and all links are busy."
    )
    if step["missing"]:
        lines.append(f"These do not include {', '.join(step['missing'])}, which were not compiled.")
    else:
        lines.append(
            f"{100 * step['mfu']:.1f} % MFU, {step['images_per_s']:.0f} images/s on {result['cores']} cores with compute alone; "
            f"{step['images_per_s_waiting']:.0f} images/s if communication does not overlap."
        )
    return "\n".join(lines)
