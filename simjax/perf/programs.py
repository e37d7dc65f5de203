"""Every jitted program of a run, with abstract or concrete arguments.

A single update is compiled in the same way as a whole step. Called from footprint.py, costs.py and
timing.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from simjax import config as c
from simjax.diffusion import guidance
from simjax.losses.registry import WITH_REAL_IMAGES
from simjax.models import build, samplers
from simjax.models.generator import generator_of
from simjax.runs import setup
from simjax.runtime import sharding
from simjax.text import encoders
from simjax.train import step
from simjax.train.compile import Training, compile_steps
from simjax.train.update import Constants
from simjax.typing import Array, Condition, Denoise, Images, Params

Arguments = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, its abstract arguments, and the work of one execution.

    Args:
      arguments: ShapeDtypeStructs with shardings.
      trees: the arguments by name, for their sizes.
      batch: images per step, or samples per batch, over all devices.
      steps: training steps per call; 1 for samplers.
      iterations: iterations of the main loop (accumulation or sampler), which holds nearly all of a
        step's work; the compiler's costs count one.
      rows: per-device batch of one forward.
      forwards: minimum number of network forwards per image; the mean for a multi-step generator.
      uncounted: forwards among these that the compiler's costs miss, because the length of their
        loop is drawn at run time and a loop body counts once.
      forward: (device, rows) -> D alone on that device, and its abstract arguments.
      values: parameters (whole in every process) -> concrete arguments.
      after: (results, arguments) of a call -> arguments of the next; the state is donated.
    """

    function: Callable
    arguments: Arguments
    trees: dict[str, Any]
    batch: int
    steps: int
    iterations: int
    rows: int
    forwards: float
    forward: Callable[[jax.Device, int], tuple[Callable, Arguments]]
    values: Callable[[Params], Arguments]
    after: Callable[[Any, Arguments], Arguments]
    uncounted: float = 0.0


def random_params(like: Params) -> Params:
    """Random parameters from N(0, 1 / fan_in), for timing.

    Zeros would flatter a GPU: it draws less power multiplying zeros and runs faster.

    >>> drawn = random_params({"kernel": np.zeros((3, 3, 64, 256), np.float32)})
    >>> print(f"{drawn['kernel'].std():.2f}")  # 1 / sqrt(9 * 64)
    0.04
    """
    rng = np.random.default_rng(0)

    def draw(leaf):
        inputs = np.prod(leaf.shape[:-1], dtype=np.float32)  # 1 for biases and scales
        return (rng.standard_normal(leaf.shape, np.float32) / np.sqrt(inputs)).astype(leaf.dtype)

    return jax.tree.map(draw, like)


def forward(
    config: c.Config, denoise: Denoise, params: Params, device: jax.Device, rows: int
) -> tuple[Callable, Arguments]:
    """D alone on one device (the unit of costs), and abstract arguments."""
    shapes = ((rows, *build.image_shape(config)), (rows,))
    inputs = (jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)  # xt, sigma
    cond = jax.eval_shape(functools.partial(_draw_cond, config, rows))
    inputs = (*inputs, cond)
    return jax.jit(denoise), _placed((params, *inputs), SingleDeviceSharding(device))


def encode_text(config: c.Config, denoise: Denoise, params: Params, mesh: Mesh) -> Program:
    """The text encoder of a text-to-image run, without the denoiser."""
    encode, params = encoders.encoding(config.text.t5, unroll=not config.scan_blocks)
    batch = sharding.rounded_up(config.evaluation.batch, mesh)

    def inputs(rows: int) -> tuple[Array, Array]:
        shape = (rows, config.text.length)
        return jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)

    def alone(device: jax.Device, rows: int) -> tuple[Callable, Arguments]:
        arguments = (params, *jax.eval_shape(lambda: inputs(rows)))
        return jax.jit(encode), _placed(arguments, SingleDeviceSharding(device))

    where = sharding.batch_split(mesh)
    like = sharding.abstract(params, mesh)
    return Program(
        function=encoders.sharded(encode, mesh),
        arguments=(like, *_placed(jax.eval_shape(lambda: inputs(batch)), where)),
        trees={"parameters": like},
        batch=batch,
        steps=1,
        iterations=1,
        rows=batch // mesh.size,
        forwards=1,
        forward=alone,
        values=lambda _: (
            sharding.place(random_params(params), mesh),
            *jax.jit(lambda: inputs(batch), out_shardings=where)(),
        ),
        after=lambda results, arguments: arguments,
    )


def fake_score(config: c.Config, denoise: Denoise, params: Params, mesh: Mesh) -> Program:
    """The fake-score update alone: generator forward, fake-score forward and backward.

    4 forwards for a one-step generator; a backward counts as two.
    """
    forwards = generator_of(config).training_evaluations + _learning(config)
    made = _alone(config, denoise, params, mesh, "fake_score", forwards)
    read = {name: tree for name, tree in made.trees.items() if name != "teacher"}
    return dataclasses.replace(made, trees=read)


def generator(config: c.Config, denoise: Denoise, params: Params, mesh: Mesh) -> Program:
    """The generator update alone: 7 forwards for a one-step generator.

    Generator forward and backward (3); both scores, forward and gradient of the input (2 each).
    """
    forwards = generator_of(config).training_evaluations + 6 + _guidance(config)
    return _alone(config, denoise, params, mesh, "generator", forwards)


def train(config: c.Config, denoise: Denoise, params: Params, mesh: Mesh) -> Program:
    """The whole distillation call of a run: both updates, `steps_per_call` times."""
    made = setup.distillation(config, denoise, mesh)
    calls = generator_of(config).training_evaluations
    of_fake_score = config.fake_score_updates * (calls + _learning(config))
    forwards = of_fake_score + calls + 6 + _guidance(config)  # tests/train/test_cost.py
    return _training(config, made, denoise, params, forwards, config.fake_score_updates + 1)


def sample(config: c.Config, denoise: Denoise, params: Params, mesh: Mesh) -> Program:
    """Sampling from the generator with the evaluation batch."""
    sampler = samplers.generator_sampler(denoise, config, mesh)
    evaluations = generator_of(config).evaluations
    return _sampling(config, sampler, denoise, params, mesh, evaluations, evaluations)


def teacher_sample(config: c.Config, denoise: Denoise, params: Params, mesh: Mesh) -> Program:
    """Sampling from the teacher with the first of evaluation.teacher_steps."""
    steps = config.evaluation.teacher_steps[0]
    sampler = samplers.teacher_sampler(denoise, config, steps, mesh)
    evaluations = samplers.evaluations(config.teacher, steps)
    iterations = evaluations // samplers.calls(config.teacher)
    return _sampling(config, sampler, denoise, params, mesh, iterations, evaluations)


PROGRAMS = {
    "fake_score": fake_score,
    "generator": generator,
    "train": train,
    "sample": sample,
    "teacher_sample": teacher_sample,
    "encode_text": encode_text,
}


def _guidance(config: c.Config) -> int:
    """Forwards that guidance adds to the generator update: 2 per guided score.

    The extra evaluation (unconditional) and its backward to the input.
    """
    scales = (config.teacher.guidance, c.fake_score_scales(config)[1])
    return 2 * sum(guidance.evaluations(scale) - 1 for scale in scales)


def _learning(config: c.Config) -> int:
    """Forwards of the fake score's own update, backward included (3 per evaluation).

    RealUID also evaluates real images. A discriminator runs only the encoder on them, about a third
    of a forward, which this minimum leaves out.
    """
    learnt, _ = c.fake_score_scales(config)
    pairs = 2 if config.loss.name in WITH_REAL_IMAGES else 1
    return 3 * pairs * guidance.evaluations(learnt)


def _uncounted(config: c.Config) -> float:
    """Mean forwards in a multi-step generator's loop, minus the counted one."""
    generator = generator_of(config)
    return generator.training_evaluations - 2 if generator.evaluations > 1 else 0.0


def _alone(
    config: c.Config, denoise: Denoise, params: Params, mesh: Mesh, role: str, forwards: float
) -> Program:
    """A distillation program whose step is the first update with this role."""
    every = setup.updates_of(config, setup.step_fns(config, denoise, mesh), mesh)
    chosen = [each for each in every if each.role == role][:1]
    call = compile_steps(
        functools.partial(step.distill_step, updates=chosen),
        mesh=mesh,
        steps_per_call=config.steps_per_call,
    )
    made = dataclasses.replace(setup.distillation(config, denoise, mesh), call=call)
    return _training(config, made, denoise, params, forwards, chains=1)


def _training(
    config: c.Config,
    made: Training,
    denoise: Denoise,
    params: Params,
    forwards: float,
    chains: int,
) -> Program:
    """The program of a distillation call.

    Args:
      chains: generator samples drawn per step, each with one loop over calls before its last.
    """
    state, constants, key = setup.arguments_like(config, made, params)
    beside = {"captions": constants.captions, "real_images": constants.real}
    beside = {name: rows for name, rows in beside.items() if rows is not None}

    def values(params: Params) -> Arguments:
        frozen = sharding.place(setup.frozen(config, params), made.mesh)
        rows = (constants.captions, constants.real)
        where = jax.tree.map(lambda leaf: leaf.sharding, rows)

        def draw() -> tuple[Any, Any]:
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rows[1])
            return setup.any_captions(config), zeros

        teacher = Constants(frozen, *jax.jit(draw, out_shardings=where)())
        params = sharding.place(params, made.mesh)
        run_key = build.key_on(config, "distillation", made.mesh)
        return made.init(params, params), teacher, run_key

    return Program(
        function=made.call,
        arguments=(state, constants, key),
        trees={"teacher": constants.teacher} | beside | state.trees(),
        batch=config.batch,
        steps=config.steps_per_call,
        iterations=config.accumulate,
        rows=config.batch // config.accumulate // made.mesh.size,
        forwards=forwards,
        forward=functools.partial(forward, config, denoise, params),
        values=values,
        after=lambda results, arguments: (results[0], *arguments[1:]),
        uncounted=chains * _uncounted(config),
    )


def _sampling(
    config: c.Config,
    sampler: Callable[..., Images],
    denoise: Denoise,
    params: Params,
    mesh: Mesh,
    iterations: int,
    evaluations: int,
) -> Program:
    batch = sharding.rounded_up(config.evaluation.batch, mesh)  # as in evaluation/drawing.py
    where = sharding.batch_split(mesh)
    draw = functools.partial(_draw_inputs, config, batch)
    like = sharding.abstract(params, mesh)
    inputs = _placed(jax.eval_shape(draw), where)
    return Program(
        function=sampler,
        arguments=(like, *inputs),
        trees={"parameters": like, "inputs": inputs},
        batch=batch,
        steps=1,
        iterations=iterations,
        rows=batch // mesh.size,
        forwards=evaluations,
        forward=functools.partial(forward, config, denoise, params),
        values=lambda params: (
            sharding.place(params, mesh),
            *jax.jit(draw, out_shardings=where)(),
        ),
        after=lambda results, arguments: arguments,
    )


def _draw_inputs(config: c.Config, batch: int) -> tuple[Images, Condition, Array]:
    """z, conditions and noise keys of a batch of samples."""
    z_key, noise_key = jax.random.split(build.key(config, "evaluation"))
    return (
        jax.random.normal(z_key, (batch, *build.image_shape(config))),
        _draw_cond(config, batch),
        jax.random.split(noise_key, batch),
    )


def _draw_cond(config: c.Config, batch: int) -> Condition:
    return config.network.condition.draw(build.key(config, "evaluation"), batch)


def _placed(tree: Any, where: Sharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )
