"""Gradient accumulation: a large batch as microbatches, one after another."""

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
    """Mean loss, metrics and gradient over `slices` microbatches of equal size.

    Microbatches are strided (example i goes to microbatch i mod slices), so that each device keeps
    its own examples. Scalars, which have no batch axis, are passed to every microbatch.

    >>> def loss(w, x):
    ...     return jnp.mean((x - w) ** 2), {}
    >>> value, _, grad = accumulated_grad(loss, jnp.array(0.0), jnp.arange(8.0), slices=4)
    >>> float(value), float(grad)
    (17.5, -7.0)
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def add_part(total, part):
        (loss, metrics), grads = grad_fn(params, part)
        return jax.tree.map(lambda a, b: a + b / slices, total, (loss, metrics, grads)), None

    if slices == 1:
        (loss, metrics), grads = grad_fn(params, draws)
        return loss, metrics, grads
    grad_fn = jax.jit(grad_fn)  # traced once for both eval_shape and the scan

    parts = cut_into(draws, slices)
    first = jax.tree.map(lambda a: a[0], parts)
    (loss, metrics), grads = jax.eval_shape(grad_fn, params, first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (loss, metrics, grads))
    total, _ = jax.lax.scan(add_part, zeros, parts)
    return total


def by_parts(function: Callable[[Any], Any], draws: Any, slices: int) -> Any:
    """function(draws) with one value per example, computed microbatch by microbatch."""
    found = jax.lax.map(function, cut_into(draws, slices))
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), found)


def cut_into(draws: Any, slices: int) -> Any:
    """Splits a batch into microbatches: leaves (slices, batch / slices, ...).

    Scalars are repeated for every microbatch.

    >>> cut_into(jnp.arange(6), 2).tolist()
    [[0, 2, 4], [1, 3, 5]]
    """

    def cut(a: Array) -> Array:  # labels of an unconditional network have shape (batch, 0)
        if not a.ndim:
            return jnp.broadcast_to(a, (slices,))
        return a.reshape(len(a) // slices, slices, *a.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, draws)
