"""Gradients of a large batch in parts, one after another."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simjax.typing import Array, Metrics, Params, Scalar


def accumulated_grad(
    loss_fn: Callable[[Params, Any], tuple[Scalar, Metrics]],
    params: Params,
    draws: Any,
    slices: int,
) -> tuple[Scalar, Metrics, Params]:
    """Loss, metrics and gradient, means over `slices` equal parts of the batch in turn.

    Parts interleave (example i goes to part i mod slices), so that each device keeps its own rows.
    What has no examples, a scalar, is every part's.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def add_part(total, part):
        (loss, metrics), grads = grad_fn(params, part)
        return jax.tree.map(lambda a, b: a + b / slices, total, (loss, metrics, grads)), None

    if slices == 1:
        (loss, metrics), grads = grad_fn(params, draws)
        return loss, metrics, grads
    grad_fn = jax.jit(grad_fn)  # traced once, for its shapes and for the loop

    parts = cut_into(draws, slices)
    first = jax.tree.map(lambda a: a[0], parts)
    (loss, metrics), grads = jax.eval_shape(grad_fn, params, first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (loss, metrics, grads))
    total, _ = jax.lax.scan(add_part, zeros, parts)
    return total


def by_parts(function: Callable[[Any], Any], draws: Any, slices: int) -> Any:
    """function(draws), whose leaves are one value an example, from the same parts in turn."""
    found = jax.lax.map(function, cut_into(draws, slices))
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), found)


def cut_into(draws: Any, slices: int) -> Any:
    """Leaves (slices, batch / slices, ...); scalars are every part's."""

    def cut(a: Array) -> Array:  # labels of an unconditional network are (batch, 0)
        if not a.ndim:
            return jnp.broadcast_to(a, (slices,))
        return a.reshape(len(a) // slices, slices, *a.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, draws)
