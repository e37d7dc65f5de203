"""Distances d(y) between scores. An array in, a scalar out.

Each maps ONE example's y, of any shape, to a scalar; d(y) >= 0, with equality only at y = 0. The
gradient d' is taken by jax.grad. To add a distance, write a function and add it to DISTANCES; its
keyword-only arguments are its options and become fields of config.Loss.

Reference: SIM, arXiv:2410.16794, section 3.3 and table 5 (where Pseudo-Huber performs best).
"""

import functools
import inspect
from collections.abc import Callable

import jax.numpy as jnp

from simjax.typing import Array, Float, Scalar, typed

Distance = Callable[[Float[Array, "..."]], Scalar]


@typed
def l2_squared(y: Float[Array, "..."]) -> Scalar:
    """||y||^2, the distance of the Fisher divergence; d' = 2 y.

    >>> float(l2_squared(jnp.array([3.0, 4.0])))
    25.0
    """
    return jnp.sum(y**2)


@typed
def power(y: Float[Array, "..."], *, exponent: float = 1.0) -> Scalar:  # our choice
    """||y||^exponent, exponent >= 1; d'(0) is set to 0."""
    total = jnp.sum(y**2)
    inside = jnp.where(total > 0, total, 1)  # avoids a NaN gradient at 0
    return jnp.where(total > 0, inside ** (exponent / 2), 0)


@typed
def pseudo_huber(y: Float[Array, "..."], *, c: float = 1e-3) -> Scalar:
    """sqrt(||y||^2 + c^2) - c; d' = y / sqrt(||y||^2 + c^2).

    The default c comes from SIM's authors (issue 5 of their repository).

    >>> round(float(pseudo_huber(jnp.array([3.0, 4.0]), c=1.0)), 4)  # sqrt(26) - 1
    4.099
    """
    total = jnp.sum(y**2)
    return total / (jnp.sqrt(total + c**2) + c)  # equal, without cancellation near 0


@typed
def huber(y: Float[Array, "..."], *, delta: float = 1.0) -> Scalar:  # our choice
    """Sum of element-wise Huber: y^2 / 2 up to delta, linear beyond.

    Beyond delta an element contributes delta (|y| - delta / 2).
    """
    size = jnp.abs(y)
    return jnp.sum(jnp.where(size <= delta, 0.5 * y**2, delta * (size - 0.5 * delta)))


@typed
def l1(y: Float[Array, "..."]) -> Scalar:
    """sum |y|; d' = sign(y).

    d' jumps at 0, so Theorem 3.1 holds only if dx0/dtheta is independent of z given xt (a location
    family). Otherwise autodiff misses the delta function that the jump contributes. `huber` with a
    small delta is exact.
    """
    return jnp.sum(jnp.where(y == 0, 0, jnp.abs(y)))  # the gradient of jnp.abs at 0 is 1


@typed
def exponential(y: Float[Array, "..."], *, exponent: float = 1.0, rate: float = 0.01) -> Scalar:
    """exp(rate ||y||^exponent) - 1.

    The defaults are our choice: this rate keeps exp finite for 64 x 64 images.
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
    """The named distance with its options bound.

    Options of other distances are ignored.

    >>> distance = bind("huber", delta=0.5, c=1e-3)  # c belongs to pseudo_huber
    >>> float(distance(jnp.array([2.0])))
    0.875
    """
    distance = DISTANCES[name]
    declared = inspect.signature(distance).parameters
    return functools.partial(distance, **{k: v for k, v in options.items() if k in declared})
