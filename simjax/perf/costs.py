"""FLOPs of lowered programs; memory, traffic and collectives of compiled ones.

The figures of a compiled program are per device.
"""

import collections
import dataclasses
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.stages import Compiled

from simjax import config as c
from simjax.errors import ConfigError
from simjax.models import build
from simjax.perf import programs
from simjax.perf.programs import Arguments
from simjax.runtime import sharding
from simjax.runtime.cpu import for_cpus

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$", re.MULTILINE)
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\((.*)$")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_CONSTANT = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
_SIZE = re.compile(r"([\d.]+)([KMGT])\b")
_LARGEST = re.compile(r"Size: (\S+)\n(?:\s+Operator: (.*)\n)?\s+Shape: (\S+)")


def of_program(config: c.Config, name: str) -> dict[str, float]:
    """FLOPs per image of a lowered program and of one forward.

    Counted before compilation, because compiled GPU programs hide matmuls in library calls. JAX
    runs this analysis only on programs lowered for the CPU, so they are lowered for one CPU. XLA
    counts a loop body once, so loops are avoided: one step, the whole batch at once, transformer
    blocks unrolled. Only the loops of samplers and of a multi-step generator remain; their counts
    are multiplied. Convolutions have the implementation that the local backend uses.

    Returns:
      "flops_per_image", "flops_per_forward" (D, one image), "forwards" (the minimum number of
      forwards per image), "over_forwards" (flops_per_image / (forwards * flops_per_forward)).
    """
    config = dataclasses.replace(config, accumulate=1, steps_per_call=1, scan_blocks=False)
    denoise, like = build.blank(config)
    device = counting_device()
    made = programs.PROGRAMS[name](config, denoise, like, sharding.make_mesh(devices=[device]))
    with for_cpus(jax.default_backend() == "cpu"):
        program = _flops(made.function, made.arguments) * made.iterations / made.batch
        forward = _flops(*made.forward(device, made.batch)) / made.batch
        program += made.uncounted * forward
    return {
        "flops_per_image": program,
        "flops_per_forward": forward,
        "forwards": made.forwards,
        "over_forwards": program / (made.forwards * forward),
    }


def counting_device() -> jax.Device:
    """The CPU device that costs are counted on; nothing runs there.

    Raises:
      ConfigError: JAX_PLATFORMS excludes the CPU.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"costs are counted on the CPU, which JAX_PLATFORMS={platforms} excludes; "
            f"set JAX_PLATFORMS={platforms},cpu, or unset it."
        ) from error


def memory(compiled: Compiled) -> dict[str, int]:
    """Bytes: arguments, outputs without donated buffers, temporaries, code, total, peak.

    `total` is the sum of the first four, an upper bound on `peak`, which takes buffer lifetimes
    into account.
    """
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return parts | {"total": sum(parts.values()), "peak": stats.peak_memory_in_bytes}


def cost(compiled: Compiled) -> tuple[float, float]:
    """FLOPs and bytes of memory traffic; a loop body counts once."""
    found = compiled.cost_analysis()
    return found["flops"], found["bytes accessed"]


def held(tree: Any) -> int:
    """Bytes per device of a tree of arrays or ShapeDtypeStructs with shardings.

    >>> here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> held({"w": jax.ShapeDtypeStruct((8, 3), "float32", sharding=here)})
    96
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def collective_traffic(text: str) -> dict[str, dict[str, int]]:
    """Count and result bytes of the collectives in one execution, by kind.

    A loop counts once per iteration. A collective that the compiler overlaps with matmuls appears
    in several fusions with the same channel; it counts once.

    >>> collective_traffic('''
    ... ENTRY %main (p: f32[4]) -> f32[4] {
    ...   ROOT %x = f32[4]{0} all-reduce(%p), channel_id=1, to_apply=%main.add
    ... }
    ...
    ... %main.add (a: f32[], b: f32[]) -> f32[] {
    ...   ROOT %sum = f32[] add(%a, %b)
    ... }''')
    {'all-reduce': {'count': 1, 'bytes': 16}}

    Args:
      text: optimized HLO (Compiled.as_text).
    """
    bodies, entry = _computations(text)
    times = collections.Counter()
    _count_runs(entry, 1, bodies, times)
    found = {}
    for name, runs in times.items():
        for line in bodies[name]:
            if match := _COLLECTIVE.search(line):
                shape, kind, start, rest = match.groups()
                channel = _CHANNEL.search(rest)
                key = (kind, channel.group(1) if channel else line)
                most = max(runs, found[key][0]) if key in found else runs
                found[key] = (most, _result_bytes(shape, kind, bool(start)))
    traffic = {kind: {"count": 0, "bytes": 0} for kind, _ in sorted(found)}
    for (kind, _), (runs, size) in found.items():
        traffic[kind]["count"] += runs
        traffic[kind]["bytes"] += runs * size
    return traffic


def exhausted(message: str) -> dict[str, Any] | None:
    """Parses the compiler's out-of-memory message; None for any other message.

    >>> found = exhausted(
    ...     "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 63.80G of 30.75G hbm."
    ... )
    >>> found["needed"] / 2**30, found["available"] / 2**30
    (63.8, 30.75)

    Returns:
      "needed" and "available" (bytes), "reason" (the compiler's sentence), "largest" (up to three
      allocations from the message, each with size, shape and operation).
    """
    if "RESOURCE_EXHAUSTED" not in message or "Ran out of memory" not in message:
        return None
    reason = message[message.index("Ran out of memory") :].splitlines()[0]
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed, available, *_ = (float(n) * units[u] for n, u in _SIZE.findall(reason))
    largest = [
        f"{size} {shape} {_operation(where)}" for size, where, shape in _LARGEST.findall(message)
    ]
    return {"needed": needed, "available": available, "reason": reason, "largest": largest[:3]}


def _operation(described: str) -> str:
    """op_name, the path in the traced program, from the compiler's description."""
    name = re.search(r'op_name="([^"]*)"', described)
    return name.group(1) if name else ""


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Relevant lines by computation, and the name of the entry computation."""
    headers = list(_COMPUTATION.finditer(text))
    ends = [h.start() for h in headers[1:]] + [len(text)]
    bodies = {
        header.group(2): [
            line
            for line in text[header.end() : end].splitlines()
            if _COLLECTIVE.search(line)
            or _CALLED.search(line)
            or _WHILE.search(line)
            or _CONSTANT.search(line)
        ]
        for header, end in zip(headers, ends, strict=True)
    }
    return bodies, next(header.group(2) for header in headers if header.group(1))


def _count_runs(
    name: str, runs: int, bodies: dict[str, list[str]], times: collections.Counter
) -> None:
    """Adds the executions of a computation and its callees to `times`."""
    times[name] += runs
    for line in bodies[name]:
        if loop := _WHILE.search(line):
            condition, body = loop.groups()
            _count_runs(body, runs * _turns(bodies[condition]), bodies, times)
        for called, branches in _CALLED.findall(line):
            for inner in [called] if called else re.findall(r"[\w.-]+", branches):
                _count_runs(inner, runs, bodies, times)


def _turns(condition: list[str]) -> int:
    """Iterations of a scan: its condition's only constant; 1 if ambiguous."""
    bounds = [int(found.group(1)) for line in condition if (found := _CONSTANT.search(line))]
    return bounds[0] if len(bounds) == 1 else 1


def _result_bytes(shape: str, kind: str, is_start: bool) -> int:
    """Bytes of a collective's results; an asynchronous start also returns its operands."""
    arrays = [
        math.prod(map(int, filter(None, axes.split(",")))) * int(bits or 8) // 8
        for dtype, bits, axes in _ARRAY.findall(shape)
        if not (is_start and dtype == "u32" and not axes)  # handles
    ]
    if is_start and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :]
    return sum(arrays)


def _flops(function: Callable, arguments: Arguments) -> float:
    return function.lower(*arguments).cost_analysis()["flops"]
