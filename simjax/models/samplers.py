"""Samplers: the distilled generator, and the teacher's ODE or SDE solver."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from simjax import config as c
from simjax.config.options import options_of
from simjax.diffusion import guidance, sampler, schedule
from simjax.errors import ConfigError
from simjax.models import build
from simjax.models.generator import generator_of, noise_of
from simjax.models.model import Model
from simjax.typing import Array, Condition, Denoise, Images, Params

# As shown in reports.
NAMES = {"heun": "Heun", "euler": "Euler", "dpm_solver": "DPM-Solver++", "flow_sde": "SDE"}
Sample = Callable[[Params, Images, Condition, Array], Images]  # params, z, cond, keys


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A named sampling function with its parameters.

    Attributes:
      name: its row in reports.
      evaluations: NFE, network forwards per sample.
      function: (params, z, cond, keys) -> samples, data units.
    """

    name: str
    evaluations: int
    function: Sample
    params: Params


def generated(model: Model, params: Mapping[str, Params]) -> list[Sampler]:
    """Samplers of the config's generator, one per named parameter tree."""
    function = generator_sampler(model.denoise, model.config, model.mesh)
    evaluations = generator_of(model.config).evaluations
    return [Sampler(name, evaluations, function, value) for name, value in params.items()]


def many_steps(teacher: Model, steps: int) -> Sampler:
    """The teacher's multi-step sampler."""
    options = teacher.config.teacher
    function = teacher_sampler(teacher.denoise, teacher.config, steps, teacher.mesh)
    name = f"teacher, {NAMES[options.sampler.solver]}"
    return Sampler(name, evaluations(options, steps), function, teacher.params)


def teacher_sampler(denoise: Denoise, config: c.Config, steps: int, mesh: Mesh) -> Sample:
    """(params, z, cond, keys) -> samples by teacher.sampler, guided by teacher.guidance.

    `keys`: one per example, for the noise of stochastic solvers.
    """
    denoise = build.on_devices(denoise, mesh, config)
    denoise = build.guided(config, denoise, config.teacher.guidance)
    options = config.teacher.sampler
    solver = sampler.SOLVERS[options.solver]
    churn = _churn(options) if "churn" in solver.options else {}

    def sample(params, z, cond, keys):
        def conditioned(xt, sigma):
            return denoise(params, xt, sigma, cond)

        draw_noise = noise_of(keys, z.shape[1:])
        noise = {"draw_noise": draw_noise} if "draw_noise" in solver.options else {}
        return solver.sample(conditioned, z, _ladder(options, steps), **noise, **churn)

    return jax.jit(sample)


def evaluations(teacher: c.Teacher, steps: int) -> int:
    """NFE of the teacher's sampler; guidance doubles it.

    >>> heun = c.Sampler(solver="heun")
    >>> evaluations(c.Teacher(sampler=heun), steps=18)
    35
    >>> evaluations(c.Teacher(sampler=heun, guidance=1.5), steps=18)
    70
    """
    return calls(teacher) * sampler.SOLVERS[teacher.sampler.solver].evaluations(steps)


def calls(teacher: c.Teacher) -> int:
    """Network forwards per evaluation of D: two with guidance, otherwise one."""
    return guidance.evaluations(teacher.guidance)


def require_ladder(config: c.Config) -> None:
    """Checks that the report's teacher ladders strictly decrease in float32.

    Skipped while the ladder is unknown, because the teacher's file has not been read yet.

    Raises:
      ConfigError: with the noise levels that do not.
    """
    options = c.resolved(config).teacher.sampler
    for steps in config.evaluation.teacher_steps if options.ladder else ():
        levels = np.asarray(_ladder(options, steps))
        if not (np.isfinite(levels).all() and (np.diff(levels, append=0) < 0).all()):
            raise ConfigError(
                f"teacher.sampler: the noise levels of the ladder {options.ladder!r} in {steps} "
                f"steps do not strictly decrease ({levels[0]:.4g} to {levels[-1]:.4g}); see "
                "evaluation.teacher_steps and the fields of teacher.sampler."
            )


def _ladder(options: c.Sampler, steps: int) -> Array:
    ladder = schedule.LADDERS[options.ladder]
    return ladder(steps, **options_of(ladder, options))


def _churn(options: c.Sampler) -> dict[str, sampler.Churn]:
    """The sampler's churn as keyword arguments; empty if churn is off."""
    if not options.churn:
        return {}
    names = ("churn", "churn_low", "churn_high", "churn_inflation")
    return {"churn": sampler.Churn(*(getattr(options, name) for name in names))}


def generator_sampler(denoise: Denoise, config: c.Config, mesh: Mesh) -> Sample:
    """(params, z, cond, keys) -> samples of the config's generator.

    `keys`: one per example, for the fresh noise of calls after the first.
    """
    denoise, generator = build.on_devices(denoise, mesh, config), generator_of(config)

    def sample(params, z, cond, keys):
        noise = noise_of(keys, z.shape[1:]) if generator.draws_noise else None
        return generator.sample(denoise, params, z, cond, noise)

    return jax.jit(sample)
