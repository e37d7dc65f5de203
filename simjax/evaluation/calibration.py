"""Data-free checks of a denoiser: error curves over noise levels.

For x0 drawn by the teacher's own sampler and xt = x0 + sigma eps, an exact denoiser
D(xt; sigma) = E[x0 | xt] satisfies at every sigma

    e(sigma) = E (x0 - D)^2 <= sigma^2,  E <x0, D> = E |D|^2,  e = sigma^2 E tr(dD / dxt) / pixels.

A denoiser that is called with the wrong convention violates them. e rises from 0 to the variance of
the data; the levels at which it rises are those where score distillation has something to learn.

The third equation is the second-order Tweedie formula (posterior covariance); the others are
properties of conditional means. Called from simjax/runs/probe/.
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

RANGE = (0.02, 0.98)  # e as a fraction of its plateau: the levels that matter; our choice
SIGMA_INIT = 5.0  # in standard deviations of the data; SIM: 2.5 where they are 0.5
FINE = 400  # points per decade of sigma in the interpolated curve; our choice
SHOULDER = 0.1  # smallest prominence of a peak, relative to the highest; our choice
# Tolerances for a trained denoiser; our choice. Small trained ones reach 0.06, 0.78 to 1.2, 1.28.
SLOPE, TRACE, NOISE = 0.1, (0.7, 1.4), 1.5
SLOPE_OF_NOISE = 0.2  # SLOPE of eps-prediction networks; small trained ones: 0.86 to 1.12


@dataclasses.dataclass(frozen=True)
class Curves:
    """Error curves of a denoiser over n noise levels.

    Data units; means over samples and pixels.

    Attributes:
      sigma: ascending.
      error: e = mean (x0 - D)^2.
      omega: mean |x0 - D|, the normaliser of SiD's loss.
      slope: <x0, D> / <D, D>, both minus the mean image; 1 for an exact denoiser.
      orthogonality: <x0 - D, D> / <D, D>; 0 for an exact one.
      trace: sigma^2 tr(dD / dxt) / (pixels e); 1 for an exact one. None: not measured.
      contrast: std of D(sigma eps; sigma), a one-step sample, over that of the samples.
      finite: fraction of examples whose D is finite.
      bias: mean of D - x0.
      deviation: standard deviation of the samples, over all pixels.
      variance: variance of the samples about their mean image.
      predicts_noise: the network predicts eps, so errors of D grow with sigma.
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
        """e at the highest sigma: variance of the data given the condition.

        For eps-prediction, whose errors grow with sigma, at most the variance of the samples.
        """
        highest = float(self.error[-1])
        return min(highest, self.variance) if self.predicts_noise else highest

    @property
    def share(self) -> Float[np.ndarray, "n"]:
        """e / plateau, from 0 to 1."""
        return self.error / self.plateau

    @property
    def is_finite(self) -> bool:
        """Whether D is finite at every level and for every example."""
        return bool(np.all(self.finite == 1))


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Proposed settings for a distillation, in data units.

    Attributes:
      low, high: sigma at which e is 2 % and 98 % of its plateau.
      half: sigma at which e is 50 % of its plateau.
      peaks: sigma at the local maxima of de / d ln(sigma), ascending.
      mean, std: of ln(sigma) under the density proportional to de / d ln(sigma) in that range.
      scale: standard deviation of the data given the condition.
      sigma_init: noise level at which the one-step generator calls the network.
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
    """Geometric grid of noise levels for data of this standard deviation.

    For EDM's 0.5 it is EDM's range, 0.002 to 80.

    >>> levels(0.5, 3).round(3).tolist()
    [0.002, 0.4, 80.0]
    """
    return np.geomspace(0.004, 160, count) * deviation


def matched_noise(x0: Float[np.ndarray, "b h w c"], seed: int) -> Float[np.ndarray, "b h w c"]:
    """Gaussian noise with the moments of infinitely many draws.

    Its mean square is exactly 1 and its inner product with x0 - mean(x0) exactly 0, which removes
    sampling error. All levels share the noise, so the curves are smooth.

    >>> x0 = np.linspace(-1, 1, 8).reshape(2, 2, 2, 1)
    >>> eps = matched_noise(x0, seed=0)
    >>> bool(np.allclose([np.mean(eps**2), np.sum(eps * (x0 - x0.mean(0)))], [1, 0], atol=1e-6))
    True
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
    """Per-example sums over pixels at one noise level, for `curves`.

    Args:
      mean: image (1, h, w, c), subtracted before slopes are computed.
      trace: whether to measure the trace, which needs the gradient of D.
    """
    axes = (1, 2, 3)

    def inner(a: Images, b: Images) -> PerExample:
        return jnp.sum(a * b, axes)

    def at(xt: Images) -> Images:
        return denoise(xt, sigma, cond)

    noise = sigma[:, None, None, None] * eps
    found = {}
    if trace:
        # Hutchinson's trace estimator; Rademacher probes from the signs of the shifted noise.
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
    """Averages the sums of `statistics`, stacked over levels, of the samples x0."""
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
    """Proposes settings from the levels at which e rises.

    Between levels, the log odds of e / plateau are interpolated: for Gaussian data they are linear
    in ln(sigma).
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
    """Fraction of the rise of e that lies between two noise levels."""
    log, share = _rise(found)
    first, last = np.interp(np.log([low, high]), log, np.clip(share, *RANGE))
    return float((last - first) / (RANGE[1] - RANGE[0]))


def to_dict(found: Curves) -> dict[str, Any]:
    """Curves as JSON values; NaN and infinity become None."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return [plain(number) for number in value.tolist()]
        return value if value is None or np.isfinite(value) else None

    return {name: plain(value) for name, value in dataclasses.asdict(found).items()}


def _rise(found: Curves) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """ln(sigma) on a fine grid, and e / plateau there, made monotone."""
    tiny = 1e-4
    share = np.clip(np.maximum.accumulate(found.share), tiny, 1 - tiny)
    odds = PchipInterpolator(np.log(found.sigma), np.log(share / (1 - share)))
    first, last = np.log(found.sigma[[0, -1]])
    log = np.linspace(first, last, int(FINE * (last - first) / np.log(10)))
    return log, 1 / (1 + np.exp(-odds(log)))


def faults(found: Curves) -> dict[str, str]:
    """Violations of an exact denoiser's equations, by curve; empty if none."""
    if not found.is_finite:
        bad = found.sigma[found.finite < 1]
        return {"finite": f"D is not finite at sigma from {bad.min():.3g} to {bad.max():.3g}"}
    named = {}
    for name, (values, low, high, within) in _expected(found).items():
        off = _off(values, low, high, within)
        at = int(np.argmax(off))
        if off[at] > 0:
            expected = f"at most {high}" if np.isinf(low) else f"{low:.3g} to {high:.3g}"
            label = EXPLAINED[name]
            named[name] = (
                f"{label} is {values[at]:.3g} at sigma = {found.sigma[at]:.3g}; expected {expected}"
            )
    return named


def strain(found: Curves) -> tuple[float, float]:
    """Distance of the curves from an exact denoiser's, to rank conventions.

    First the sum of what exceeds the ranges of `faults`, 0 if nothing does; then, as tie-breaker,
    the mean of |slope - 1| plus that of max(e / sigma^2 - 1, 0).
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
    """Each curve's values, allowed range, and the levels where it applies."""
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
