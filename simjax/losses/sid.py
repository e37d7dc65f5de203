"""Score identity Distillation: the generator's loss. Arrays in, arrays out.

Reference: SiD, arXiv:2404.04057, eq. 23 and algorithm 1. Called from simjax/train/step.py.
"""

import jax
import jax.numpy as jnp

from simjax.typing import Images, PerExample, typed


@typed
def generator_loss(
    x0: Images, d_teacher: Images, d_fake: Images, weight: PerExample, *, alpha: float = 1.2
) -> PerExample:
    """SiD's loss, normalised per example by omega (stop-gradient).

        L = w < D_teacher - D_fake, (D_teacher - x0) - alpha (D_teacher - D_fake) > / omega
        omega = max(mean |x0 - D_teacher|, 1e-5)

    alpha = 1 equals SIM with squared L2 and weight w / (2 omega). The gradient flows through x0 and
    through xt, as in simjax/losses/sim.py.

    Args:
      x0: generator output, data units.
      d_teacher, d_fake: D(xt; sigma) of each network, data units.
      weight: w(sigma), dimensionless; 1 in the official code.
      alpha: 1.0 or 1.2 in the paper.

    >>> x0 = jnp.zeros((1, 1, 1, 1))
    >>> generator_loss(x0, x0 + 1.0, x0 + 0.5, jnp.ones(1), alpha=1.0).tolist()
    [0.25]
    """
    floor = 1e-5  # official code
    omega = jnp.maximum(jnp.mean(jnp.abs(x0 - d_teacher), axis=(1, 2, 3)), floor)
    gap = d_teacher - d_fake
    product = jnp.sum(gap * ((d_teacher - x0) - alpha * gap), axis=(1, 2, 3))
    return weight * product / jax.lax.stop_gradient(omega)
