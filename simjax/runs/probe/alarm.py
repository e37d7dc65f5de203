"""Checks a distillation against its teacher's curves: warnings and alarms.

Warnings are logged at the start, alarms during training. The curves reuse the samples of the
teacher's grid, so they cost seconds. Called from runs/distill.py.
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

LEVELS = 13  # noise levels of the curves; our choice
# Minimum share of a sigma law's draws inside the error's rise, and of the rise covered by the law;
# our choice.
INSIDE, COVERED = 0.2, 0.5
INITS = (1.0, 100.0)  # range of sigma_init, in standard deviations of the data; our choice
DRAWS = 4096  # draws per sigma law
# Bounds of a healthy distillation; our choice. Digits: contrast 0.88 to 1.05, drift 0.01, gap 0.1
# to 0.5; with 50 times their learning rates, where training fails: 0.3, 0.2, 1.1 and more.
CONTRAST = (0.5, 1.5)  # relative to the teacher; lower bound also relative to one call's contrast
DRIFT = 0.2  # drift of the samples' mean, in standard deviations of the data
GAP = 1.0  # RMS of D_fake - D_teacher, relative to the teacher's RMS error at that level


def begin(
    teacher: Model,
    x0: Float[np.ndarray, "n h w c"],
    cond: Condition,
    file: epath.Path,
    say: Callable[[str], None],
) -> "Alarm":
    """Measures the teacher's curves, writes them and warns about unsuitable settings.

    Args:
      x0, cond: samples of the teacher's sampler and their conditions, numpy.
      file: output JSON.
      say: logs one line.
    """
    curves = look(teacher, x0, cond)
    written = {"curves": calibration.to_dict(curves)}
    if curves.is_finite:
        found = calibration.propose(curves)
        missed = misses(teacher.config, curves, found)
        written |= {"proposal": dataclasses.asdict(found), "missed": missed}
        for problem in missed:
            say(
                f"warning (probe): {problem}; for suggested settings run "
                f"python -m simjax probe --source={file.parent}"
            )
    else:
        say(f"warning (probe): {calibration.faults(curves)['finite']}.")
    if processes.is_first():
        storage.write_json(file, written)
    return Alarm(curves, teacher.config, say)


def look(teacher: Model, x0: Float[np.ndarray, "n h w c"], cond: Condition) -> Curves:
    """Curves of the unguided teacher on its own samples, without the trace."""
    config = teacher.config
    options = dataclasses.replace(config.teacher, guidance=1.0)
    plain = dataclasses.replace(teacher, config=dataclasses.replace(config, teacher=options))
    looking = Look(plain, cond, LEVELS, seed=0)
    return looking.curves(plain, x0[looking.rows], trace=False)


def misses(config: c.Config, curves: Curves, found: Proposal) -> list[str]:
    """Settings that miss the noise levels where the teacher's error rises."""
    missed = []
    rises = f"the teacher's error rises between {found.low:.3g} and {found.high:.3g}"
    for role in ("generator", "fake_score"):
        sigma = _drawn(getattr(config, role).sigma)
        low, high = np.quantile(sigma, (0.01, 0.99))
        inside = np.mean((sigma >= found.low) & (sigma <= found.high))
        if inside < INSIDE or calibration.rise_between(curves, low, high) < COVERED:
            missed.append(
                f"{role}.sigma draws {low:.3g} to {high:.3g} (1 to 99 %), {inside:.0%} of the "
                f"draws where {rises}"
            )
    first = config.generator.levels[0] if config.generator.levels else config.generator.sigma_init
    least, most = (times * found.scale for times in INITS)
    if not least <= first <= most:
        missed.append(
            f"generator.sigma_init = {first:.3g}; expected {least:.3g} to {most:.3g} for data "
            f"with standard deviation {found.scale:.3g}"
        )
    return missed


def _drawn(law: c.Sigma) -> Float[np.ndarray, "n"]:
    draw = schedule.SIGMA_LAWS[law.law]
    return np.asarray(draw(jax.random.key(0), DRAWS, **options_of(draw, law)))


class Alarm:
    """Compares training metrics with bounds derived from the teacher's curves.

    Args:
      curves: of the teacher.
      say: logs one line each time a metric leaves its bound.
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
        """Returns alarm/NAME for a log window: 1 if out of bounds."""
        alarms = {
            "finite": self._not_finite(scalars),
            "contrast": self._contrast_off(scalars),
            "drift": self._drifted(scalars),
            "gap": self._gap_wide(scalars),
        }
        for name, message in alarms.items():
            if message and name not in self._left:
                self._say(f"alarm ({name}): {message}")
        self._left = {name for name, message in alarms.items() if message}
        return {f"alarm/{name}": float(bool(message)) for name, message in alarms.items()}

    def _not_finite(self, scalars: Mapping[str, float]) -> str:
        bad = sum(value for name, value in scalars.items() if "/nonfinite" in name)
        if bad == 0:
            return ""
        return (
            f"{bad:.3g} non-finite gradients or examples per step; lower both learning rates, "
            "set optim.clip, or compute in float32."
        )

    def _contrast_off(self, scalars: Mapping[str, float]) -> str:
        ratio = scalars.get("samples/contrast_ratio", 1.0)
        low, high = self._contrasts
        if low <= ratio <= high:
            return ""
        message = f"samples have {ratio:.3g} times the teacher's contrast, expected {low:.3g} to "
        message += f"{high:.3g}; "
        if ratio > high:
            return message + "lower the upper end of generator.sigma, or guidance."
        return message + "lower generator.optim.lr, or raise fake_score_updates."

    def _drifted(self, scalars: Mapping[str, float]) -> str:
        drift = scalars.get("samples/mean_drift", 0.0)
        if abs(drift) <= self._drift:
            return ""
        return (
            f"the samples' mean differs from the teacher's by {drift:.3g}, expected at most "
            f"{self._drift:.3g}; lower generator.optim.lr, or raise fake_score_updates."
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
            f"the RMS of D_fake - D_teacher is {gap:.3g} at {name}, expected at most {most:.3g}; "
            "the fake score lags behind the generator: lower generator.optim.lr, or raise "
            "fake_score_updates."
        )
