"""Layers against their definitions."""

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


RATE = 0.3
SHAPES = [(64, 64, 8), (32, 32, 12), (64, 64, 8), (64, 64, 12)]  # one word per 2 masks of 8
KEYS = jax.random.split(jax.random.key(4), 16)


def test_dropout_keep_probability_has_16_bits():
    masks = [np.asarray(mask) for mask in layers.keep_masks(KEYS, RATE, SHAPES)]
    assert [mask.shape for mask in masks] == [(16, *shape) for shape in SHAPES]
    share = layers.kept_share(RATE)
    assert share == 45875 / 65536  # 0.7 * 65536 = 45875.2
    for mask in masks:
        std = np.sqrt(share * (1 - share) / mask.size)
        assert abs(mask.mean() - share) < 4 * std


def test_masks_are_uncorrelated():
    masks = [np.asarray(m)[:, :32, :32, :8] for m in layers.keep_masks(KEYS, RATE, SHAPES)]
    blocks_and_examples = np.stack(masks).reshape(-1, 32 * 32 * 8)
    signs = np.where(blocks_and_examples, 0.3, -0.7)  # mean 0, variance 0.21
    correlation = signs @ signs.T / (0.21 * signs.shape[1]) - np.eye(len(signs))
    assert np.abs(correlation).max() < 6 / np.sqrt(signs.shape[1])  # 2016 pairs, 6 standard errors


def test_dropout_masks_depend_on_the_example_not_on_the_batch():
    whole = layers.keep_masks(KEYS, RATE, SHAPES)
    part = layers.keep_masks(KEYS[3:5], RATE, SHAPES)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3:5], b), whole, part)


def test_dropout_rescales_kept_elements():
    (keep,) = layers.keep_masks(KEYS[:2], RATE, [X.shape[1:]])
    kept = np.asarray(keep)
    dropped = np.asarray(layers.dropout(X, RATE, keep))
    np.testing.assert_allclose(dropped[kept], X[kept] / (45875 / 65536), rtol=1e-6)
    np.testing.assert_array_equal(dropped[~kept], 0)


@pytest.mark.parametrize(("keys", "rate"), [(None, RATE), (KEYS, 0)])
def test_no_dropout_without_keys_or_rate(keys, rate):
    masks = layers.keep_masks(keys, rate, SHAPES)
    assert masks == [None] * len(SHAPES)
    assert layers.dropout(X, rate, masks[0]) is X


def test_masks_of_equal_width_share_one_draw():
    traced = str(jax.make_jaxpr(lambda keys: layers.keep_masks(keys, RATE, SHAPES))(KEYS))
    assert traced.count("random_bits[") == 2  # one for 8 channels, one for 12
    assert traced.count("optimization_barrier ") == 2


def test_positional_embedding_is_sines_then_cosines():
    found = layers.positional_embedding(jnp.array([0.7]), 6, steps=2)[0]
    frequencies = np.array([1, 1e-2, 1e-4])
    np.testing.assert_allclose(
        found, np.r_[np.sin(0.7 * frequencies), np.cos(0.7 * frequencies)], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        (layers.glorot(), (2 / (9 * (30 + 50))) ** 0.5),
        (layers.glorot(1e-2), 1e-2 * (2 / (9 * (30 + 50))) ** 0.5),
        (layers.lecun(), (1 / (3 * 9 * 30)) ** 0.5),
        (layers.normal(0.02), 0.02),
    ],
)
def test_initial_parameters_are_drawn_without_compilation(init, deviation, monkeypatch):
    shape, key = (3, 3, 30, 50), jax.random.key(1)
    monkeypatch.setattr(jax.random, "uniform", None)
    drawn = np.asarray(init(key, shape))
    assert drawn.dtype == np.float32
    error = 6 * deviation / drawn.size**0.5  # six standard errors
    assert abs(drawn.mean()) < error and abs(drawn.std() - deviation) < error
    assert not np.array_equal(drawn, init(jax.random.key(2), shape))
    np.testing.assert_array_equal(drawn, jax.jit(init, static_argnums=1)(key, shape))
    keys = jax.random.split(key, 2)
    both = jax.vmap(lambda key: init(key, shape))(keys)
    np.testing.assert_array_equal(both[1], init(keys[1], shape))
