"""Noise levels: the laws that training draws sigma from, and the ladder that a sampler descends.

References: EDM, arXiv:2206.00364, eq. 5 and table 1; SiD, arXiv:2404.04057, appendix; SIM,
arXiv:2410.16794, appendix B. Called from simjax/build.py, which binds a law to its options.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from simjax.typing import Array, Float, Key, PerExample, typed


@typed
def lognormal(
    normal: PerExample,
    *,
    mean: float = -1.2,
    std: float = 1.2,
    low: float = 0.0,
    high: float = float("inf"),
) -> PerExample:
    """sigma = exp(mean + std normal), clipped to [low, high]; defaults are EDM's table 1."""
    return jnp.clip(jnp.exp(mean + std * normal), low, high)


@typed
def karras(
    t: PerExample, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> PerExample:
    """Karras et al.'s path from sigma_min (t = 0) to sigma_max (t = 1), EDM eq. 5.

    sigma = (sigma_max^(1/rho) + (1 - t) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
    """
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (top + (1 - t) * (bottom - top)) ** rho


@typed
def karras_ladder(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Array, "steps"]:
    """The sampler's noise levels, descending from sigma_max to sigma_min; zero is not included."""
    t = 1 - jnp.arange(steps, dtype=jnp.result_type(float)) / max(steps - 1, 1)
    return karras(t, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)


def sample_lognormal(key: Key, batch: int, **options: float) -> PerExample:
    """Draws sigma, shape (batch,); options are those of `lognormal`."""
    return lognormal(jax.random.normal(key, (batch,)), **options)


def sample_karras(key: Key, batch: int, *, t_max: float = 0.8, **options: float) -> PerExample:
    """Draws sigma with t ~ U(0, t_max); SiD writes t_max as tmax = 800, out of 1000."""
    return karras(jax.random.uniform(key, (batch,), maxval=t_max), **options)


SigmaLaw = Callable[..., PerExample]  # (key, batch, **options)
SIGMA_LAWS: dict[str, SigmaLaw] = {"lognormal": sample_lognormal, "karras": sample_karras}
