"""Diff-Instruct: the gradient of the integral KL divergence, as a loss.

Arrays in, arrays out.

Reference: Diff-Instruct, arXiv:2305.18455. Called from simjax/train/step.py.
"""

import jax
import jax.numpy as jnp

from simjax.typing import Images, PerExample, typed


@typed
def generator_loss(x0: Images, d_teacher: Images, d_fake: Images, weight: PerExample) -> PerExample:
    """Loss whose gradient flows through x0 alone, not through the denoisers.

        L = w(sigma) < stop_gradient(D_fake - D_teacher), x0 >

    Args:
      x0: generator output, data units.
      d_teacher, d_fake: D(xt; sigma) of each network, data units.
      weight: w(sigma), dimensionless; 1 in the official code.
    """
    gap = jax.lax.stop_gradient(d_fake - d_teacher)
    return weight * jnp.sum(gap * x0, axis=(1, 2, 3))
