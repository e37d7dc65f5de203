"""Convolution with stride 1, whose gradients CPUs run fast inside loops too."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from simjax.typing import Array, Float, Images

Kernel = Float[Array, "kh kw features_in features"]
Padding = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of height and of width
Precision = jax.lax.PrecisionLike

_IN_ORDER: ContextVar[bool] = ContextVar("gradients are convolutions in order", default=False)


@contextlib.contextmanager
def gradients_in_order() -> Iterator[None]:
    """What is traced within differentiates convolutions for CPUs, in reverse mode alone.

    JAX writes their gradients as convolutions over axes in other orders. XLA sorts axes for CPUs,
    but not inside loops (`accumulate`, `steps_per_call`), where they took a hundred times as long.
    """
    token = _IN_ORDER.set(True)
    try:
        yield
    finally:
        _IN_ORDER.reset(token)


def convolve(x: Images, kernel: Kernel, padding: Padding, precision: Precision = None) -> Images:
    """jax.lax.conv_general_dilated of NHWC images, stride 1; see gradients_in_order."""
    return (_in_order if _IN_ORDER.get() else _convolve)(x, kernel, padding, precision)


def _convolve(x, kernel, padding, precision):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


_in_order = jax.custom_vjp(_convolve, nondiff_argnums=(2, 3))


def _forward(x, kernel, padding, precision):
    return _convolve(x, kernel, padding, precision), (x, kernel)


def _backward(padding, precision, operands, dy):
    x, kernel = operands
    sizes = zip(kernel.shape[:2], padding, strict=True)
    rest = tuple((size - 1 - before, size - 1 - after) for size, (before, after) in sizes)
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = _in_order(dy, turned, rest, precision)
    # A kernel's gradient sums over images and pixels: channels take the place of images.
    dkernel = _in_order(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding, precision)
    return dx, dkernel.transpose(1, 2, 0, 3)


_in_order.defvjp(_forward, _backward)
