"""A config's program compiled for a TPU topology, without TPUs: what it needs there.

The program is the one that a run compiles, on arguments that have shapes, types and shardings but
no values: no checkpoint is read. Called from simjax/aot.py.
"""

import dataclasses
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jax.stages import Compiled

import simjax
from simjax import build, chips, compiled, footprint, sharding, teacher
from simjax import config as c
from simjax.typing import Denoise, Images, Params


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, its arguments as shapes with shardings, and what an execution is.

    Args:
      trees: the arguments by name, for their sizes.
      batch: images of a step, or samples of a batch, on all devices.
      turns: of the loop that does nearly all the work; the compiler's costs hold one of them.
      rows: images that one device's network sees at a time.
      forwards: of the network that an image needs at least.
    """

    function: Callable
    arguments: tuple[Any, ...]
    trees: dict[str, Any]
    batch: int
    turns: int
    rows: int
    forwards: int


def compile_for(config: c.Config, topology: str, program: str, *, effort: float) -> dict[str, Any]:
    """Compiles a program of PROGRAMS, and one forward to compare it with.

    Args:
      effort: of the compiler's optimizations for speed; 0 is its default.

    Returns:
      what simjax/footprint.py describes: bytes, flops and seconds, of one device.

    Raises:
      ConfigError: the config does not fit the topology, or the program its memory.
    """
    devices, chip = chips.devices(topology), chips.find(topology)
    build.check(config, len(devices))
    c.require_teacher(config)
    config = teacher.plan(config)
    mesh = build.mesh(config, devices)
    denoise, params = _network(config)
    made = PROGRAMS[program](config, denoise, params, mesh)
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
        "arguments": {name: compiled.held(tree) for name, tree in made.trees.items()},
        "effort": effort,
    }
    print(f"compiling {program} for {topology}; this takes minutes", flush=True)
    binary, memory, seconds = _compile_to_fit(made, what, config, chip, effort)
    forward, forward_seconds = _forward(config, denoise, params, devices[0], made.rows, effort)
    return what | {
        "memory": memory,
        "costs": _costs(binary, made, forward, chip, what),
        "collectives": compiled.collective_traffic(binary.as_text()),
        "seconds": seconds | {"forward": forward_seconds},
        "versions": {"simjax": simjax.__version__}
        | {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }


def training(config: c.Config, denoise: Denoise, params: Params, mesh: Mesh) -> Program:
    """The distillation call, as a run makes it."""
    made = build.distillation(config, denoise, mesh)
    state, constants, key = build.arguments_like(config, made, params)
    names = (field.name for field in dataclasses.fields(state) if field.name != "step")
    trees = {name: getattr(state, name) for name in names}
    return Program(
        function=made.call,
        arguments=(state, constants, key),
        trees={"teacher": constants} | trees,
        batch=config.batch,
        turns=config.accumulate,
        rows=config.batch // config.accumulate // mesh.size,
        forwards=11,  # two of G, 3 + 4 of the scores, 2 of G: tests/train/test_cost.py
    )


def sampling(config: c.Config, denoise: Denoise, params: Params, mesh: Mesh) -> Program:
    """One-step samples, in the batches of evaluation."""
    sampler = build.one_step_sampler(denoise, config.generator.sigma_init, mesh)
    return _sampling(config, sampler, params, mesh, evaluations=1)


def teacher_sampling(config: c.Config, denoise: Denoise, params: Params, mesh: Mesh) -> Program:
    """The teacher's samples, in the first of evaluation.teacher_steps."""
    steps = config.evaluation.teacher_steps[0]
    sampler = build.teacher_sampler(denoise, config.teacher.sampler, steps, mesh)
    return _sampling(config, sampler, params, mesh, evaluations=2 * steps - 1)


def _sampling(
    config: c.Config, sampler: Callable[..., Images], params: Params, mesh: Mesh, evaluations: int
) -> Program:
    batch = -(-config.evaluation.batch // mesh.size) * mesh.size  # as evaluation/drawing.py
    params = sharding.abstract(params, mesh)
    inputs = _inputs(config, batch, sharding.batch_split(mesh))
    arguments = (params, inputs["xt"], inputs["labels"], inputs["keys"])
    return Program(
        function=sampler,
        arguments=arguments,
        trees={"parameters": params, "inputs": arguments[1:]},
        batch=batch,
        turns=evaluations,
        rows=batch // mesh.size,
        forwards=evaluations,
    )


PROGRAMS = {"train": training, "sample": sampling, "teacher_sample": teacher_sampling}


def _network(config: c.Config) -> tuple[Denoise, Params]:
    """The denoiser, and its parameters as zeros that nothing writes: they take no memory."""
    like = build.weights_like(config)
    return build.denoiser(config, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like))


def _inputs(config: c.Config, batch: int, where: Sharding) -> dict[str, jax.ShapeDtypeStruct]:
    """What a denoiser or a sampler takes besides parameters, as shapes."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    like = {
        "xt": jax.ShapeDtypeStruct((batch, *build.image_shape(config)), np.float32),
        "sigma": jax.ShapeDtypeStruct((batch,), np.float32),
        "labels": jax.ShapeDtypeStruct((batch, config.network.label_dim), np.float32),
        "keys": keys,
    }
    return _placed(like, where)


def _placed(tree: Any, where: Sharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )


def _compile(
    function: Callable, arguments: tuple[Any, ...], effort: float
) -> tuple[Compiled, dict[str, float]]:
    """The compiled program, and the seconds of lowering and of compiling it."""
    begun = time.monotonic()
    lowered = function.lower(*arguments)
    lowering = time.monotonic() - begun
    options = {"exec_time_optimization_effort": effort} if effort else {}
    binary = lowered.compile(compiler_options=options)
    return binary, {"lower": lowering, "compile": time.monotonic() - begun - lowering}


def _compile_to_fit(
    made: Program, what: dict[str, Any], config: c.Config, chip: chips.Chip, effort: float
) -> tuple[Compiled, dict[str, int], dict[str, float]]:
    """The compiled program, its memory and seconds.

    Raises:
      ConfigError: it needs more memory than there is.
    """
    available = chip.memory / chip.devices
    try:
        binary, seconds = _compile(made.function, made.arguments, effort)
    except jax.errors.JaxRuntimeError as error:
        if not (shortage := compiled.exhausted(str(error))):
            raise
        raise c.ConfigError(footprint.refusal(what, config, shortage)) from error
    memory = compiled.memory(binary) | {"available": available}
    if memory["total"] > available:
        shortage = {"needed": memory["total"], "available": available, "largest": []}
        raise c.ConfigError(footprint.refusal(what | {"memory": memory}, config, shortage))
    return binary, memory, seconds


def _forward(
    config: c.Config, denoise: Denoise, params: Params, device: Any, rows: int, effort: float
) -> tuple[float, float]:
    """Flops an image of D alone, by the same analysis, compiled for one device; and the seconds."""
    here = SingleDeviceSharding(device)
    inputs = _inputs(config, rows, here)
    arguments = (_placed(params, here), inputs["xt"], inputs["sigma"], inputs["labels"])
    binary, seconds = _compile(jax.jit(denoise), arguments, effort)
    return compiled.cost(binary)[0] / rows, sum(seconds.values())


def _costs(
    binary: Compiled, made: Program, forward: float, chip: chips.Chip, what: dict[str, Any]
) -> dict[str, Any]:
    """Flops and bytes of a step (or batch) on one device, an image's flops, the roofline.

    The analysis counts a loop's body once, so that what lies outside the loop counts `turns` times
    here: with gradient accumulation that adds the optimizers' part once more for each slice.
    """
    flops, moved = (made.turns * cost for cost in compiled.cost(binary))
    images = made.batch / what["devices"]
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
