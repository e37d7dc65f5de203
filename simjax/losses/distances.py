"""Distances d(y) between scores; their gradient d' is taken by jax.grad. Arrays in, a scalar out.

Each maps ONE example's y, of any shape, to a scalar; d(y) >= 0, and 0 only at y = 0. A new distance
is a function and a line in DISTANCES; its keyword arguments are its options, and become fields of
config.Loss.

Reference: SIM, arXiv:2410.16794, section 3.3 and table 5 (which names Pseudo-Huber best).
"""

import functools
import inspect
from collections.abc import Callable

import jax.numpy as jnp

from simjax.typing import Array, Float, Scalar, typed

Distance = Callable[[Float[Array, "..."]], Scalar]


@typed
def l2_squared(y: Float[Array, "..."]) -> Scalar:
    """||y||^2, the Fisher divergence's distance; d' = 2 y."""
    return jnp.sum(y**2)


@typed
def power(y: Float[Array, "..."], *, exponent: float = 1.0) -> Scalar:  # our choice
    """||y||^exponent, exponent >= 1; d'(0) is taken as 0."""
    total = jnp.sum(y**2)
    inside = jnp.where(total > 0, total, 1)  # keeps the gradient at 0 finite
    return jnp.where(total > 0, inside ** (exponent / 2), 0)


@typed
def pseudo_huber(y: Float[Array, "..."], *, c: float = 1e-3) -> Scalar:
    """sqrt(||y||^2 + c^2) - c; d' = y / sqrt(||y||^2 + c^2).

    The default of c is the SIM authors' (issue 5 of their repository).
    """
    total = jnp.sum(y**2)
    return total / (jnp.sqrt(total + c**2) + c)  # the same, without cancellation near 0


@typed
def huber(y: Float[Array, "..."], *, delta: float = 1.0) -> Scalar:  # our choice
    """Element-wise Huber: y^2 / 2 within delta, delta (|y| - delta / 2) beyond, summed."""
    size = jnp.abs(y)
    return jnp.sum(jnp.where(size <= delta, 0.5 * y**2, delta * (size - 0.5 * delta)))


@typed
def l1(y: Float[Array, "..."]) -> Scalar:
    """sum |y|; d' = sign(y).

    d' jumps at 0, so Theorem 3.1 holds only where the generator's motion is independent of z given
    xt (a location family); elsewhere the jump's share is lost. `huber` with a small delta is exact.
    """
    return jnp.sum(jnp.where(y == 0, 0, jnp.abs(y)))  # the gradient of jnp.abs at 0 is 1


@typed
def exponential(y: Float[Array, "..."], *, exponent: float = 1.0, rate: float = 0.01) -> Scalar:
    """exp(rate ||y||^exponent) - 1.

    Defaults are our choice: with this rate exp stays finite for 64 x 64 images.
    """
    return jnp.expm1(rate * power(y, exponent=exponent))


DISTANCES: dict[str, Callable[..., Scalar]] = {
    "l2_squared": l2_squared,
    "power": power,
    "pseudo_huber": pseudo_huber,
    "huber": huber,
    "l1": l1,
    "exponential": exponential,
}


def bind(name: str, **options: float) -> Distance:
    """The named distance with those of `options` that it takes; the others are its siblings'."""
    distance = DISTANCES[name]
    wanted = inspect.signature(distance).parameters
    return functools.partial(distance, **{k: v for k, v in options.items() if k in wanted})
