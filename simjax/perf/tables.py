"""What was measured, in words: tables, a page on a footprint, the refusal of a large program.

A footprint is the dictionary that footprint.compile_for returns, with the names of command and
config that commands/aot.py adds; a file holds one. A timing is a row of timing.measure_all. Imports
no JAX.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from simjax import config as c
from simjax.errors import ConfigError
from simjax.perf.chips import GIB

# Of programs.py, which imports JAX.
TRAINING = ("fake_score", "generator", "train")
SAMPLING = ("sample", "teacher_sample")
ENCODING = ("encode_text",)
PROGRAMS = TRAINING + SAMPLING + ENCODING

FOOTPRINT = {
    "config": lambda r: r["config"],
    "program": lambda r: r["program"],
    "topology": lambda r: r["topology"],
    "data x fsdp": lambda r: f"{r['mesh']['data']} x {r['mesh']['fsdp']}",
    "batch": lambda r: f"{r['batch']}" + (f" in {r['accumulate']}" if _accumulates(r) else ""),
    "dtype": lambda r: r["compute_dtype"],
    "remat": lambda r: r["remat"],
    "memory, GiB": lambda r: f"{_gib(r['memory']['total'])} of {_gib(r['memory']['available'])}",
    "GFLOP an image": lambda r: f"{r['costs']['flops_per_image'] / 1e9:.4g}",
    "over 11 F": lambda r: f"{r['costs']['over_forwards']:.3f}{_of_forwards(r)}",
    "roofline, ms": lambda r: f"{1e3 * r['costs']['roofline_seconds']:.3g}",
    "images/s a chip": lambda r: f"{r['costs']['images_per_second_per_chip']:.3g}",
    "compiled in, s": lambda r: f"{r['seconds']['lower'] + r['seconds']['compile']:.0f}",
}


TIMING = {
    "program": lambda r: r["program"],
    "batch": lambda r: f"{r['batch']}" + (f" in {r['accumulate']}" * (r["accumulate"] > 1)),
    "dtype": lambda r: r["compute_dtype"],
    "data x fsdp": lambda r: f"{r['mesh']['data']} x {r['mesh']['fsdp']}",
    "steps a call": lambda r: f"{r['steps_per_call']}",
    "step, ms": lambda r: _milliseconds(r["seconds"], r["steps_per_call"]),
    "images/s": lambda r: f"{r['images_per_second']:.4g}",
    "GFLOP an image": lambda r: f"{r['costs']['flops_per_image'] / 1e9:.4g}",
    "over k F": lambda r: f"{r['costs']['over_forwards']:.3f} of {r['costs']['forwards']:g} F",
    "MFU": lambda r: f"{100 * r['mfu']:.1f} %",
    "memory, GiB": lambda r: f"{r['memory']['total'] / GIB:.3f}",
    "allocator, GiB": lambda r: _gib_or_none(r["memory"].get("allocator_peak")),
    "compiled in, s": lambda r: f"{r['compile_seconds']:.1f}",
}


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The results of a folder, in the order of their files' names.

    Raises:
      ConfigError: there is none, or a file is something else.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
            table([result])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is no result of simjax aot ({type(error).__name__}: {error}); "
                "move it elsewhere."
            ) from error
        results.append(result)
    if not results:
        raise ConfigError(f"{folder} has no .json file; write some with --out={folder}/NAME.json.")
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, a row a result."""
    rows = [list(FOOTPRINT), ["---"] * len(FOOTPRINT)]
    rows += [[cell(result) for cell in FOOTPRINT.values()] for result in results]
    return "\n".join(map(_line, rows))


def describe(result: dict[str, Any]) -> str:
    """A page on one result."""
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
    moved = f"{costs['bytes']:.4g}" if costs["bytes"] else "uncounted (blocks in a loop)"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join(
        [
            f"{result['config']}, {result['program']} on {result['topology']}: batch "
            f"{FOOTPRINT['batch'](result)}, {result['compute_dtype']}, remat {result['remat']}, "
            f"data x fsdp {FOOTPRINT['data x fsdp'](result)}",
            f"memory a {per}, GiB: {FOOTPRINT['memory, GiB'](result)}",
            f"  arguments {_gib(memory['arguments'])}: {terms}",
            f"  {parts}",
            f"flops an image: {costs['flops_per_image']:.4g}, {costs['over_forwards']:.3f} times "
            f"{costs['forwards']:g} forwards of {costs['flops_per_forward']:.4g}",
            f"a {per} and {'step' if result['program'] in TRAINING else 'batch'}: "
            f"{costs['flops']:.4g} flops, {moved} bytes of memory traffic",
            f"roofline: {1e3 * costs['roofline_seconds']:.3g} ms, bound by "
            f"{costs['roofline_bound']}, {costs['images_per_second_per_chip']:.3g} images/s a chip "
            "(no communication in it)",
            f"collectives a {per}: {', '.join(traffic) or 'none'}",
            f"seconds: lowering {seconds['lower']:.0f}, compiling {seconds['compile']:.0f}, the "
            f"forward {seconds['forward']:.0f}; effort {result['effort']:g}; {versions}",
        ]
    )


def refusal(what: dict[str, Any], config: c.Config, shortage: dict[str, Any]) -> str:
    """The message of a program that does not fit.

    Args:
      what: a result, as far as it is known; "memory" only if the program could be compiled.
      shortage: "needed" and "available" bytes, what the compiler names as "largest", and as the
        "reason" if it was the compiler who refused.
    """
    terms = dict(what["arguments"])
    known = what.get("memory", {"temporaries": shortage["needed"]})
    terms |= {name: known[name] for name in ("temporaries", "code") if name in known}
    largest = sorted(terms.items(), key=lambda term: -term[1])[:4]
    lines = [
        f"{what['program']} does not fit {what['topology']}: {_gib(shortage['needed'])} GiB a "
        f"device, {_gib(shortage['available'])} GiB available.",
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
    """Flags that lower the memory of a device, and how."""
    found = []
    if what["program"] in TRAINING:
        if slices := _slices(what, config, shortage):
            found.append((f"--config.accumulate={slices}", "fewer images at a time, same gradient"))
        if config.remat != "blocks":
            found.append(("--config.remat=blocks", "recomputes activations: one more forward"))
        if what["mesh"]["fsdp"] < what["devices"]:
            found.append((f"--config.fsdp={what['devices']}", "states split over more devices"))
        if config.teacher.dtype != "bfloat16":
            found.append(("--config.teacher.dtype=bfloat16", "half the teacher"))
    elif what["batch"] > what["devices"]:
        found.append((f"--config.evaluation.batch={what['batch'] // 2}", "fewer images at a time"))
    if config.compute_dtype != "bfloat16":
        found.append(("--config.compute_dtype=bfloat16", "half of most activations"))
    return [*found, (f"--topology={_larger(what['topology'])}", "twice the chips")]


def timing_header(config: str, what: dict[str, Any], repeats: int) -> str:
    """One line on devices, versions and columns, and the table's first two.

    Args:
      what: of timing.surroundings.
    """
    versions = ", ".join(f"{name} {version}" for name, version in what["versions"].items())
    peaks = ", ".join(
        f"{found['flops'] / 1e12:.4g} TFLOP/s in {dtype} ({found['source']})"
        for dtype, found in what["peaks"].items()
    )
    return "\n".join(
        [
            f"{config} on {what['devices']} x {what['device']}, {versions}. Step: median (least "
            f"to most) of {repeats} calls, or a sampler's batch. F: an image's forward, k of "
            f"which it needs. MFU: k F images/s over the peak of all devices, {peaks}. Memory: of "
            "the program on one device; the allocator's: the most so far.",
            "",
            _line(TIMING),
            _line(["---"] * len(TIMING)),
        ]
    )


def timing_line(row: dict[str, Any]) -> str:
    """A row of the table; one that did not fit says so in place of its time."""
    if "error" not in row:
        return _line(cell(row) for cell in TIMING.values())
    known = list(TIMING).index("step, ms")
    cells = [cell(row) for cell in list(TIMING.values())[:known]]
    return _line([*cells, row["error"], *["-"] * (len(TIMING) - known - 1)])


def _slices(what: dict[str, Any], config: c.Config, shortage: dict[str, Any]) -> int | None:
    """The first doubling of config.accumulate that should fit, or the last that is possible."""
    needed, slices, possible = shortage["needed"], config.accumulate, None
    while config.batch % (2 * slices * what["devices"]) == 0 and needed > shortage["available"]:
        slices, needed = 2 * slices, needed / 2  # as if all of it were of images
        possible = slices
    return possible


def _larger(topology: str) -> str:
    """The topology with its shortest side doubled."""
    name, _, layout = topology.partition(":")
    sides = [int(side) for side in layout.split("x")]
    shortest = sides.index(min(sides))
    sides[shortest] *= 2
    return f"{name}:{'x'.join(map(str, sorted(sides)))}"


def _accumulates(result: dict[str, Any]) -> bool:
    return result["program"] in TRAINING and result["accumulate"] > 1


def _of_forwards(result: dict[str, Any]) -> str:
    """Says so where the cost is not compared with the 11 forwards of a step."""
    forwards = result["costs"]["forwards"]
    return "" if forwards == 11 else f" (of {forwards:g} F)"


def _gib(size: float) -> str:
    return f"{size / GIB:.3f}"


def _milliseconds(seconds: dict[str, float], steps: int) -> str:
    median, least, most = (1e3 * seconds[name] / steps for name in ("median", "minimum", "maximum"))
    return f"{median:.4g} ({least:.4g} to {most:.4g})"


def _gib_or_none(size: int | None) -> str:
    return "-" if size is None else _gib(size)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
