"""Ahead-of-time compilation for a TPU topology without TPUs: memory and cost.

The program is the one that a run compiles. Its arguments are ShapeDtypeStructs with shardings, so
no checkpoint is read. Called from simjax/commands/aot.py.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
from jax.stages import Compiled

from simjax import config as c
from simjax.errors import ConfigError
from simjax.models import build, port
from simjax.perf import chips, costs, programs, tables
from simjax.perf.programs import Program
from simjax.runs import check
from simjax.runtime import versions


def compile_for(config: c.Config, topology: str, program: str, *, effort: float) -> dict[str, Any]:
    """Compiles a program, and one forward as the unit of its FLOPs.

    Args:
      program: a key of programs.PROGRAMS.
      effort: exec_time_optimization_effort of XLA; 0 is its default.

    Returns:
      The result that tables.describe prints: bytes, FLOPs and seconds of one device.

    Raises:
      ConfigError: the topology does not suit the config, or the program exceeds device memory.
    """
    devices, chip = chips.devices(topology), chips.find(topology)
    # encode_text reads fields that training does not.
    checked = check.check_values if program == "encode_text" else check.check
    checked(config, len(devices))
    c.require_teacher(config)
    config = port.plan(config)
    mesh = build.mesh(config, devices)
    denoise, params = build.blank(config)
    made = programs.PROGRAMS[program](config, denoise, params, mesh)
    what = {
        "topology": topology,
        "program": program,
        "devices": len(devices),
        "devices_per_chip": chip.devices,
        "mesh": dict(mesh.shape),
        "batch": made.batch,
        "accumulate": config.accumulate,
        "remat": config.remat,
        "compute_dtype": config.compute_dtype,
        "teacher_dtype": config.teacher.dtype,
        "arguments": {name: costs.held(tree) for name, tree in made.trees.items()},
        "effort": effort,
    }
    print(f"compiling {program} for {topology}; this takes minutes", flush=True)
    binary, memory, seconds = _compile_to_fit(made, what, config, chip, effort)
    forward_seconds = 0.0
    if config.scan_blocks and config.network.is_stack:
        found = _costs_of_stack(config, program, made, chip, what)
    else:
        forward, forward_seconds = _forward(made, devices[0], made.rows, effort)
        found = _costs(binary, made, forward, chip, what)
    return what | {
        "memory": memory,
        "costs": found,
        "collectives": costs.collective_traffic(binary.as_text()),
        "seconds": seconds | {"forward": forward_seconds},
        "versions": versions.of("jax", "libtpu"),
    }


def _compile(
    function: Callable, arguments: tuple[Any, ...], effort: float
) -> tuple[Compiled, dict[str, float]]:
    """The compiled program, and the seconds for lowering and compilation."""
    begun = time.monotonic()
    lowered = function.lower(*arguments)
    lowering = time.monotonic() - begun
    options = {"exec_time_optimization_effort": effort} if effort else {}
    binary = lowered.compile(compiler_options=options)
    return binary, {"lower": lowering, "compile": time.monotonic() - begun - lowering}


def _compile_to_fit(
    made: Program, what: dict[str, Any], config: c.Config, chip: chips.Chip, effort: float
) -> tuple[Compiled, dict[str, int], dict[str, float]]:
    """The compiled program, its memory and the seconds of `_compile`.

    Raises:
      ConfigError: it needs more than the available device memory.
    """
    available = chip.memory / chip.devices
    try:
        binary, seconds = _compile(made.function, made.arguments, effort)
    except jax.errors.JaxRuntimeError as error:
        if not (shortage := costs.exhausted(str(error))):
            raise
        raise ConfigError(tables.refusal(what, config, shortage)) from error
    memory = costs.memory(binary) | {"available": available}
    if memory["total"] > available:
        shortage = {"needed": memory["total"], "available": available, "largest": []}
        raise ConfigError(tables.refusal(what | {"memory": memory}, config, shortage))
    return binary, memory, seconds


def _forward(made: Program, device: Any, rows: int, effort: float) -> tuple[float, float]:
    """FLOPs per image of D alone on one device, and the seconds."""
    binary, seconds = _compile(*made.forward(device, rows), effort)
    return costs.cost(binary)[0] / rows, sum(seconds.values())


def _costs(
    binary: Compiled, made: Program, forward: float, chip: chips.Chip, what: dict[str, Any]
) -> dict[str, Any]:
    """FLOPs, bytes and roofline of a step (or batch) on one device.

    XLA counts a loop body once, so its totals are multiplied by `iterations`. This multiplies the
    code outside the loop: with gradient accumulation the optimizer update counts once per
    microbatch. For a multi-step generator, the bytes include one call before the last.
    """
    flops, moved = (made.iterations * cost for cost in costs.cost(binary))
    images = made.batch / what["devices"]
    flops += made.uncounted * forward * images
    passes = chips.PASSES[what["compute_dtype"]]
    seconds, bound = chips.roofline(flops, moved, chip, passes)
    return {
        "flops": flops,
        "bytes": moved,
        "flops_per_image": flops / images,
        "flops_per_forward": forward,
        "forwards": made.forwards,
        "over_forwards": flops / images / (made.forwards * forward),
        "passes": passes,
        "roofline_seconds": seconds,
        "roofline_bound": bound,
        "images_per_second_per_chip": chip.devices * images / seconds,
    }


def _costs_of_stack(
    config: c.Config, program: str, made: Program, chip: chips.Chip, what: dict[str, Any]
) -> dict[str, Any]:
    """`_costs` with scanned blocks: FLOPs of the lowered program, no bytes.

    The compiler counts one iteration of the scan over blocks.
    """
    found = costs.of_program(config, program)
    images = made.batch / what["devices"]
    flops = found["flops_per_image"] * images
    seconds, bound = chips.roofline(flops, 0, chip, chips.PASSES[what["compute_dtype"]])
    return found | {
        "flops": flops,
        "bytes": None,
        "roofline_seconds": seconds,
        "roofline_bound": bound,
        "images_per_second_per_chip": chip.devices * images / seconds,
    }
