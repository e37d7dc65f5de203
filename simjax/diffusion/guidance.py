"""Classifier-free guidance: a denoiser made of a conditional one and of itself without condition.

Reference: arXiv:2207.12598, in the form that DiT and PixArt-alpha use.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simjax.typing import Array, Condition, Denoise, Images, Key, Params, PerExample

Null = Callable[[Condition], Condition]


def guided(denoise: Denoise, scale: float, null: Null, channels: int | None = None) -> Denoise:
    """D_w = D(none) + w (D(cond) - D(none)): one evaluation of twice as many examples.

    Args:
      scale: w, dimensionless; may be negative. 1 is `denoise` itself and 0 D(none), all of its
        channels, at the cost of one.
      null: a condition to none (networks/conditions.py).
      channels: that it acts on, the first; the others stay D(cond)'s. None: all.
    """
    if scale == 1:
        return denoise

    def unconditional(params, xt, sigma, cond, **options):
        return denoise(params, xt, sigma, null(cond), **options)

    def denoise_guided(
        params: Params, xt: Images, sigma: PerExample, cond: Condition, **options: Any
    ) -> Images:
        """Options of the denoiser are an example's each: both of a pair have them."""
        pairs = jax.tree.map(_paired, (xt, sigma, cond), (xt, sigma, null(cond)))
        options = jax.tree.map(lambda leaf: _paired(leaf, leaf), options)
        both = denoise(params, *pairs, **options).reshape(len(xt), 2, *xt.shape[1:])
        images = both[:, 1] + scale * (both[:, 0] - both[:, 1])
        if channels is None:
            return images
        return jnp.concatenate([images[..., :channels], both[:, 0, ..., channels:]], axis=-1)

    return denoise_guided if scale else unconditional


def evaluations(scale: float) -> int:
    """Of the network, that one of `guided` costs."""
    return 1 if scale in (0, 1) else 2


def dropped(key: Key, cond: Condition, null: Null, probability: float) -> Condition:
    """The condition, or with this probability none: what guidance is learnt from."""
    none = null(cond)
    drop = jax.random.bernoulli(key, probability, (len(jax.tree.leaves(cond)[0]),))

    def choose(some: Array, nothing: Array) -> Array:
        return jnp.where(drop.reshape(len(drop), *[1] * (some.ndim - 1)), nothing, some)

    return jax.tree.map(choose, cond, none)


def _paired(first: Array, second: Array) -> Array:
    """Rows in turn, so that each device keeps its own; they may be empty."""
    return jnp.stack([first, second], axis=1).reshape(2 * len(first), *first.shape[1:])
