"""Building blocks against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from simjax.networks import layers

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 12)) * 3 + 1


def test_group_norm_is_flax_group_norm():
    ours = layers.GroupNorm(12, epsilon=1e-6, dtype=jnp.float32)
    theirs = nnx.GroupNorm(12, num_groups=3, epsilon=1e-6, rngs=nnx.Rngs(0))
    scale, bias = jax.random.normal(jax.random.key(1), (2, 12))
    for norm in (ours, theirs):
        norm.scale[...], norm.bias[...] = scale, bias
    np.testing.assert_allclose(ours(X), theirs(X), atol=2e-5)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_downsampling_is_a_strided_convolution_with_the_normalised_filter(taps):
    kernel = np.outer(taps, taps)[:, :, None, None] / sum(taps) ** 2
    expected = jax.lax.conv_general_dilated(
        X,
        jnp.float32(np.repeat(kernel, X.shape[-1], axis=3)),
        window_strides=(2, 2),
        padding=[((len(taps) - 1) // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=X.shape[-1],
    )
    np.testing.assert_allclose(layers.downsample(X, taps), expected, atol=1e-5)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_upsampling_is_the_adjoint_of_downsampling_times_four(taps):
    y = jax.random.normal(jax.random.key(2), (2, 4, 4, 12))
    _, adjoint = jax.vjp(lambda x: layers.downsample(x, taps), X)
    np.testing.assert_allclose(layers.upsample(y, taps), 4 * adjoint(y)[0], atol=1e-5)


def test_dropout_masks_belong_to_examples_not_to_batches():
    keys = jax.random.split(jax.random.key(4), 2)
    both = layers.dropout(X, 0.4, keys)
    np.testing.assert_array_equal(both[1:], layers.dropout(X[1:], 0.4, keys[1:]))
    kept = np.asarray(both != 0)
    assert 0.5 < kept.mean() < 0.7
    np.testing.assert_allclose(both[kept], (X / 0.6)[kept], rtol=1e-6)
    np.testing.assert_array_equal(layers.dropout(X, 0.4, None), X)


def test_positional_embedding_is_sines_then_cosines():
    found = layers.positional_embedding(jnp.array([0.7]), 6, steps=2)[0]
    frequencies = np.array([1, 1e-2, 1e-4])
    np.testing.assert_allclose(
        found, np.r_[np.sin(0.7 * frequencies), np.cos(0.7 * frequencies)], rtol=1e-5
    )
