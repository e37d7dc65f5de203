"""CPU convolutions: gradients against JAX's, and the axis order that XLA compiles."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from simjax.networks import layers
from simjax.runtime.cpu import convolve, convolve_doubled, doubled, for_cpus, halved

SAME = ((1, 1), (1, 1))


def lax_convolve(x, kernel, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def in_order(x, kernel, padding):
    with for_cpus():
        return convolve(x, kernel, padding)


def operands(size: int = 3) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 6, 5, 3)), rng.standard_normal((size, size, 3, 4))
    return jnp.float32(x), jnp.float32(kernel)


def squares(convolve, padding, x, kernel):
    return jnp.square(convolve(x, kernel, padding)).sum()


@pytest.mark.parametrize(
    "size, padding",
    [(1, ((0, 0), (0, 0))), (3, SAME), (3, ((0, 0), (0, 0))), (4, ((2, 1), (0, 3)))],
)
def test_gradients_equal_those_of_jax(size, padding):
    for argument in (0, 1):
        ours, theirs = (
            jax.grad(functools.partial(squares, function, padding), argument)(*operands(size))
            for function in (in_order, lax_convolve)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_second_derivatives_equal_those_of_jax():
    def slope(function, x, kernel):
        gradient = jax.grad(functools.partial(squares, function, SAME))
        return jnp.sin(gradient(x, kernel)).sum()

    ours, theirs = (
        jax.grad(functools.partial(slope, function), (0, 1))(*operands())
        for function in (in_order, lax_convolve)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3), ours, theirs)


def doubled_first(x, kernel, padding):
    return lax_convolve(layers.upsample(x, (1, 1)), kernel, padding)


def in_four_parts(x, kernel, padding):
    with for_cpus():
        return convolve_doubled(x, kernel)


def test_convolve_doubled_equals_upsampling_then_convolution():
    ours, theirs = in_four_parts(*operands(), SAME), doubled_first(*operands(), SAME)
    assert ours.shape == (2, 12, 10, 4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for argument in (0, 1):
        ours, theirs = (
            jax.grad(functools.partial(squares, function, SAME), argument)(*operands())
            for function in (in_four_parts, doubled_first)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)


def test_convolve_doubled_needs_four_ninths_of_the_flops():
    x, kernel = jnp.ones((1, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    ours, theirs = (
        jax.jit(function, static_argnums=2).lower(x, kernel, SAME).compile().cost_analysis()
        for function in (in_four_parts, doubled_first)
    )
    assert ours["flops"] / theirs["flops"] == pytest.approx(4 / 9, rel=0.06)


@pytest.mark.parametrize("function", [doubled, halved])
def test_resampling_on_cpus_compiles_to_slices_with_the_gradients_of_jax(function):
    x = operands()[0][:, :, :4]
    dy = jnp.sin(jnp.arange(function(x).size, dtype=jnp.float32)).reshape(function(x).shape)

    def both(x, dy):
        y, pull = jax.vjp(function, x)
        return y, *pull(dy)

    theirs = jax.jit(both).lower(x, dy)
    with for_cpus():
        ours = jax.jit(lambda x, dy: both(x, dy)).lower(x, dy)
    assert "stablehlo.reduce" in theirs.as_text()
    assert "stablehlo.reduce" not in ours.as_text()
    for our, their in zip(ours.compile()(x, dy), theirs.compile()(x, dy), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-6, atol=1e-6)


def test_convolutions_in_loops_on_cpus_have_the_fast_axis_order():
    """XLA silently runs any other axis order a hundred times slower there."""
    conv = functools.partial(layers.conv, 4, 4, init=layers.glorot(), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split([conv(3, dtype=jnp.float32), conv(1, dtype=jnp.float32)])

    def loss(params, x):
        with for_cpus():
            for layer in nnx.merge(graphdef, params):
                x = layer(x)
        return jnp.square(x).mean()

    def descend(carry, _):
        gradients = jax.grad(loss, (0, 1))(*carry)
        return jax.tree.map(lambda p, g: p - g, carry, gradients), None

    loop = jax.jit(lambda *start: jax.lax.scan(descend, start, length=3)[0])
    text = loop.lower(params, jnp.ones((2, 8, 8, 4))).compile().as_text()
    assert set(re.findall(r"dim_labels=([^,\s]+)", text)) == {"b01f_01io->b01f"}


def test_outside_for_cpus_gradients_lower_as_those_of_jax():
    ours, theirs = (
        jax.jit(jax.grad(functools.partial(squares, function, SAME), (0, 1)))
        .lower(*operands())
        .as_text()
        for function in (convolve, lax_convolve)
    )
    assert ours == theirs
