"""Convolution with stride 1, whose gradients CPUs run fast inside loops too."""

import functools

import jax
import jax.numpy as jnp

from simjax.typing import Array, Float, Images

Kernel = Float[Array, "kh kw features_in features"]
Padding = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of height and of width
Precision = jax.lax.PrecisionLike


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: Images, kernel: Kernel, padding: Padding, precision: Precision = None) -> Images:
    """jax.lax.conv_general_dilated of NHWC images, differentiable in reverse mode.

    JAX writes its gradients as convolutions over axes in other orders. XLA sorts axes for CPUs, but
    not inside loops (`accumulate`, `steps_per_call`), where they took a hundred times as long. On
    CPUs they are therefore written in order; other platforms get what JAX writes.
    """
    return _convolve(x, kernel, padding, precision)


def _convolve(x, kernel, padding, precision):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _forward(x, kernel, padding, precision):
    return _convolve(x, kernel, padding, precision), (x, kernel)


def _backward(padding, precision, operands, dy):
    gradients = (functools.partial(g, padding, precision) for g in (_in_order, _as_jax_does))
    in_order, as_jax_does = gradients
    return jax.lax.platform_dependent(*operands, dy, cpu=in_order, default=as_jax_does)


def _in_order(padding, precision, x, kernel, dy):
    sizes = zip(kernel.shape[:2], padding, strict=True)
    rest = tuple((size - 1 - before, size - 1 - after) for size, (before, after) in sizes)
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = convolve(dy, turned, rest, precision)
    # A kernel's gradient sums over images and pixels: channels take the place of images.
    dkernel = convolve(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding, precision)
    return dx, dkernel.transpose(1, 2, 0, 3)


def _as_jax_does(padding, precision, x, kernel, dy):
    convolve = functools.partial(_convolve, padding=padding, precision=precision)
    return jax.vjp(convolve, x, kernel)[1](dy)


convolve.defvjp(_forward, _backward)
