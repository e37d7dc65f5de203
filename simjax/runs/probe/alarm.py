"""What a distillation learns from its teacher's curves: a warning at its start, alarms on its way.

The samples of its teacher's picture serve once more, so that it costs seconds. Called from
runs/distill.py.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
from etils import epath

from simjax import config as c
from simjax.config.options import options_of
from simjax.diffusion import schedule
from simjax.evaluation import calibration
from simjax.evaluation.calibration import Curves, Proposal
from simjax.models.model import Model
from simjax.runs.probe.look import Look
from simjax.runtime import processes, storage
from simjax.train import health
from simjax.typing import Condition, Float

LEVELS = 13  # of the curves; our choice
INSIDE, COVERED = 0.2, 0.5  # least share of a law's draws, and of the error's rise; our choice
INITS = (1.0, 100.0)  # standard deviations of the data that sigma_init may be; our choice
DRAWS = 4096  # of a law
# Bounds of a healthy distillation; our choice. Digits: contrast 0.88 to 1.05, drift 0.01, gap 0.1
# to 0.5; with fifty times their rates, where nothing is learnt: 0.3, 0.2, 1.1 and more.
CONTRAST = (0.5, 1.5)  # of the teacher's; below also of one call's at sigma_init
DRIFT = 0.2  # of the mean, in standard deviations of the data
GAP = 1.0  # of D_fake - D_teacher, in root mean square errors of the teacher at that level


def begin(
    teacher: Model,
    x0: Float[np.ndarray, "n h w c"],
    cond: Condition,
    file: epath.Path,
    say: Callable[[str], None],
) -> "Alarm":
    """Looks at the teacher, writes what it sees, warns of a config that misses it.

    Args:
      x0, cond: samples of the teacher's sampler and their conditions, numpy.
      file: for the curves, JSON.
    """
    curves = look(teacher, x0, cond)
    written = {"curves": calibration.to_dict(curves)}
    if curves.is_finite:
        found = calibration.propose(curves)
        missed = misses(teacher.config, curves, found)
        written |= {"proposal": dataclasses.asdict(found), "missed": missed}
        for told in missed:
            say(f"warning (probe): {told}; settings: python -m simjax probe --source={file.parent}")
    else:
        say(f"warning (probe): {calibration.faults(curves)['finite']}.")
    if processes.is_first():
        storage.write_json(file, written)
    return Alarm(curves, teacher.config, say)


def look(teacher: Model, x0: Float[np.ndarray, "n h w c"], cond: Condition) -> Curves:
    """Curves of the teacher without guidance, on samples of its own; without the trace."""
    config = teacher.config
    options = dataclasses.replace(config.teacher, guidance=1.0)
    plain = dataclasses.replace(teacher, config=dataclasses.replace(config, teacher=options))
    looking = Look(plain, cond, LEVELS, seed=0)
    return looking.curves(plain, x0[looking.rows], trace=False)


def misses(config: c.Config, curves: Curves, found: Proposal) -> list[str]:
    """Settings of a config that miss the levels at which its teacher does anything."""
    told = []
    rises = f"the teacher's error rises between {found.low:.3g} and {found.high:.3g}"
    for role in ("generator", "fake_score"):
        sigma = _drawn(getattr(config, role).sigma)
        low, high = np.quantile(sigma, (0.01, 0.99))
        inside = np.mean((sigma >= found.low) & (sigma <= found.high))
        if inside < INSIDE or calibration.rise_between(curves, low, high) < COVERED:
            told.append(
                f"{role}.sigma draws {low:.3g} to {high:.3g} (1 to 99 %), {inside:.0%} of it where "
                f"{rises}"
            )
    first = config.generator.levels[0] if config.generator.levels else config.generator.sigma_init
    least, most = (times * found.scale for times in INITS)
    if not least <= first <= most:
        told.append(
            f"generator.sigma_init = {first:.3g}; expected {least:.3g} to {most:.3g}, of data "
            f"whose standard deviation is {found.scale:.3g}"
        )
    return told


def _drawn(law: c.Sigma) -> Float[np.ndarray, "n"]:
    draw = schedule.SIGMA_LAWS[law.law]
    return np.asarray(draw(jax.random.key(0), DRAWS, **options_of(draw, law)))


class Alarm:
    """Compares what training reports of itself with bounds that the teacher's curves give.

    Args:
      say: takes one line, whenever a bound is left that was kept before.
    """

    def __init__(self, curves: Curves, config: c.Config, say: Callable[[str], None]):
        log = np.log(curves.sigma)
        called = np.interp(np.log(config.generator.sigma_init), log, curves.contrast)
        edges = np.log([*health.SIGMA_EDGES, np.inf])
        error = np.minimum(np.interp(edges, log, curves.error), curves.plateau)
        self._contrasts = CONTRAST[0] * min(called, 1), CONTRAST[1] * max(called, 1)
        self._drift = DRIFT * curves.deviation
        self._gaps = dict(zip(health.SIGMA_BINS, GAP * np.sqrt(error), strict=True))
        self._say = say
        self._left: set[str] = set()

    def __call__(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """Of a log window's scalars: alarm/NAME, 1 where a bound is left and 0 where it is kept."""
        alarms = {
            "finite": self._not_finite(scalars),
            "contrast": self._contrast_off(scalars),
            "drift": self._drifted(scalars),
            "gap": self._gap_wide(scalars),
        }
        for name, told in alarms.items():
            if told and name not in self._left:
                self._say(f"alarm ({name}): {told}")
        self._left = {name for name, told in alarms.items() if told}
        return {f"alarm/{name}": float(bool(told)) for name, told in alarms.items()}

    def _not_finite(self, scalars: Mapping[str, float]) -> str:
        bad = sum(value for name, value in scalars.items() if "/nonfinite" in name)
        if bad == 0:
            return ""
        return (
            f"{bad:.3g} gradients or examples a step are not finite; lower both learning rates, "
            "set optim.clip, or compute in float32."
        )

    def _contrast_off(self, scalars: Mapping[str, float]) -> str:
        ratio = scalars.get("samples/contrast_ratio", 1.0)
        low, high = self._contrasts
        if low <= ratio <= high:
            return ""
        told = f"samples have {ratio:.3g} times the teacher's contrast, expected {low:.3g} to "
        told += f"{high:.3g}; "
        if ratio > high:
            return told + "lower the upper end of generator.sigma, or guidance."
        return told + "lower generator.optim.lr, or raise fake_score_updates."

    def _drifted(self, scalars: Mapping[str, float]) -> str:
        drift = scalars.get("samples/mean_drift", 0.0)
        if abs(drift) <= self._drift:
            return ""
        return (
            f"the samples' mean is {drift:.3g} off the teacher's, at most {self._drift:.3g} "
            "expected; lower generator.optim.lr, or raise fake_score_updates."
        )

    def _gap_wide(self, scalars: Mapping[str, float]) -> str:
        wide = {
            name: (scalars[f"gap/{name}"], most)
            for name, most in self._gaps.items()
            if not scalars.get(f"gap/{name}", 0.0) <= most
        }
        if not wide:
            return ""
        name, (gap, most) = next(iter(wide.items()))
        return (
            f"D_fake - D_teacher is {gap:.3g} at {name}, at most {most:.3g} expected; the fake "
            "score does not follow: lower generator.optim.lr, or raise fake_score_updates."
        )
