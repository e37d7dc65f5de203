"""Preconditioning: turns each teacher family into a denoiser in sigma-space.

    D(xt; sigma) = c_skip xt + c_out F(c_in xt, c_noise)        with xt = x0 + sigma eps

Functions sigma -> Coefficients, registered by name in families.py; called from
networks/denoiser.py.

References: EDM, arXiv:2206.00364, table 1; DiT, arXiv:2212.09748; PixArt-alpha, arXiv:2310.00426.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from simjax.typing import PerExample, typed

STEPS = 1000  # M, the training time steps of every DDPM-style teacher (EDM table 1)


class Coefficients(NamedTuple):
    """c_skip, c_out and c_in scale images; c_noise conditions the network on sigma."""

    c_skip: PerExample
    c_out: PerExample
    c_in: PerExample
    c_noise: PerExample


Precondition = Callable[[PerExample], Coefficients]


@typed
def edm(sigma: PerExample, *, sigma_data: float = 0.5) -> Coefficients:
    """EDM's preconditioning (table 1, last column).

    Args:
      sigma_data: standard deviation of the data, data units.

    >>> c_skip, c_out, c_in, c_noise = edm(jnp.array([0.5]))
    >>> c_skip.item(), round(c_in.item(), 4)
    (0.5, 1.4142)
    """
    total = sigma**2 + sigma_data**2
    return Coefficients(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / jnp.sqrt(total),
        c_in=1 / jnp.sqrt(total),
        c_noise=jnp.log(sigma) / 4,
    )


@typed
def vp(sigma: PerExample, *, beta_d: float = 19.9, beta_min: float = 0.1) -> Coefficients:
    """VP of the EDM paper: noise prediction.

    c_noise = (M - 1) t(sigma), with t(sigma) the inverse of schedule.vp.
    """
    # log(1 + sigma^2) instead of log1p: the released networks were trained with this rounding.
    time = (jnp.sqrt(beta_min**2 + 2 * beta_d * jnp.log(1 + sigma**2)) - beta_min) / beta_d
    return _noise_prediction(sigma, (STEPS - 1) * time)


@typed
def ve(sigma: PerExample) -> Coefficients:
    """VE of the EDM paper: F predicts (x0 - xt) / sigma.

    c_noise = ln(sigma / 2)
    """
    one = jnp.ones_like(sigma)
    return Coefficients(c_skip=one, c_out=sigma, c_in=one, c_noise=jnp.log(0.5 * sigma))


@typed
def iddpm(sigma: PerExample) -> Coefficients:
    """iDDPM: noise prediction; c_noise is the nearest cosine-schedule time step."""
    return _noise_prediction(sigma, _timestep(sigma, iddpm_levels()))


@typed
def ddpm_linear(sigma: PerExample) -> Coefficients:
    """DDPM with linear beta from 1e-4 to 0.02 (DiT, PixArt-alpha): noise prediction.

    Only the time step is rounded to the table, not sigma.

    >>> ddpm_linear(jnp.array([2.5])).c_noise.tolist()
    [440.0]
    """
    return _noise_prediction(sigma, _timestep(sigma, ddpm_linear_levels()))


@typed
def flow(sigma: PerExample, *, time_scale: float = 1.0) -> Coefficients:
    """Flow matching: F predicts the velocity eps - x0.

    The network input is (1 - u) x0 + u eps with u = sigma / (1 + sigma); c_noise = time_scale * u.
    D = xt / (1 + sigma) - u F: both terms stay of order 1 at large sigma.

    >>> flow(jnp.array([1.0]), time_scale=1000.0).c_noise.tolist()
    [500.0]
    """
    keep = 1 / (1 + sigma)
    u = sigma * keep
    return Coefficients(c_skip=keep, c_out=-u, c_in=keep, c_noise=time_scale * u)


@typed
def sit(sigma: PerExample) -> Coefficients:
    """SiT with the linear path: F predicts x0 - eps.

    The network input is t x0 + (1 - t) eps; c_noise = t, from 0 (noise) to 1 (data).
    """
    t = 1 / (1 + sigma)
    return Coefficients(c_skip=t, c_out=sigma * t, c_in=t, c_noise=t)


@typed
def sit_gvp(sigma: PerExample) -> Coefficients:
    """SiT with the GVP path: F predicts its time derivative.

    The network input, the path itself, is sin(pi t / 2) x0 + cos(pi t / 2) eps; c_noise = t.
    """
    sine = 1 / jnp.sqrt(1 + sigma**2)  # sigma = cot(pi t / 2)
    return Coefficients(
        c_skip=sine**2,
        c_out=2 / np.pi * sigma * sine,
        c_in=sine,
        c_noise=2 / np.pi * jnp.arctan2(jnp.ones_like(sigma), sigma),
    )


@functools.cache
def iddpm_levels() -> np.ndarray:
    """iDDPM noise levels u_j, shape (M + 1,).

    They descend to u_M = 0: EDM table 1, which also gives C1 and C2. Computed in float32 like the
    tables of the released networks; the precision changes the smallest levels.
    """
    c1, c2 = 0.001, 0.008
    angle = 0.5 * np.pi * np.arange(STEPS + 1) / STEPS / (c2 + 1)
    alpha_bar = np.sin(angle.astype(np.float32)) ** 2
    return _levels(np.maximum(alpha_bar[:-1] / alpha_bar[1:], np.float32(c1)))


@functools.cache
def ddpm_linear_levels() -> np.ndarray:
    """DDPM noise levels u_j for linear beta, shape (M + 1,).

    They descend from 156.6155 to 0.0100, then u_M = 0.
    """
    beta = 0.02 + (1e-4 - 0.02) * np.arange(1, STEPS + 1) / STEPS
    return _levels(np.maximum(1 - beta, 0.001))


def _levels(ratio: np.ndarray) -> np.ndarray:
    """Noise levels by recursion, in float32 like the published tables.

    u_{j-1} = sqrt((u_j^2 + 1) / ratio_j - 1)
    """
    levels = np.zeros(STEPS + 1, np.float32)
    for j in range(STEPS, 0, -1):
        levels[j - 1] = np.sqrt((levels[j] ** 2 + 1) / np.float32(ratio[j - 1]) - 1)
    return levels


def _timestep(sigma: PerExample, levels: np.ndarray) -> PerExample:
    nearest = jnp.argmin(jnp.abs(sigma[:, None] - levels), axis=1)
    return (STEPS - 1 - nearest).astype(sigma.dtype)


def _noise_prediction(sigma: PerExample, c_noise: PerExample) -> Coefficients:
    return Coefficients(
        c_skip=jnp.ones_like(sigma),
        c_out=-sigma,
        c_in=1 / jnp.sqrt(sigma**2 + 1),
        c_noise=c_noise,
    )
