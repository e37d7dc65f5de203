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
    """Loss whose gradient is that of the score divergence.

    SIM eq. 3.7 and Theorem 3.1. With xt = x0 + sigma * eps and y = D_fake(xt) - D_teacher(xt), in
    denoiser units (eq. B.13):

        L = -w(sigma) < d'(y), D_fake(xt) - x0 >

    Divide the three images by sigma^2 (`score_units`) for the form in score units (eq. 3.7).
    Differentiate with respect to the generator's parameters only: the gradient flows through x0,
    and through xt inside both denoisers, but not into the parameters of the denoisers. The value
    of the loss is not meaningful and hovers about zero.

    Args:
      x0: generator output, data units.
      d_teacher, d_fake: D(xt; sigma) of each network, data units.
      weight: w(sigma), dimensionless.
      distance: d, mapping one example's y (h, w, c) to a scalar; d' is taken by jax.grad.

    Raises:
      TypeCheckError: at trace time, e.g. for weight of shape (b, 1, 1, 1).

    >>> from simjax.losses import distances
    >>> x0 = jnp.zeros((1, 1, 1, 1))
    >>> d_teacher, d_fake = x0 + 1.0, x0 + 0.5
    >>> generator_loss(x0, d_teacher, d_fake, jnp.ones(1), distance=distances.l2_squared).tolist()
    [0.5]
    """
    grad_d = jax.vmap(jax.grad(distance))(d_fake - d_teacher)
    return -weight * jnp.sum(grad_d * (d_fake - x0), axis=(1, 2, 3))


@typed
def score_units(sigma: PerExample, *images: Images) -> tuple[Images, ...]:
    """Images over sigma^2: turns denoiser differences into score differences (Tweedie).

    >>> (scaled,) = score_units(jnp.array([0.5]), jnp.ones((1, 1, 1, 1)))
    >>> scaled.ravel().tolist()
    [4.0]
    """
    return tuple(image / sigma[:, None, None, None] ** 2 for image in images)
