"""Tables and messages of `simjax aot` and `simjax benchmark`; imports no JAX.

A footprint is the dictionary of footprint.compile_for, with the command and the config's name added
by commands/aot.py; each JSON file holds one. A timing is a row of timing.measure_all. F is one
forward of D for one image.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from simjax import config as c
from simjax.errors import ConfigError
from simjax.perf.chips import GIB

# The keys of programs.PROGRAMS; repeated here because programs.py imports JAX.
TRAINING = ("fake_score", "generator", "train")
SAMPLING = ("sample", "teacher_sample")
ENCODING = ("encode_text",)
PROGRAMS = TRAINING + SAMPLING + ENCODING

FOOTPRINT = {
    "config": lambda r: r["config"],
    "program": lambda r: r["program"],
    "topology": lambda r: r["topology"],
    "data x fsdp": lambda r: f"{r['mesh']['data']} x {r['mesh']['fsdp']}",
    "batch": lambda r: (
        f"{r['batch']}" + (f" in {r['accumulate']} parts" if _accumulates(r) else "")
    ),
    "dtype": lambda r: r["compute_dtype"],
    "remat": lambda r: r["remat"],
    "memory, GiB": lambda r: f"{_gib(r['memory']['total'])} of {_gib(r['memory']['available'])}",
    "GFLOP/image": lambda r: f"{r['costs']['flops_per_image'] / 1e9:.4g}",
    "FLOPs / 11 F": lambda r: f"{r['costs']['over_forwards']:.3f}{_of_forwards(r)}",
    "roofline, ms": lambda r: f"{1e3 * r['costs']['roofline_seconds']:.3g}",
    "images/s/chip": lambda r: f"{r['costs']['images_per_second_per_chip']:.3g}",
    "compile, s": lambda r: f"{r['seconds']['lower'] + r['seconds']['compile']:.0f}",
}


TIMING = {
    "program": lambda r: r["program"],
    "batch": lambda r: f"{r['batch']}" + (f" in {r['accumulate']} parts" * (r["accumulate"] > 1)),
    "dtype": lambda r: r["compute_dtype"],
    "data x fsdp": lambda r: f"{r['mesh']['data']} x {r['mesh']['fsdp']}",
    "steps/call": lambda r: f"{r['steps_per_call']}",
    "step, ms": lambda r: _milliseconds(r["seconds"], r["steps_per_call"]),
    "images/s": lambda r: f"{r['images_per_second']:.4g}",
    "GFLOP/image": lambda r: f"{r['costs']['flops_per_image'] / 1e9:.4g}",
    "FLOPs / k F": lambda r: f"{r['costs']['over_forwards']:.3f}, k = {r['costs']['forwards']:g}",
    "MFU": lambda r: f"{100 * r['mfu']:.1f} %",
    "memory, GiB": lambda r: f"{r['memory']['total'] / GIB:.3f}",
    "allocator, GiB": lambda r: _gib_or_none(r["memory"].get("allocator_peak")),
    "compile, s": lambda r: f"{r['compile_seconds']:.1f}",
}


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the `simjax aot` results in a folder, ordered by file name.

    Raises:
      ConfigError: no .json file, or one that is not a result.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
            table([result])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is not a result of simjax aot ({type(error).__name__}: {error}); "
                "move it elsewhere."
            ) from error
        results.append(result)
    if not results:
        raise ConfigError(f"{folder} has no .json file; write some with --out={folder}/NAME.json.")
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of footprints, one row each.

    >>> print(table([]))
    | config | program | topology | ... | images/s/chip | compile, s |
    | --- | --- | --- | ... | --- | --- |
    """
    rows = [list(FOOTPRINT), ["---"] * len(FOOTPRINT)]
    rows += [[cell(result) for cell in FOOTPRINT.values()] for result in results]
    return "\n".join(map(_line, rows))


def describe(result: dict[str, Any]) -> str:
    """Text report of one footprint."""
    memory, costs, seconds = result["memory"], result["costs"], result["seconds"]
    per = "chip" if result["devices_per_chip"] == 1 else f"1/{result['devices_per_chip']} chip"
    terms = ", ".join(f"{name} {_gib(size)}" for name, size in result["arguments"].items())
    parts = ", ".join(
        f"{name} {_gib(memory[name])}" for name in ("outputs", "temporaries", "code", "peak")
    )
    traffic = [
        f"{found['count']} {kind} of {found['bytes'] / 1e9:.3g} GB"
        for kind, found in result["collectives"].items()
    ]
    moved = f"{costs['bytes']:.4g}" if costs["bytes"] else "uncounted (scan over blocks)"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join(
        [
            f"{result['config']}, {result['program']} on {result['topology']}: batch "
            f"{FOOTPRINT['batch'](result)}, {result['compute_dtype']}, remat {result['remat']}, "
            f"data x fsdp {FOOTPRINT['data x fsdp'](result)}",
            f"memory per {per}, GiB: {FOOTPRINT['memory, GiB'](result)}",
            f"  arguments {_gib(memory['arguments'])}: {terms}",
            f"  {parts}",
            f"FLOPs per image: {costs['flops_per_image']:.4g}, {costs['over_forwards']:.3f} times "
            f"{costs['forwards']:g} forwards of {costs['flops_per_forward']:.4g}",
            f"per {per} and {'step' if result['program'] in TRAINING else 'batch'}: "
            f"{costs['flops']:.4g} FLOPs, {moved} bytes of memory traffic",
            f"roofline: {1e3 * costs['roofline_seconds']:.3g} ms, bound by "
            f"{costs['roofline_bound']}, {costs['images_per_second_per_chip']:.3g} images/s/chip "
            "(communication not included)",
            f"collectives per {per}: {', '.join(traffic) or 'none'}",
            f"seconds: lowering {seconds['lower']:.0f}, compilation {seconds['compile']:.0f}, one "
            f"forward {seconds['forward']:.0f}; effort {result['effort']:g}; {versions}",
        ]
    )


def refusal(what: dict[str, Any], config: c.Config, shortage: dict[str, Any]) -> str:
    """Error message for a program that exceeds device memory.

    Args:
      what: the result so far; it has "memory" only if compilation succeeded.
      shortage: "needed" and "available" bytes, "largest" allocations, and the compiler's "reason"
        if compilation failed.
    """
    terms = dict(what["arguments"])
    known = what.get("memory", {"temporaries": shortage["needed"]})
    terms |= {name: known[name] for name in ("temporaries", "code") if name in known}
    largest = sorted(terms.items(), key=lambda term: -term[1])[:4]
    lines = [
        f"{what['program']} does not fit {what['topology']}: it needs {_gib(shortage['needed'])} "
        f"GiB per device, {_gib(shortage['available'])} GiB available.",
        "Largest: " + ", ".join(f"{name} {_gib(size)} GiB" for name, size in largest) + ".",
    ]
    if shortage.get("reason"):
        lines.append(f"The compiler: {shortage['reason']}")
        lines += [f"  {allocation}" for allocation in shortage["largest"]]
    lines.append("What would help:")
    lines += [f"  {flag}  {effect}" for flag, effect in remedies(what, config, shortage)]
    return "\n".join(lines)


def remedies(
    what: dict[str, Any], config: c.Config, shortage: dict[str, Any]
) -> list[tuple[str, str]]:
    """Flags that lower the memory per device, each with its effect."""
    found = []
    if what["program"] in TRAINING:
        if slices := _slices(what, config, shortage):
            found.append((f"--config.accumulate={slices}", "smaller microbatches, same gradient"))
        if config.remat != "blocks":
            found.append(("--config.remat=blocks", "recomputes activations, one more forward"))
        if what["mesh"]["fsdp"] < what["devices"]:
            found.append((f"--config.fsdp={what['devices']}", "shards states over more devices"))
        if config.teacher.dtype != "bfloat16":
            found.append(("--config.teacher.dtype=bfloat16", "halves the teacher's memory"))
    elif what["batch"] > what["devices"]:
        found.append((f"--config.evaluation.batch={what['batch'] // 2}", "smaller batches"))
    if config.compute_dtype != "bfloat16":
        found.append(("--config.compute_dtype=bfloat16", "halves most activations"))
    return [*found, (f"--topology={_larger(what['topology'])}", "twice the chips")]


def timing_header(config: str, what: dict[str, Any], repeats: int) -> str:
    """Header of a timing table: devices, versions, legend, column names.

    Args:
      what: the result of timing.surroundings.
    """
    versions = ", ".join(f"{name} {version}" for name, version in what["versions"].items())
    peaks = ", ".join(
        f"{found['flops'] / 1e12:.4g} TFLOP/s in {dtype} ({found['source']})"
        for dtype, found in what["peaks"].items()
    )
    return "\n".join(
        [
            f"{config} on {what['devices']} x {what['device']}, {versions}. Step: a training step "
            f"or a batch of samples, median (min to max) of {repeats} calls. F: one forward per "
            f"image; k: forwards needed per image. MFU: k F x images/s / peak, which is {peaks} "
            "for all devices. Memory: the program on one device; allocator: peak since the process "
            "started.",
            "",
            _line(TIMING),
            _line(["---"] * len(TIMING)),
        ]
    )


def timing_line(row: dict[str, Any]) -> str:
    """Table row of a timing, or of an out-of-memory error.

    >>> timing_line(
    ...     {"program": "train", "batch": 8, "accumulate": 1, "compute_dtype": "bfloat16"}
    ...     | {"mesh": {"data": 1, "fsdp": 1}, "steps_per_call": 1, "error": "out of memory"}
    ... )
    '| train | 8 | bfloat16 | 1 x 1 | 1 | out of memory | - | - | - | - | - | - | - |'
    """
    if "error" not in row:
        return _line(cell(row) for cell in TIMING.values())
    known = list(TIMING).index("step, ms")
    cells = [cell(row) for cell in list(TIMING.values())[:known]]
    return _line([*cells, row["error"], *["-"] * (len(TIMING) - known - 1)])


def _slices(what: dict[str, Any], config: c.Config, shortage: dict[str, Any]) -> int | None:
    """Smallest doubled config.accumulate that should fit, or the largest valid one."""
    needed, slices, possible = shortage["needed"], config.accumulate, None
    while config.batch % (2 * slices * what["devices"]) == 0 and needed > shortage["available"]:
        slices, needed = 2 * slices, needed / 2  # as if all memory scaled with the batch
        possible = slices
    return possible


def _larger(topology: str) -> str:
    """The topology with its shortest axis doubled."""
    name, _, layout = topology.partition(":")
    sides = [int(side) for side in layout.split("x")]
    shortest = sides.index(min(sides))
    sides[shortest] *= 2
    return f"{name}:{'x'.join(map(str, sorted(sides)))}"


def _accumulates(result: dict[str, Any]) -> bool:
    return result["program"] in TRAINING and result["accumulate"] > 1


def _of_forwards(result: dict[str, Any]) -> str:
    """Cell suffix with the number of forwards, if it is not 11."""
    forwards = result["costs"]["forwards"]
    return "" if forwards == 11 else f" (/ {forwards:g} F)"


def _gib(size: float) -> str:
    return f"{size / GIB:.3f}"


def _milliseconds(seconds: dict[str, float], steps: int) -> str:
    median, least, most = (1e3 * seconds[name] / steps for name in ("median", "minimum", "maximum"))
    return f"{median:.4g} ({least:.4g} to {most:.4g})"


def _gib_or_none(size: int | None) -> str:
    return "-" if size is None else _gib(size)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
