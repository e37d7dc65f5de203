"""What draws samples: a generator, or a teacher's sampler."""

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

# For a person.
NAMES = {"heun": "Heun", "euler": "Euler", "dpm_solver": "DPM-Solver++", "flow_sde": "SDE"}
Sample = Callable[[Params, Images, Condition, Array], Images]  # params, z, cond, keys


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A way of making samples: function(params, z, cond, keys), of `evaluations` calls of D."""

    name: str
    evaluations: int
    function: Sample
    params: Params


def generated(model: Model, params: Mapping[str, Params]) -> list[Sampler]:
    """The config's generator, with each of the named parameters."""
    function = generator_sampler(model.denoise, model.config, model.mesh)
    evaluations = generator_of(model.config).evaluations
    return [Sampler(name, evaluations, function, value) for name, value in params.items()]


def many_steps(teacher: Model, steps: int) -> Sampler:
    """The teacher itself, by its sampler."""
    options = teacher.config.teacher
    function = teacher_sampler(teacher.denoise, teacher.config, steps, teacher.mesh)
    name = f"teacher, {NAMES[options.sampler.solver]}"
    return Sampler(name, evaluations(options, steps), function, teacher.params)


def teacher_sampler(denoise: Denoise, config: c.Config, steps: int, mesh: Mesh) -> Sample:
    """(params, z, cond, keys) -> samples by teacher.sampler, guided by teacher.guidance.

    One key an example draws the noise of its steps.
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
    """Of the network for each sample, in so many steps."""
    return calls(teacher) * sampler.SOLVERS[teacher.sampler.solver].evaluations(steps)


def calls(teacher: c.Teacher) -> int:
    """Of the network that one evaluation of the teacher costs: two with guidance."""
    return guidance.evaluations(teacher.guidance)


def require_ladder(config: c.Config) -> None:
    """Refuses noise levels of the report's teacher rows that float32 does not hold apart.

    Raises:
      ConfigError: with them; nothing is raised while only the teacher's file tells its ladder.
    """
    options = c.resolved(config).teacher.sampler
    for steps in config.evaluation.teacher_steps if options.ladder else ():
        levels = np.asarray(_ladder(options, steps))
        if not (np.isfinite(levels).all() and (np.diff(levels, append=0) < 0).all()):
            raise ConfigError(
                f"teacher.sampler: {steps} steps of the ladder {options.ladder!r} are no "
                f"descending noise levels ({levels[0]:.4g} to {levels[-1]:.4g}); see "
                "evaluation.teacher_steps and the fields of teacher.sampler."
            )


def _ladder(options: c.Sampler, steps: int) -> Array:
    ladder = schedule.LADDERS[options.ladder]
    return ladder(steps, **options_of(ladder, options))


def _churn(options: c.Sampler) -> dict[str, sampler.Churn]:
    """Empty for none, whose range and inflation have no effect."""
    if not options.churn:
        return {}
    names = ("churn", "churn_low", "churn_high", "churn_inflation")
    return {"churn": sampler.Churn(*(getattr(options, name) for name in names))}


def generator_sampler(denoise: Denoise, config: c.Config, mesh: Mesh) -> Sample:
    """(params, z, cond, keys) -> samples of the config's generator.

    One key an example draws the noise of its calls after the first.
    """
    denoise, generator = build.on_devices(denoise, mesh, config), generator_of(config)

    def sample(params, z, cond, keys):
        noise = noise_of(keys, z.shape[1:]) if generator.draws_noise else None
        return generator.sample(denoise, params, z, cond, noise)

    return jax.jit(sample)
