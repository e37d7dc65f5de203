"""Score Implicit Matching: the generator's loss. Arrays in, arrays out.

Reference: SIM, arXiv:2410.16794. Called from simjax/train/step.py.
"""

import jax
import jax.numpy as jnp

from simjax.losses.distances import Distance
from simjax.typing import Images, PerExample, typed


@typed  # jaxtyping + beartype: checked while tracing, free in a jitted step
def generator_loss(
    x0: Images, d_teacher: Images, d_fake: Images, weight: PerExample, *, distance: Distance
) -> PerExample:
    """Loss whose gradient is that of the score divergence (SIM eq. 3.7, Theorem 3.1).

    With xt = x0 + sigma * eps and y = D_fake(xt) - D_teacher(xt), in denoiser units (eq. B.13):

        L = -w(sigma) < d'(y), D_fake(xt) - x0 >

    Divide the three images by sigma^2 (`score_units`) for the form in score units (eq. 3.7).
    Differentiate with respect to the generator only: its gradient flows through x0, and through
    xt inside both denoisers, but never into their parameters.

    Args:
      x0: generator output, data units.
      d_teacher, d_fake: D(xt; sigma) of each network, data units.
      weight: w(sigma), dimensionless.
      distance: d, mapping one example's y (h, w, c) to a scalar; d' is taken by jax.grad.

    Raises:
      TypeCheckError: at trace time, e.g. for weight of shape (b, 1, 1, 1).
    """
    grad_d = jax.vmap(jax.grad(distance))(d_fake - d_teacher)
    return -weight * jnp.sum(grad_d * (d_fake - x0), axis=(1, 2, 3))


@typed
def score_units(sigma: PerExample, *images: Images) -> tuple[Images, ...]:
    """Images over sigma^2: differences of denoisers become differences of scores (Tweedie)."""
    return tuple(image / sigma[:, None, None, None] ** 2 for image in images)
