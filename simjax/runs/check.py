"""Validates a run's config: unknown names, invalid values, fields without effect."""

from simjax import config as c
from simjax.config import scales
from simjax.diffusion import noise, sampler, schedule
from simjax.evaluation import evaluator, features
from simjax.losses import adversarial, distances, registry
from simjax.models import build, samplers
from simjax.models.generator import RENOISE
from simjax.runs import fields

CHOICES = {
    "teacher.dtype": build.DTYPES,
    "teacher.weight": noise.WEIGHTS,
    "teacher.sampler.ladder": schedule.LADDERS,
    "teacher.sampler.solver": sampler.SOLVERS,
    "generator.renoise": RENOISE,
    "teacher.sigma.law": schedule.SIGMA_LAWS,
    "generator.weight": noise.WEIGHTS,
    "generator.sigma.law": schedule.SIGMA_LAWS,
    "fake_score.weight": noise.WEIGHTS,
    "fake_score.sigma.law": schedule.SIGMA_LAWS,
    "guidance": ("", *scales.GUIDANCE),
    "adversarial.divergence": ("", *adversarial.DIVERGENCES),
    "loss.name": registry.LOSSES,
    "loss.distance": distances.DISTANCES,
    "loss.units": ("denoiser", "score"),
}


def check(config: c.Config, devices: int, saved: c.Config | None = None) -> None:
    """Validates the config of a run, including fields without effect.

    Args:
      devices: number of devices.
      saved: the config that a resumed run was started with.

    Raises:
      ConfigError: with the field, its valid values and the remedy.

    >>> check(c.Config(loss=c.Loss(distance="l3")), devices=1)
    Traceback (most recent call last):
    ...
    simjax.errors.ConfigError: loss.distance = 'l3' is not known; known: ...
    """
    check_values(config, devices)
    fields.require_read(config, saved)


def check_values(config: c.Config, devices: int) -> None:
    """Checks a config's names, values and consistency.

    Raises:
      ConfigError: with the field, its valid values and the remedy.
    """
    check_evaluation(config.evaluation)
    c.validate(config, build.network_choices(config) | CHOICES, devices)
    samplers.require_ladder(config)


def check_evaluation(options: c.Evaluation) -> None:
    """Checks the names of feature spaces and metrics.

    Raises:
      ConfigError: listing the known names.
    """
    for name in options.features:
        c.require_known("evaluation.features", name, features.EXTRACTORS)
    for name in options.metrics:
        c.require_known("evaluation.metrics", name, evaluator.METRICS)
