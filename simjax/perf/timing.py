"""Times programs on the local devices: seconds, images/s, MFU, memory.

Parameters are random; training does not change the speed of a network. Called from
simjax/commands/benchmark.py.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled

from simjax import config as c
from simjax.models import build, port
from simjax.perf import chips, costs, programs, tables
from simjax.perf.programs import Arguments, Program
from simjax.runs import check
from simjax.runtime import processes, sharding, versions
from simjax.typing import Params

WARM_UP = 2  # untimed calls first; our choice
TRACED = 3  # calls in a profile; our choice
PRODUCT = 4096  # side of the square matmuls that measure an unknown peak; our choice
LONG_ENOUGH = 0.2  # minimum seconds of matmuls for a peak; our choice

Clock = Callable[[], float]


def prepare(config: c.Config, swept: dict[str, list]) -> list[c.Config]:
    """The complete configs of a sweep, all checked before the first measurement.

    Raises:
      ConfigError: a combination that is invalid on these devices.
    """
    costs.counting_device()
    c.require_teacher(config)
    configs = combinations(port.plan(config), swept)
    for one in configs:
        check.check_values(one, jax.device_count())
    return configs


def combinations(config: c.Config, swept: dict[str, list[Any]]) -> list[c.Config]:
    """One config per combination of values; `batch` also sets evaluation.batch.

    >>> swept = combinations(c.Config(), {"batch": [8, 16], "steps_per_call": [1, 4]})
    >>> [(each.batch, each.evaluation.batch, each.steps_per_call) for each in swept]
    [(8, 8, 1), (8, 8, 4), (16, 16, 1), (16, 16, 4)]
    """
    return [
        _with(config, dict(zip(swept, chosen, strict=True)))
        for chosen in itertools.product(*swept.values())
    ]


def _with(config: c.Config, changes: dict[str, Any]) -> c.Config:
    """The config with `changes`, and with intervals rounded up to whole calls.

    Teacher training and online evaluation, which only a whole run needs, are switched off.
    """
    config = dataclasses.replace(config, **changes)
    calls = config.steps_per_call
    intervals = ("steps", "log_every", "sample_every", "checkpoint_every")
    whole = {name: math.ceil(getattr(config, name) / calls) * calls for name in intervals}
    samples = changes.get("batch", config.evaluation.batch)
    return dataclasses.replace(
        config,
        **whole,
        teacher=dataclasses.replace(config.teacher, steps=0),
        evaluation=dataclasses.replace(config.evaluation, every=0, batch=samples),
    )


def label(row: dict[str, Any]) -> str:
    """Folder name for one row's trace."""
    mesh = "x".join(str(size) for size in row["mesh"].values())
    parts = ("program", "batch", "accumulate", "steps_per_call", "compute_dtype")
    return "_".join([*(str(row[part]) for part in parts), mesh])


def surroundings(configs: list[c.Config]) -> dict[str, Any]:
    """Common to all rows: versions, devices, peak FLOP/s for each dtype."""
    mesh = build.mesh(configs[0])
    dtypes = sorted({config.compute_dtype for config in configs})
    return {
        "versions": versions.of("jax", "jaxlib"),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "peaks": {dtype: peak(mesh, dtype) for dtype in dtypes},
    }


def measure_all(
    configs: list[c.Config],
    names: list[str],
    peaks: dict[str, dict[str, Any]],
    *,
    repeats: int,
    profile: pathlib.Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields one row per program and config; identical combinations are measured once.

    Args:
      peaks: peak FLOP/s of all devices by dtype, from `surroundings`.
      repeats: number of timed calls.
      profile: folder for traces, one subfolder per row.
    """
    _, like = build.blank(configs[0])
    params = programs.random_params(like)
    seen = []
    for config in configs:
        for name in names:
            what, made = _program(config, name)
            if what in seen:
                continue
            seen.append(what)
            trace_to = profile / label(what) if profile else None
            try:
                seconds, row = _measure(made, params, repeats, trace_to)
                found = costs.of_program(config, name)
                peak_flops = peaks[config.compute_dtype]["flops"]
                row |= {
                    "costs": found,
                    **rates(made, seconds, found["flops_per_forward"], peak_flops),
                }
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                row = {"error": "out of memory", "reason": str(error).splitlines()[0]}
            yield what | row


def timed_calls(
    function: Callable,
    arguments: Arguments,
    after: Callable[[Any, Arguments], Arguments],
    count: int,
    clock: Clock = time.perf_counter,
) -> tuple[list[float], Arguments]:
    """Seconds of each call until its results are ready, and next arguments."""
    seconds = []
    for _ in range(count):
        begun = clock()
        results = jax.block_until_ready(function(*arguments))
        seconds.append(clock() - begun)
        arguments = after(results, arguments)
    return seconds, arguments


def rates(
    made: Program, seconds: list[float], flops_per_forward: float, peak_flops: float
) -> dict[str, Any]:
    """Median seconds, images/s and MFU from the seconds of the calls.

    MFU as in PaLM (arXiv:2204.02311, appendix B): it counts the k forwards that an image needs,
    not rematerialization or the optimizer.
    """
    median = statistics.median(seconds)
    images_per_second = made.batch * made.steps / median
    return {
        "seconds": {"median": median, "minimum": min(seconds), "maximum": max(seconds)},
        "images_per_second": images_per_second,
        "mfu": made.forwards * flops_per_forward * images_per_second / peak_flops,
    }


def peak(mesh: Mesh, dtype: str) -> dict[str, Any]:
    """Peak FLOP/s of all devices in this dtype: published, otherwise measured."""
    published = chips.peak_flops(mesh.devices.flat[0].device_kind, dtype)
    if published is not None:
        return {"flops": published * mesh.size, "source": "published"}
    source = f"measured with {PRODUCT} x {PRODUCT} matmuls"
    return {"flops": _measured_peak(mesh, dtype), "source": source}


def _measured_peak(mesh: Mesh, dtype: str) -> float:
    """Measured matmul FLOP/s of all devices, at the networks' precision."""
    where = sharding.batch_split(mesh)
    exact = "highest" if dtype == "float32" else None  # networks/denoiser.py

    def draw():
        w = jax.random.normal(jax.random.key(0), (mesh.size, PRODUCT, PRODUCT)) / PRODUCT**0.5
        return w.astype(build.DTYPES[dtype])

    @functools.partial(jax.jit, out_shardings=where)
    def multiply(w, iterations):
        return jax.lax.fori_loop(0, iterations, lambda _, x: jnp.matmul(x, w, precision=exact), w)

    w = jax.jit(draw, out_shardings=where)()
    jax.block_until_ready(multiply(w, 1))
    iterations, seconds = 1, 0.0
    while seconds < LONG_ENOUGH:
        iterations *= 2
        (taken,), _ = timed_calls(
            multiply, (w, iterations), lambda _, arguments: arguments, count=1
        )
        seconds = float(processes.from_first(np.float32(taken)))  # the same count in every process
    return iterations * mesh.size * 2 * PRODUCT**3 / seconds


def _program(config: c.Config, name: str) -> tuple[dict[str, Any], Program]:
    """A program and the values that identify it within a sweep."""
    mesh = build.mesh(config)
    made = programs.PROGRAMS[name](config, *build.blank(config), mesh)
    what = {
        "program": name,
        "batch": made.batch,
        "accumulate": config.accumulate if name in tables.TRAINING else 1,
        "steps_per_call": made.steps,
        "compute_dtype": config.compute_dtype,
        "mesh": dict(mesh.shape),
    }
    return what, made


def _measure(
    made: Program, params: Params, repeats: int, trace_to: pathlib.Path | None
) -> tuple[list[float], dict[str, Any]]:
    """Seconds of the timed calls; memory and compilation time.

    Raises:
      JaxRuntimeError: RESOURCE_EXHAUSTED.
    """
    binary, compile_seconds = _compile(made)
    arguments = made.values(params)
    _, arguments = timed_calls(binary, arguments, made.after, WARM_UP)
    seconds, arguments = timed_calls(binary, arguments, made.after, repeats)
    memory = costs.memory(binary) | _allocated()
    if trace_to:
        with jax.profiler.trace(str(trace_to)):
            timed_calls(binary, arguments, made.after, TRACED)
    return seconds, {"memory": memory, "compile_seconds": compile_seconds}


def _compile(made: Program) -> tuple[Compiled, float]:
    begun = time.perf_counter()
    binary = made.function.lower(*made.arguments).compile()
    return binary, time.perf_counter() - begun


def _allocated() -> dict[str, int]:
    """Peak bytes of the fullest device, if the backend reports them."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return {"allocator_peak": max(peaks)} if peaks else {}
