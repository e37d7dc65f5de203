"""Classifier-free guidance (CFG) and condition dropout.

Reference: arXiv:2207.12598, in the form that DiT and PixArt-alpha use.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simjax.typing import Array, Condition, Denoise, Images, Key, Params, PerExample

Null = Callable[[Condition], Condition]


def guided(denoise: Denoise, scale: float, null: Null, channels: int | None = None) -> Denoise:
    """The guided denoiser D_w = D(null) + w (D(cond) - D(null)).

    Both terms are computed in one call on a batch of twice the size.

    Args:
      scale: w, dimensionless, may be negative. w = 1 returns `denoise` itself, w = 0 the
        unconditional denoiser (all channels); neither doubles the batch.
      null: maps a condition to the null condition (networks/conditions.py).
      channels: guide the first `channels` channels only; the others stay D(cond). None: all.

    >>> def denoise(params, xt, sigma, cond):
    ...     return xt * 0 + cond[:, :, None, None]
    >>> denoise_guided = guided(denoise, 1.5, null=jnp.zeros_like)
    >>> xt, label = jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1))
    >>> denoise_guided(None, xt, jnp.ones(1), label).item()
    1.5
    """
    if scale == 1:
        return denoise

    def unconditional(params, xt, sigma, cond, **options):
        return denoise(params, xt, sigma, null(cond), **options)

    def denoise_guided(
        params: Params, xt: Images, sigma: PerExample, cond: Condition, **options: Any
    ) -> Images:
        """Per-example options (dropout keys, augmentation labels) are repeated for each pair."""
        pairs = jax.tree.map(_paired, (xt, sigma, cond), (xt, sigma, null(cond)))
        options = jax.tree.map(lambda leaf: _paired(leaf, leaf), options)
        both = denoise(params, *pairs, **options).reshape(len(xt), 2, *xt.shape[1:])
        images = both[:, 1] + scale * (both[:, 0] - both[:, 1])
        if channels is None:
            return images
        return jnp.concatenate([images[..., :channels], both[:, 0, ..., channels:]], axis=-1)

    return denoise_guided if scale else unconditional


def evaluations(scale: float) -> int:
    """NFE of one call of the guided denoiser.

    >>> [evaluations(scale) for scale in (1.0, 0.0, 4.5)]
    [1, 1, 2]
    """
    return 1 if scale in (0, 1) else 2


def dropped(key: Key, cond: Condition, null: Null, probability: float) -> Condition:
    """Replaces conditions by the null condition with this probability, per example."""
    none = null(cond)
    drop = jax.random.bernoulli(key, probability, (len(jax.tree.leaves(cond)[0]),))

    def choose(some: Array, nothing: Array) -> Array:
        return jnp.where(drop.reshape(len(drop), *[1] * (some.ndim - 1)), nothing, some)

    return jax.tree.map(choose, cond, none)


def _paired(first: Array, second: Array) -> Array:
    """Interleaves two batches, so that a pair stays on one device."""
    return jnp.stack([first, second], axis=1).reshape(2 * len(first), *first.shape[1:])
