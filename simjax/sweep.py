"""The settings that a benchmark goes through, and the table of what it measured.

A row is a dictionary of simjax/timing.py. Called from there and from simjax/benchmark.py.
"""

import dataclasses
import itertools
from typing import Any

from simjax import config as c
from simjax.chips import GIB
from simjax.errors import ConfigError

# Fields of a config that a sweep may set, each with its type.
FIELDS = {"batch": int, "accumulate": int, "steps_per_call": int, "compute_dtype": str, "fsdp": int}


def values(field: str, given: list[str]) -> list[Any]:
    """A flag's list, as values of the field.

    Raises:
      ConfigError: it is empty, or not of whole numbers.
    """
    flag = f"--{field}={','.join(given)}"
    if not given:
        raise ConfigError(f"{flag} names no value; leave it out to keep the config's.")
    try:
        return [FIELDS[field](value) for value in given]
    except ValueError as error:
        raise ConfigError(
            f"{flag} is no list of whole numbers; expected e.g. --{field}=1,8."
        ) from error


def combinations(config: c.Config, swept: dict[str, list[Any]]) -> list[c.Config]:
    """The config with every combination of values; a swept batch is that of samples too."""
    return [
        _with(config, dict(zip(swept, chosen, strict=True)))
        for chosen in itertools.product(*swept.values())
    ]


def _with(config: c.Config, changes: dict[str, Any]) -> c.Config:
    """What a whole run needs besides, teacher's training and intervals, is made to fit any call."""
    config = dataclasses.replace(config, **changes)
    calls = config.steps_per_call
    intervals = ("steps", "log_every", "sample_every", "checkpoint_every")
    whole = {name: -(-getattr(config, name) // calls) * calls for name in intervals}
    samples = changes.get("batch", config.evaluation.batch)
    return dataclasses.replace(
        config,
        **whole,
        teacher=dataclasses.replace(config.teacher, steps=0),
        evaluation=dataclasses.replace(config.evaluation, every=0, batch=samples),
    )


def label(row: dict[str, Any]) -> str:
    """A folder's name for one combination."""
    mesh = "x".join(str(size) for size in row["mesh"].values())
    parts = ("program", "batch", "accumulate", "steps_per_call", "compute_dtype")
    return "_".join([*(str(row[part]) for part in parts), mesh])


COLUMNS = {
    "program": lambda r: r["program"],
    "batch": lambda r: f"{r['batch']}" + (f" in {r['accumulate']}" * (r["accumulate"] > 1)),
    "dtype": lambda r: r["compute_dtype"],
    "data x fsdp": lambda r: f"{r['mesh']['data']} x {r['mesh']['fsdp']}",
    "steps a call": lambda r: f"{r['steps_per_call']}",
    "step, ms": lambda r: _milliseconds(r["seconds"], r["steps_per_call"]),
    "images/s": lambda r: f"{r['images_per_second']:.4g}",
    "GFLOP an image": lambda r: f"{r['costs']['flops_per_image'] / 1e9:.4g}",
    "over k F": lambda r: f"{r['costs']['over_forwards']:.3f} of {r['costs']['forwards']} F",
    "MFU": lambda r: f"{100 * r['mfu']:.1f} %",
    "memory, GiB": lambda r: f"{r['memory']['total'] / GIB:.3f}",
    "allocator, GiB": lambda r: _gib(r["memory"].get("allocator_peak")),
    "compiled in, s": lambda r: f"{r['compile_seconds']:.1f}",
}


def header(config: str, what: dict[str, Any], repeats: int) -> str:
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
            _line(COLUMNS),
            _line(["---"] * len(COLUMNS)),
        ]
    )


def line(row: dict[str, Any]) -> str:
    """A row of the table; one that did not fit says so in place of its time."""
    if "error" not in row:
        return _line(cell(row) for cell in COLUMNS.values())
    known = list(COLUMNS).index("step, ms")
    cells = [cell(row) for cell in list(COLUMNS.values())[:known]]
    return _line([*cells, row["error"], *["-"] * (len(COLUMNS) - known - 1)])


def _milliseconds(seconds: dict[str, float], steps: int) -> str:
    median, least, most = (1e3 * seconds[name] / steps for name in ("median", "minimum", "maximum"))
    return f"{median:.4g} ({least:.4g} to {most:.4g})"


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / GIB:.3f}"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
