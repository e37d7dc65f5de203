"""What a denoiser says about itself and its data, without data: curves over noise levels.

For x0 of the teacher's own sampler and xt = x0 + sigma eps, D(xt; sigma) = E[x0 | xt] has at every
sigma

    e(sigma) = E (x0 - D)^2 <= sigma^2,  E <x0, D> = E |D|^2,  e = sigma^2 E tr(dD / dxt) / pixels.

A denoiser that is called wrongly breaks them. Where e rises, from 0 to what the data vary, are the
levels at which the teacher does anything: score distillation learns there.

The third is the posterior covariance's formula (Tweedie's of second order); the others are
properties of conditional means. Called from simjax/runs/probe.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.signal import find_peaks

from simjax.typing import Condition, Float, Images, PerExample

RANGE = (0.02, 0.98)  # of e's plateau: where the teacher does anything; our choice
SIGMA_INIT = 5.0  # in standard deviations of the data; SIM: 2.5 where they are 0.5
FINE = 400  # points a decade that curves are read at; our choice
SHOULDER = 0.1  # of the highest peak: how far another one stands out; our choice
# What an imperfect denoiser may be off by; our choice. Small trained ones: 0.06, 0.78 to 1.2, 1.28.
SLOPE, TRACE, NOISE = 0.1, (0.7, 1.4), 1.5
SLOPE_OF_NOISE = 0.2  # of one that predicts noise; small trained ones: 0.86 to 1.12


@dataclasses.dataclass(frozen=True)
class Curves:
    """A denoiser at each noise level, arrays (n,), data units; means over samples and pixels.

    Attributes:
      sigma: ascending.
      error: e = mean (x0 - D)^2.
      omega: mean |x0 - D|, by which SiD divides its loss.
      slope: <x0, D> / <D, D>, both without the mean image; 1 of an exact denoiser.
      orthogonality: <x0 - D, D> / <D, D>; 0 of an exact one.
      trace: sigma^2 tr(dD / dxt) / (pixels e); 1 of an exact one. None: not measured.
      contrast: of D(sigma eps; sigma), one call, over that of the samples.
      finite: share of examples whose D is finite.
      bias: mean of D - x0.
      deviation: standard deviation of the samples, over all pixels.
      variance: of the samples about their mean image.
      predicts_noise: its network does, so that D's errors grow with sigma.
    """

    sigma: Float[np.ndarray, "n"]
    error: Float[np.ndarray, "n"]
    omega: Float[np.ndarray, "n"]
    slope: Float[np.ndarray, "n"]
    orthogonality: Float[np.ndarray, "n"]
    trace: Float[np.ndarray, "n"] | None
    contrast: Float[np.ndarray, "n"]
    finite: Float[np.ndarray, "n"]
    bias: Float[np.ndarray, "n"]
    deviation: float
    variance: float
    predicts_noise: bool = False

    @property
    def plateau(self) -> float:
        """e at the highest level: how much the data vary, given their condition alone.

        Where errors grow with sigma it is at most the samples' variance.
        """
        highest = float(self.error[-1])
        return min(highest, self.variance) if self.predicts_noise else highest

    @property
    def share(self) -> Float[np.ndarray, "n"]:
        """e over its plateau, from 0 to 1."""
        return self.error / self.plateau

    @property
    def is_finite(self) -> bool:
        """Whether D is, at every level and for every example."""
        return bool(np.all(self.finite == 1))


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Settings of a distillation, from curves; data units.

    Attributes:
      low, high: levels where e is 2 % and 98 % of its plateau.
      half: where it is a half.
      peaks: where de / d ln(sigma) is largest, and its other shoulders, ascending.
      mean, std: of ln(sigma) under the density proportional to de / d ln(sigma) in that range.
      scale: standard deviation of the data, given their condition.
      sigma_init: of a generator's call.
    """

    low: float
    high: float
    half: float
    peaks: tuple[float, ...]
    mean: float
    std: float
    scale: float
    sigma_init: float


def levels(deviation: float, count: int) -> Float[np.ndarray, "n"]:
    """Noise levels in equal ratios for data of this standard deviation.

    They are EDM's 0.002 to 80 where it is EDM's 0.5.
    """
    return np.geomspace(0.004, 160, count) * deviation


def matched_noise(x0: Float[np.ndarray, "b h w c"], seed: int) -> Float[np.ndarray, "b h w c"]:
    """Noise whose mean square is 1 and whose product with x0 is 0, as if there were more of it.

    All levels share it, so that curves are smooth.
    """
    eps = np.random.default_rng(seed).standard_normal(x0.shape)
    varying = x0 - x0.mean(0)
    if (total := np.sum(varying**2)) > 0:
        eps -= np.sum(eps * varying) / total * varying
    return (eps / np.sqrt(np.mean(eps**2))).astype(np.float32)


def statistics(
    denoise: Callable[[Images, PerExample, Condition], Images],
    x0: Images,
    eps: Images,
    sigma: PerExample,
    cond: Condition,
    mean: Images,
    *,
    trace: bool = True,
) -> dict[str, PerExample]:
    """Of each example, sums over its pixels; see `curves`.

    Args:
      mean: image (1, h, w, c) that slopes are taken about.
      trace: measure it too, which costs D's gradient.
    """
    axes = (1, 2, 3)

    def inner(a: Images, b: Images) -> PerExample:
        return jnp.sum(a * b, axes)

    def at(xt: Images) -> Images:
        return denoise(xt, sigma, cond)

    noise = sigma[:, None, None, None] * eps
    found = {}
    if trace:
        # Rademacher signs of the noise: Hutchinson's estimate of the trace.
        signs = jnp.where(jnp.roll(eps, 1, axis=-2) > 0, 1.0, -1.0)
        denoised, backward = jax.vjp(at, x0 + noise)
        (moved,) = backward(signs)
        found["trace"] = sigma**2 * inner(signs, moved)
        called = at(noise)
    else:
        denoised, called = jax.lax.map(at, jnp.stack([x0 + noise, noise]))  # D is compiled once
    rest = x0 - denoised
    finite = jnp.isfinite(inner(rest, rest)) & jnp.isfinite(called).all(axes)
    found |= {
        "error": inner(rest, rest),
        "omega": jnp.sum(jnp.abs(rest), axes),
        "with_d": inner(x0 - mean, denoised - mean),
        "of_d": inner(denoised - mean, denoised - mean),
        "rest_with_d": inner(rest, denoised),
        "of_d_raw": inner(denoised, denoised),
        "bias": -jnp.sum(rest, axes),
        "contrast": called.std(axes),
    }
    found = {name: jnp.where(finite, value, 0) for name, value in found.items()}
    return found | {"finite": finite.astype(jnp.float32)}


def curves(
    sigma: Float[np.ndarray, "n"],
    sums: dict[str, Float[np.ndarray, "n b"]],
    x0: Images,
    *,
    predicts_noise: bool = False,
) -> Curves:
    """From `statistics` of every level, of the samples x0."""
    pixels = x0[0].size
    total = {name: np.asarray(value, np.float64).sum(1) for name, value in sums.items()}
    count = total["finite"]
    with np.errstate(divide="ignore", invalid="ignore"):
        return Curves(
            sigma=np.asarray(sigma, np.float64),
            error=total["error"] / count / pixels,
            omega=total["omega"] / count / pixels,
            slope=total["with_d"] / total["of_d"],
            orthogonality=total["rest_with_d"] / total["of_d_raw"],
            trace=total["trace"] / total["error"] if "trace" in total else None,
            contrast=total["contrast"] / count / x0.std(axis=(1, 2, 3)).mean(),
            finite=total["finite"] / len(x0),
            bias=total["bias"] / count / pixels,
            deviation=float(x0.std()),
            variance=float(x0.var(0).mean()),
            predicts_noise=predicts_noise,
        )


def propose(found: Curves) -> Proposal:
    """Settings that follow from the levels at which e rises.

    Between the levels the log odds of e / plateau are interpolated: a straight line in ln(sigma) of
    Gaussian data.
    """
    log, share = _rise(found)
    density = np.gradient(share, log)
    middle = (log[1:] + log[:-1]) / 2
    mass = np.diff(np.clip(share, *RANGE)) / (RANGE[1] - RANGE[0])
    mean = float(mass @ middle)
    std = float(np.sqrt(mass @ (middle - mean) ** 2))
    low, half, high = np.exp(np.interp((RANGE[0], 0.5, RANGE[1]), share, log))
    peaks, _ = find_peaks(density, prominence=SHOULDER * density.max())
    scale = found.plateau**0.5
    return Proposal(
        low=float(low),
        high=float(high),
        half=float(half),
        peaks=tuple(float(peak) for peak in np.exp(log[peaks])),
        mean=mean,
        std=std,
        scale=scale,
        sigma_init=SIGMA_INIT * scale,
    )


def rise_between(found: Curves, low: float, high: float) -> float:
    """The share of e's rise that lies between two levels."""
    log, share = _rise(found)
    first, last = np.interp(np.log([low, high]), log, np.clip(share, *RANGE))
    return float((last - first) / (RANGE[1] - RANGE[0]))


def to_dict(found: Curves) -> dict[str, Any]:
    """Plain values, for JSON; numbers that are not finite are None."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return [plain(number) for number in value.tolist()]
        return value if value is None or np.isfinite(value) else None

    return {name: plain(value) for name, value in dataclasses.asdict(found).items()}


def _rise(found: Curves) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """ln(sigma) on a fine grid, and e over its plateau there, rising from 0 to 1."""
    tiny = 1e-4
    share = np.clip(np.maximum.accumulate(found.share), tiny, 1 - tiny)
    odds = PchipInterpolator(np.log(found.sigma), np.log(share / (1 - share)))
    first, last = np.log(found.sigma[[0, -1]])
    log = np.linspace(first, last, int(FINE * (last - first) / np.log(10)))
    return log, 1 / (1 + np.exp(-odds(log)))


def faults(found: Curves) -> dict[str, str]:
    """What an exact denoiser's curves would not show, by the curve's name; empty: nothing."""
    if not found.is_finite:
        bad = found.sigma[found.finite < 1]
        return {"finite": f"D is not finite at sigma from {bad.min():.3g} to {bad.max():.3g}"}
    named = {}
    for name, (values, low, high, within) in _expected(found).items():
        off = _off(values, low, high, within)
        at = int(np.argmax(off))
        if off[at] > 0:
            expected = f"at most {high}" if np.isinf(low) else f"{low:.3g} to {high:.3g}"
            told = EXPLAINED[name]
            named[name] = (
                f"{told} is {values[at]:.3g} at sigma = {found.sigma[at]:.3g}; expected {expected}"
            )
    return named


def strain(found: Curves) -> tuple[float, float]:
    """How far the curves are from an exact D's, to compare calls of one network by.

    First what exceeds the ranges of `faults`, summed: 0 without any. Then the mean distance from
    slope 1 and of e above sigma^2.
    """
    if not found.is_finite:
        return np.inf, np.inf
    worst = (np.max(_off(*expected)) for expected in _expected(found).values())
    excess = float(sum(max(off, 0.0) for off in worst))
    inside = (found.share > 0.02) & (found.share < 0.9)
    above = np.maximum(found.error / found.sigma**2 - 1, 0)
    slope = np.abs(found.slope - 1)[inside].mean() if inside.any() else np.inf
    return excess, float(slope + above.mean())


def _expected(found: Curves) -> dict[str, tuple[np.ndarray, float, float, np.ndarray]]:
    """Of each curve its values, their range, and the levels at which an exact D keeps to it."""
    share, slope, most = found.share, SLOPE, 0.9
    if found.predicts_noise:
        slope, most = SLOPE_OF_NOISE, 0.75
    expected = {
        "error": (found.error / found.sigma**2, -np.inf, NOISE, share >= 0),
        "slope": (found.slope, 1 - slope, 1 + slope, (share > 0.02) & (share < most)),
    }
    if found.trace is not None:
        expected["trace"] = (found.trace, *TRACE, (share > 0.02) & (share < 0.5))
    return expected


def _off(values: np.ndarray, low: float, high: float, within: np.ndarray) -> np.ndarray:
    return np.where(within, np.maximum(values - high, low - values), -np.inf)


EXPLAINED = {
    "error": "e / sigma^2",
    "slope": "the slope <x0, D> / <D, D>",
    "trace": "sigma^2 tr(dD/dxt) / e",
}
