"""Costs of a compiled program, read from its optimised HLO.

Fusions and unfused instructions carry the TPU compiler's own ``estimated_cycles``: a static model of one core, without
communication and without waiting for memory or the host. The rest is read from shapes and attributes.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Not estimated correctly: without an estimate, or a loop of unknown length counts once, and every branch counts.
_UNCOUNTED = ("while", "conditional", "gather", "scatter", "sort")
# Without an estimate when not fused.
_UNCOUNTED_ALONE = ("pad", "reduce-window")
_MOVES = {"bitcast", "broadcast", "concatenate", "constant", "convert", "copy", "dynamic-slice", "dynamic-update-slice"}
_MOVES |= {
    "get-tuple-element",
    "iota",
    "pad",
    "parameter",
    "reshape",
    "reverse",
    "slice",
    "transpose",
    "tuple",
    "fusion",
}

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
# `%name = <shape or tuple of shapes> opcode(operands), attributes`
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[\w\-]+)\(")
_ARRAY = re.compile(r"\b(pred|bf16|[cfsu]\d+)\w*\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_WHERE = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(?:calls|to_apply|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LIMIT = re.compile(r"constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUPS_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_GROUPS_OF_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_WINDOW = re.compile(r"window=\{size=([\dx]+)")
_OUTPUT_LABELS = re.compile(r"dim_labels=\w+->(\w+)")


@dataclass(frozen=True)
class Instruction:
    """A line of HLO; `text` is the line from the opcode on, `computation` the one that contains it."""

    name: str
    shape: str
    opcode: str
    text: str
    computation: str


def read_program(text: str, num_devices: int, most_expensive: int = 10) -> dict[str, Any]:
    """Summarise the costs of a compiled program.

    Args:
      text: its HLO after optimisation.
      num_devices: devices that it is compiled for: the group of collectives that name none.
      most_expensive: how many of the most expensive instructions to list.

    Returns:
      cycles: estimated, of one core; loops of a known length count as often as they run.
      kinds: cycles by kind of operation, the most expensive first; a fusion counts as its most expensive kind.
      most_expensive: ``{cycles, result, where}``; fused instructions count with their fusion.
      collectives: by opcode ``{count, bytes, sent_bytes}``: how many, bytes by dtype of the whole arrays (what is
        reduced, or the result of gathering), and bytes that a core sends if it is done in a ring.
      uncounted: the number of instructions, by opcode, whose time is not correctly in `cycles`: without an estimate, loops
        of unknown length (counted once) and conditionals (every branch counted).
    """
    instructions, repeats = parse(text)
    work, trips = _work_by_computation(instructions), _trip_counts(instructions)
    fused = {name for i in instructions if i.opcode == "fusion" for name in _CALLED.findall(i.text)}
    costs, kinds, uncounted = [], Counter(), Counter()
    for instruction in instructions:
        times = repeats[instruction.computation]
        if cycles := _CYCLES.search(instruction.text):
            cost = int(cycles[1]) * times
            costs.append((cost, instruction))
            kinds[_kind(instruction, work)] += cost
        elif times and instruction.opcode in _UNCOUNTED_ALONE and instruction.computation not in fused:
            uncounted[instruction.opcode] += 1
        loop = _LOOP.search(instruction.text)
        if instruction.opcode in _UNCOUNTED and not (loop and loop[1] in trips):
            uncounted[instruction.opcode] += 1
        if "tpu_custom_call" in instruction.text:
            uncounted["kernel"] += 1
    costs.sort(key=lambda pair: -pair[0])
    return {
        "cycles": sum(cost for cost, _ in costs),
        "kinds": dict(kinds.most_common()),
        "most_expensive": [
            {"cycles": cost, "result": _plain_shape(i.shape)[:80], "where": _name_stack(i)}
            for cost, i in costs[:most_expensive]
        ],
        "collectives": _collectives(instructions, repeats, num_devices),
        "uncounted": dict(uncounted),
    }


def parse(text: str) -> tuple[list[Instruction], Counter[str]]:
    """Parse all instructions, and count how often each computation runs (0 for one that nothing calls)."""
    instructions: list[Instruction] = []
    computation, entry, order = "", "", []
    for line in text.splitlines():
        if not line.startswith(" "):
            if header := _COMPUTATION.match(line):
                computation = header["name"]
                order.append(computation)
                entry = computation if header["entry"] else entry
        elif match := _INSTRUCTION.match(line):
            rest = line[match.end("shape") + 1 :]
            instructions.append(Instruction(match["name"], match["shape"], match["opcode"], rest, computation))
    return instructions, _repeats(instructions, order, entry)


def _repeats(instructions: list[Instruction], order: list[str], entry: str) -> Counter[str]:
    trips = _trip_counts(instructions)
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for instruction in instructions:
        text = instruction.text
        called = _CALLED.findall(text)
        for names in _BRANCHES.findall(text):
            called += [name.strip().lstrip("%") for name in names.split(",")]
        calls[instruction.computation] += [(name, 1) for name in called]
        if loop := _LOOP.search(text):
            calls[instruction.computation].append((loop[2], trips.get(loop[1], 1)))
    repeats = Counter({entry: 1})
    for computation in reversed(order):  # a computation comes before its callers
        for name, times in calls[computation]:
            repeats[name] += repeats[computation] * times
    return repeats


def _trip_counts(instructions: list[Instruction]) -> dict[str, int]:
    """Return how often loops run, by their condition: as noted by the compiler, or counted from 0 to a constant (JAX)."""
    loops = {loop[1]: instruction.text for instruction in instructions if (loop := _LOOP.search(instruction.text))}
    trips = {condition: int(noted[1]) for condition, text in loops.items() if (noted := _TRIPS.search(text))}
    within: dict[str, list[Instruction]] = defaultdict(list)
    for instruction in instructions:
        if instruction.computation in loops.keys() - trips.keys():
            within[instruction.computation].append(instruction)
    for condition, lines in within.items():
        limits = [limit[1] for line in lines if line.opcode == "constant" and (limit := _LIMIT.search(line.text))]
        compared = [line for line in lines if line.opcode == "compare"]
        if len(limits) == len(compared) == 1 and "direction=LT" in compared[0].text:
            trips[condition] = int(limits[0])
    return trips


def _work_by_computation(instructions: list[Instruction]) -> dict[str, set[str]]:
    """Return the kinds of work of each computation, including those it calls."""
    within: dict[str, set[str]] = defaultdict(set)
    for instruction in instructions:  # callees come first
        for called in _CALLED.findall(instruction.text) if instruction.opcode == "fusion" else []:
            within[instruction.computation] |= within[called]
        within[instruction.computation].add(_work(instruction))
    return within


def _work(instruction: Instruction) -> str:
    """Return the opcode, with kinds of convolution distinguished: the compiler writes matrix products as convolutions too."""
    opcode, text = instruction.opcode, instruction.text
    if opcode == "dot":
        return "matrix product"
    if opcode != "convolution":
        return opcode
    if "feature_group_count=" in text or "batch_group_count=" in text:
        return "depthwise convolution"
    window, labels = _WINDOW.search(text), _OUTPUT_LABELS.search(text)
    extents = _arrays(instruction.shape)[0][1]
    of_one_pixel = window is None or set(window[1].split("x")) == {"1"}
    to_one_pixel = all(
        extent == 1 for extent, label in zip(extents, labels[1] if labels else "", strict=False) if label.isdigit()
    )
    return "matrix product" if of_one_pixel or to_one_pixel else "convolution"


def _kind(instruction: Instruction, work: dict[str, set[str]]) -> str:
    works = {_work(instruction)}
    for called in _CALLED.findall(instruction.text) if instruction.opcode == "fusion" else []:
        works |= work[called]
    for kind in ("convolution", "depthwise convolution", "matrix product"):
        if kind in works:
            return kind
    if works <= _MOVES:
        return "copy and layout"
    if "reduce" in works or "reduce-window" in works:
        return "reduction"
    return "random bits" if {"xor", "shift-left"} <= works else "elementwise"


def _collectives(instructions: list[Instruction], repeats: Counter[str], num_devices: int) -> dict[str, dict]:
    # The result of an asynchronous collective is in its end instruction, the rest in its start.
    results = {
        operand[1]: instruction.shape
        for instruction in instructions
        if instruction.opcode.endswith("-done") and (operand := re.search(r"%([\w.\-]+)\)", instruction.text))
    }
    collectives: dict[str, dict] = {}
    channels = set()
    for instruction in instructions:
        opcode = instruction.opcode.removesuffix("-start")
        if opcode not in COLLECTIVES:
            continue
        # The compiler may split one collective into several fusions with the same channel.
        if channel := _CHANNEL.search(instruction.text):
            if (opcode, channel[1]) in channels:
                continue
            channels.add((opcode, channel[1]))
        group = _group_size(instruction.text, num_devices)
        sizes: Counter[str] = Counter()
        for dtype, extents in _arrays(results.get(instruction.name, instruction.shape)):
            sizes[dtype] += math.prod(extents) * _itemsize(dtype)
        if opcode == "reduce-scatter":
            sizes = Counter({dtype: size * group for dtype, size in sizes.items()})
        elif opcode == "all-reduce" and instruction.computation.startswith("all-reduce-scatter"):
            opcode = "reduce-scatter"  # as the TPU compiler writes it: the result is sliced afterwards
        times = repeats[instruction.computation]
        entry = collectives.setdefault(opcode, {"count": 0, "bytes": Counter(), "sent_bytes": 0})
        entry["count"] += times
        entry["sent_bytes"] += round(_ring_share(opcode, group) * sum(sizes.values()) * times)
        for dtype, size in sizes.items():
            entry["bytes"][dtype] += size * times
    return {
        opcode: {**collectives[opcode], "bytes": dict(collectives[opcode]["bytes"])}
        for opcode in COLLECTIVES
        if opcode in collectives
    }


def _ring_share(opcode: str, group: int) -> float:
    """Return the bytes that a device sends per byte of the whole array, among `group` devices in a ring."""
    if opcode == "collective-permute":
        return 1.0
    return (2 if opcode == "all-reduce" else 1) * (group - 1) / group


def _group_size(text: str, num_devices: int) -> int:
    if listed := _GROUPS_LISTED.search(text):
        return len(listed[1].split(","))
    if counted := _GROUPS_COUNTED.search(text):
        return int(counted[1])
    if mesh := _GROUPS_OF_MESH.search(text):
        extents = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(extents[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return num_devices


def _arrays(shape: str) -> list[tuple[str, list[int]]]:
    return [(dtype, [int(n) for n in extents.split(",") if n]) for dtype, extents in _ARRAY.findall(shape)]


def _itemsize(dtype: str) -> int:
    return 1 if dtype == "pred" else max(1, int(re.sub(r"\D", "", dtype)) // 8)


def _plain_shape(shape: str) -> str:
    """Return a shape without layouts and counts: ``(f32[8], bf16[16,4])``."""
    return re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)


def _name_stack(instruction: Instruction) -> str:
    """Return the instruction's JAX name stack, without the program's own name."""
    source = _WHERE.search(instruction.text)
    where = re.sub(r"^jit\(\w+\)/", "", source[1]) if source else instruction.name
    return where if len(where) <= 100 else "…" + where[-99:]
