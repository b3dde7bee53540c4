"""What ``--mode=compile`` found, as text for people."""

from typing import Any

from noisytwins_jax.tpu_cost.chips import chip_of

Result = dict[str, Any]


def format_result(result: Result) -> str:
    """Every figure of a result of `compile.compile_run`, in tables."""
    programs = {name: figures for name, figures in result["programs"].items() if "error" not in figures}
    parts = [_heading(result)]
    parts += [
        f"{name} DOES NOT COMPILE: {figures['error']}."
        for name, figures in result["programs"].items()
        if "error" in figures
    ]
    parts += [
        f"{name} DOES NOT FIT: it needs {figures['memory_mb']['all']:.0f} MB of the {result['memory_mb']} MB of a core."
        for name, figures in programs.items()
        if not figures["fits"]
    ]
    if programs:
        parts += [_costs(programs, result["step"]), _memory(programs, result["memory_mb"]), _kinds(programs)]
        parts += [_collectives(programs), *(_dearest(name, figures) for name, figures in programs.items())]
    if result["step"]:
        parts.append(_step(result))
    return "\n\n".join(parts)


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as they must be; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _heading(result: Result) -> str:
    chip = chip_of(result["topology"])
    lines = [
        f"{result['config']} for {result['topology']}: {result['cores']} cores, {result['cores_per_chip']} a chip; each "
        f"{result['peak_tflops']} TFLOP/s in bfloat16 at {result['clock_mhz']} MHz and {result['memory_mb']} MB of memory.",
        f"{result['batch_size']} images a batch, {result['images_per_core']:g} a core; {result['dtype']}, "
        f"up_impl={result['up_impl']}; jax {result['jax']}, libtpu {result['libtpu']}.",
        "All figures are the compiler's estimates for one core; nothing was run on a TPU.",
    ]
    if chip is not None and chip.note:
        lines.append(chip.note)
    if result["up_impl"] != "conv" or result["dtype"] != "bfloat16":
        lines.append("TPUs want --config.up_impl=conv --config.dtype=bfloat16.")
    return "\n".join(lines)


def _costs(programs: Result, step: Result | None) -> str:
    header = ["program", "a step", "Mcycles", "ms", "MFU %", "model GFLOP", "compiler GFLOP", "compile s"]
    rows = []
    for name, figures in programs.items():
        runs = step["runs"].get(name) if step else None
        rows.append(
            [
                name,
                "" if runs is None else f"{runs:.3g}",
                f"{figures['mcycles']:.3f}",
                f"{figures['ms']:.3f}",
                f"{100 * figures['mfu']:.1f}",
                f"{figures['model_gflop']:.4g}",
                f"{figures['compiler_gflop']:.4g}",
                f"{figures['compile_s']:.0f}",
            ]
        )
    loops = [
        f"{name}: {', '.join(f'{count} {what}' for what, count in figures['uncounted'].items())}"
        for name, figures in programs.items()
        if figures["uncounted"]
    ]
    note = f"\nNot rightly in the cycles: {'; '.join(loops)}." if loops else ""
    return format_table(header, rows) + note


def _memory(programs: Result, available: float) -> str:
    parts = ["arguments", "outputs", "aliased", "temporary", "all"]
    rows = [
        [
            name,
            *(f"{figures['memory_mb'][part]:.1f}" for part in parts),
            f"{figures['memory_mb']['all'] / available:.1%}",
        ]
        for name, figures in programs.items()
    ]
    return format_table(["MB of a core", *parts, "of it"], rows)


def _kinds(programs: Result) -> str:
    kinds = sorted(
        {kind for figures in programs.values() for kind in figures["kinds"]},
        key=lambda kind: -sum(figures["kinds"].get(kind, 0) for figures in programs.values()),
    )
    rows = [[kind, *(f"{f['kinds'].get(kind, 0) / 1e6:.3f}" for f in programs.values())] for kind in kinds]
    return format_table(["Mcycles in", *programs], rows)


def _collectives(programs: Result) -> str:
    rows = []
    for name, figures in programs.items():
        for opcode, entry in figures["collectives"].items():
            sizes = ", ".join(f"{dtype} {size / 1e6:.3g}" for dtype, size in entry["bytes"].items())
            rows.append([f"{name} {opcode}", str(entry["count"]), sizes, f"{entry['sent_bytes'] / 1e6:.3g}"])
    if not rows:
        return "No communication between cores."
    return format_table(["communication", "count", "MB of arrays", "MB a core sends"], rows)


def _dearest(name: str, figures: Result) -> str:
    total = max(figures["mcycles"] * 1e6, 1)
    lines = [
        f"  {entry['cycles'] / 1e6:8.3f} Mcycles {entry['cycles'] / total:6.1%}  {entry['result']}  {entry['where']}"
        for entry in figures["dearest"]
    ]
    return "\n".join([f"Dearest operations of {name}:", *lines])


def _step(result: Result) -> str:
    step = result["step"]
    lines = [f"A step on average: {step['mcycles']:.2f} Mcycles, {step['ms']:.2f} ms."]
    lines.append(
        f"A core sends {step['sent_mb']:.1f} MB in it: {step['communication_ms']:.2f} ms over its share of the links, if "
        "sums go round in rings and all links are busy."
    )
    if step["missing"]:
        lines.append(f"These are without {', '.join(step['missing'])}, which were not compiled.")
    else:
        lines.append(
            f"{100 * step['mfu']:.1f} % MFU, {step['images_per_s']:.0f} images/s on {result['cores']} cores if that is all; "
            f"{step['images_per_s_waiting']:.0f} images/s if nothing overlaps communication."
        )
    return "\n".join(lines)
