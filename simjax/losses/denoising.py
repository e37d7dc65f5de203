"""Denoising score matching: trains teachers on data and fake scores on generated samples.

Reference: EDM, arXiv:2206.00364, eq. 8. Called from simjax/train/step.py and teacher_step.py.
"""

import jax.numpy as jnp

from simjax.typing import Images, PerExample, typed


@typed
def denoising_loss(x0: Images, denoised: Images, weight: PerExample) -> PerExample:
    """lambda(sigma) ||D(x0 + sigma eps; sigma) - x0||^2, summed over one example's elements."""
    return weight * jnp.sum((denoised - x0) ** 2, axis=(1, 2, 3))
