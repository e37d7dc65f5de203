"""Denoising score matching, the loss of teachers and fake scores.

Reference: EDM, arXiv:2206.00364, eq. 8. Called from simjax/train/step.py and teacher_step.py.
"""

import jax.numpy as jnp

from simjax.typing import Images, PerExample, typed


@typed
def denoising_loss(x0: Images, denoised: Images, weight: PerExample) -> PerExample:
    """lambda(sigma) ||D(x0 + sigma eps; sigma) - x0||^2, summed per example.

    >>> x0 = jnp.zeros((1, 2, 2, 1))
    >>> denoising_loss(x0, x0 + 1, jnp.array([0.5])).tolist()  # four pixels, each off by 1
    [2.0]
    """
    return weight * jnp.sum((denoised - x0) ** 2, axis=(1, 2, 3))
