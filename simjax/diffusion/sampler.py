"""EDM's second-order sampler, deterministic or with churn, for any denoiser.

Reference: EDM, arXiv:2206.00364, algorithms 1 and 2. Used by evaluation and sample grids.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from simjax.typing import Array, Float, Images, Int, typed


class Churn(NamedTuple):
    """Algorithm 2's noise: S_churn, and the sigma range and inflation in which it acts."""

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    inflation: float = 1.0


@typed
def heun(
    denoise: Callable[..., Images],
    z: Images,
    sigmas: Float[Array, "steps"],
    *,
    alpha: float = 1.0,
    churn: Churn = Churn(),
    draw_noise: Callable[[Int[Array, ""]], Images] | None = None,
) -> Images:
    """Integrates the probability-flow ODE from sigmas[0] to 0 in 2 * steps - 1 evaluations.

    Args:
      denoise: (xt, sigma (b,)) -> D(xt; sigma), data units.
      z: N(0, I); the start is sigmas[0] * z.
      sigmas: descending positive noise levels; a last step to sigma = 0 is implied.
      alpha: where the second evaluation lies within a step; 1 is Heun, 1/2 the midpoint rule.
      churn: algorithm 2's stochasticity; amount 0 is deterministic.
      draw_noise: step index -> N(0, I) shaped like z; needed when churn.amount > 0.
    """
    if churn.amount and draw_noise is None:
        raise ValueError("heun: churn.amount > 0 needs draw_noise.")
    steps = sigmas.shape[0]
    batch = z.shape[0]

    def slope(xt: Images, sigma: Array) -> Images:
        return (xt - denoise(xt, jnp.full((batch,), sigma, xt.dtype))) / sigma

    def raise_noise(xt: Images, sigma: Array, index: Array) -> tuple[Images, Array]:
        if not churn.amount:
            return xt, sigma
        gamma = min(churn.amount / steps, math.sqrt(2) - 1)
        factor = jnp.where((churn.low <= sigma) & (sigma <= churn.high), 1 + gamma, 1)
        extra = sigma * jnp.sqrt(factor**2 - 1) * churn.inflation
        return xt + extra * draw_noise(index), sigma * factor

    def step(xt: Images, levels: tuple[Array, Array, Array]) -> tuple[Images, None]:
        sigma, sigma_next, index = levels
        xt, sigma = raise_noise(xt, sigma, index)
        width = sigma_next - sigma
        first = slope(xt, sigma)
        second = slope(xt + alpha * width * first, sigma + alpha * width)
        mean = (1 - 1 / (2 * alpha)) * first + 1 / (2 * alpha) * second
        return xt + width * mean, None

    index = jnp.arange(steps)
    xt, _ = jax.lax.scan(step, sigmas[0] * z, (sigmas[:-1], sigmas[1:], index[:-1]))
    xt, sigma = raise_noise(xt, sigmas[-1], index[-1])
    return xt - sigma * slope(xt, sigma)  # Euler to sigma = 0, where no slope exists
