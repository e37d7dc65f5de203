"""Noise levels: training distributions of sigma, and sampler ladders.

A sigma law is a training distribution; a ladder is a sampler's descending list of noise levels.

References: EDM, arXiv:2206.00364, eq. 5 and table 1; SiD, arXiv:2404.04057, appendix; SIM,
arXiv:2410.16794, appendix B. Called from runs/setup.py, which binds the options of a law.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from simjax.diffusion import precondition
from simjax.errors import ConfigError
from simjax.typing import Array, Float, Key, PerExample, typed

FIRST = 8  # j0 of EDM table 1: index of the largest iDDPM level in use


@typed
def lognormal(
    normal: PerExample,
    *,
    mean: float = -1.2,
    std: float = 1.2,
    low: float = 0.0,
    high: float = float("inf"),
) -> PerExample:
    """Log-normal sigma = exp(mean + std normal), clipped to [low, high].

    Defaults from EDM table 1.
    """
    return jnp.clip(jnp.exp(mean + std * normal), low, high)


@typed
def karras(
    t: PerExample, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> PerExample:
    """Karras et al.'s schedule, sigma_min at t = 0 to sigma_max.

    sigma = (sigma_max^(1/rho) + (1 - t) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, EDM eq. 5

    >>> [round(s, 3) for s in karras(jnp.array([0.0, 0.5, 1.0])).tolist()]
    [0.002, 2.515, 80.0]
    """
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (top + (1 - t) * (bottom - top)) ** rho


@typed
def vp(t: PerExample, *, beta_d: float = 19.9, beta_min: float = 0.1) -> PerExample:
    """VP noise level at time t in [0, 1] (EDM table 1).

    sigma = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)
    """
    return jnp.sqrt(jnp.expm1(beta_d * t**2 / 2 + beta_min * t))


@typed
def vp_time(sigma: PerExample, *, beta_d: float = 19.9, beta_min: float = 0.1) -> PerExample:
    """The inverse of `vp`, accurate at small sigma.

    >>> t = jnp.array([0.5])
    >>> round(vp_time(vp(t)).item(), 6)
    0.5
    """
    log = jnp.log1p(sigma**2)
    return 2 * log / (beta_min + jnp.sqrt(beta_min**2 + 2 * beta_d * log))


@typed
def geometric(t: PerExample, *, sigma_min: float = 0.02, sigma_max: float = 100.0) -> PerExample:
    """Geometric interpolation from sigma_min to sigma_max.

    t = 0 gives sigma_min, t = 1 sigma_max. Defaults are VE's (EDM table 1).
    """
    return sigma_min * (sigma_max / sigma_min) ** t


@typed
def karras_ladder(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Array, "steps"]:
    """EDM's sampling levels from sigma_max down to sigma_min, without the final zero.

    >>> [round(s, 3) for s in karras_ladder(3).tolist()]
    [80.0, 2.515, 0.002]
    """
    return karras(_descending(steps), sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)


@typed
def vp_ladder(
    steps: int, *, t_min: float = 1e-3, beta_d: float = 19.9, beta_min: float = 0.1
) -> Float[Array, "steps"]:
    """VP levels at times from 1 down to t_min in equal steps.

    t_min is eps_s of EDM table 1.
    """
    return vp(t_min + (1 - t_min) * _descending(steps), beta_d=beta_d, beta_min=beta_min)


@typed
def ve_ladder(
    steps: int, *, sigma_min: float = 0.02, sigma_max: float = 100.0
) -> Float[Array, "steps"]:
    """VE levels, geometric from sigma_max to sigma_min (EDM table 1)."""
    return geometric(_descending(steps), sigma_min=sigma_min, sigma_max=sigma_max)


@typed
def iddpm_ladder(steps: int, *, first: int = FIRST) -> Float[Array, "steps"]:
    """iDDPM levels u_j at equally spaced j.

    j runs from first (j0 of EDM table 1) to M - 1, rounded.
    """
    levels = precondition.iddpm_levels()[first:-1]
    index = np.floor(np.linspace(0, len(levels) - 1, steps) + 0.5).astype(int)
    return jnp.asarray(levels[index], jnp.result_type(float))


@typed
def flow_ladder(steps: int, *, shift: float = 1.0, u_max: float = 0.999) -> Float[Array, "steps"]:
    """Flow levels at equally spaced times u from u_max to 0.

    sigma = shift u / (1 - u); the final u = 0 is not included.

    Args:
      shift: time shift u' = shift u / (1 + (shift - 1) u) (SD3, SANA: 3).
      u_max: first time, below 1 (sigma is infinite at 1); 1 - 1e-6 approximates SiT's start at 1.

    Raises:
      ConfigError: the levels overflow or coincide in float32.

    >>> [round(s, 3) for s in flow_ladder(4, u_max=0.8).tolist()]
    [4.0, 1.5, 0.667, 0.25]
    """
    return _at_times(u_max * (1 - np.arange(steps) / steps), shift)


@typed
def flow_sde_ladder(
    steps: int, *, shift: float = 1.0, u_max: float = 0.999, u_last: float = 0.04
) -> Float[Array, "steps"]:
    """`flow_ladder` with a last step from u_last to 0.

    Args:
      u_last: 0.04 is the last step of SiT's SDE (arXiv:2401.08740, official sampler).

    Raises:
      ConfigError: as `flow_ladder`.
    """
    return _at_times(np.linspace(u_max, u_last, steps), shift)


def _at_times(u: np.ndarray, shift: float) -> Float[Array, "steps"]:
    """Levels shift u / (1 - u); raises unless finite and descending."""
    with np.errstate(divide="ignore", over="ignore"):
        levels = (shift * u / (1 - u)).astype(np.float32)
    if not (shift > 0 and np.isfinite(levels).all() and (np.diff(levels, append=0) < 0).all()):
        raise ConfigError(
            f"teacher.sampler: {len(u)} steps with shift = {shift} from u_max = {u[0]} to "
            f"{u[-1]:.3g} do not give descending noise levels; expected shift > 0 and "
            "0 < u_max < 1."
        )
    return jnp.asarray(levels, jnp.result_type(float))


@typed
def ddpm_linear_ladder(steps: int) -> Float[Array, "steps"]:
    """DDPM levels at equally spaced time steps, descending.

    The first `steps` of steps + 1 time steps from M - 1 to 0 ("linspace" spacing), as in
    DPM-Solver++ and DDIM for DiT and PixArt-alpha.
    """
    levels = precondition.ddpm_linear_levels()[:-1]
    time = np.round(np.linspace(0, len(levels) - 1, steps + 1)).astype(int)[:0:-1]
    return jnp.asarray(levels[len(levels) - 1 - time], jnp.result_type(float))


Ladder = Callable[..., Float[Array, "steps"]]  # (steps, **options)
LADDERS: dict[str, Ladder] = {
    "karras": karras_ladder,
    "vp": vp_ladder,
    "ve": ve_ladder,
    "iddpm": iddpm_ladder,
    "ddpm_linear": ddpm_linear_ladder,
    "flow": flow_ladder,
    "flow_sde": flow_sde_ladder,
}


def generator_levels(steps: int, *, sigma_init: float, shift: float = 1.0) -> tuple[float, ...]:
    """Noise levels of a multistep generator, equally spaced in flow time.

    u_k = u_1 (1 - (k - 1) / steps) with u_1 = sigma_init / (1 + sigma_init), and
    sigma_k = shift u_k / (1 - u_k). SiD-DiT (arXiv:2509.25127) uses this rule with u_1 = 0.999.

    >>> [round(sigma, 4) for sigma in generator_levels(4, sigma_init=2.5)]
    [2.5, 1.1538, 0.5556, 0.2174]
    """
    first = sigma_init / (1 + sigma_init)
    times = [first * (1 - k / steps) for k in range(1, steps)]
    return (shift * sigma_init, *(shift * u / (1 - u) for u in times))


def _descending(steps: int) -> Float[Array, "steps"]:
    return 1 - jnp.arange(steps, dtype=jnp.result_type(float)) / max(steps - 1, 1)


def sample_lognormal(
    key: Key,
    batch: int,
    *,
    mean: float = -1.2,
    std: float = 1.2,
    low: float = 0.0,
    high: float = float("inf"),
    shift: float = 1.0,
) -> PerExample:
    """Draws log-normal sigma, shape (batch,); options as in `lognormal`.

    A flow's times u = sigma / (1 + sigma) are then logit-normal with the same mean and std.

    Args:
      shift: time shift of a flow, as in `flow_ladder`; adds ln(shift) to the mean.
    """
    normal = jax.random.normal(key, (batch,))
    mean = mean if shift == 1 else mean + math.log(shift)
    return lognormal(normal, mean=mean, std=std, low=low, high=high)


def sample_uniform_time(
    key: Key, batch: int, *, u_min: float = 1e-3, u_max: float = 0.999, shift: float = 1.0
) -> PerExample:
    """Draws sigma of uniform flow times, SiT's training distribution.

    sigma = shift u / (1 - u) with u ~ U(u_min, u_max). The bounds are our choice; at u = 0 and 1
    sigma is 0 and infinite.
    """
    u = jax.random.uniform(key, (batch,), minval=u_min, maxval=u_max)
    return shift * u / (1 - u)


def sample_karras(
    key: Key,
    batch: int,
    *,
    t_max: float = 0.8,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> PerExample:
    """Draws `karras`(t) with t ~ U(0, t_max).

    SiD's tmax = 800 (of 1000) is t_max = 0.8.
    """
    t = jax.random.uniform(key, (batch,), maxval=t_max)
    return karras(t, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)


def sample_vp(key: Key, batch: int, *, t_min: float = 1e-5, **options: float) -> PerExample:
    """Draws `vp`(t) with t ~ U(t_min, 1) (training, EDM table 1)."""
    return vp(jax.random.uniform(key, (batch,), minval=t_min), **options)


def sample_ve(key: Key, batch: int, **options: float) -> PerExample:
    """Draws log-uniform sigma, VE's training distribution (EDM table 1)."""
    return geometric(jax.random.uniform(key, (batch,)), **options)


def sample_iddpm(key: Key, batch: int) -> PerExample:
    """Draws iDDPM levels u_j with uniform j (training, EDM table 1).

    j runs from FIRST to M - 1.
    """
    return _of_table(key, batch, precondition.iddpm_levels()[FIRST:-1])


def sample_ddpm_linear(key: Key, batch: int) -> PerExample:
    """Draws levels of uniform time steps (training of DiT and PixArt-alpha)."""
    return _of_table(key, batch, precondition.ddpm_linear_levels()[:-1])


def _of_table(key: Key, batch: int, levels: np.ndarray) -> PerExample:
    index = jax.random.randint(key, (batch,), 0, len(levels))
    return jnp.asarray(levels, jnp.result_type(float))[index]


# (key, batch, *, options) -> sigma (batch,); the options become fields of config.Sigma.
SigmaLaw = Callable[..., PerExample]
SIGMA_LAWS: dict[str, SigmaLaw] = {
    "lognormal": sample_lognormal,
    "karras": sample_karras,
    "vp": sample_vp,
    "ve": sample_ve,
    "iddpm": sample_iddpm,
    "ddpm_linear": sample_ddpm_linear,
    "uniform_time": sample_uniform_time,
}
