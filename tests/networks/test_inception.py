"""Inception-v3: resizing, pooling at the edges, input shapes, and provenance of features."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from simjax.errors import ConfigError
from simjax.networks import inception


def test_resize_keeps_a_ramp_and_repeats_edges():
    height, width, size = 5, 8, 20
    rows, columns = np.arange(height), np.arange(width)
    ramp = (3.0 * rows[:, None] + columns)[None, :, :, None].astype(np.float32)
    y, x = (
        np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        for length in (height, width)
    )
    expected = 3 * y[:, None] + x
    np.testing.assert_allclose(inception.resized(ramp, size)[0, ..., 0], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(17, 29), (31, 31), (41, 64)])
def test_resize_is_jax_image_resize_without_antialiasing(shape):
    x = np.random.default_rng(0).standard_normal((2, *shape, 3)).astype(np.float32)
    expected = jax.image.resize(x, (2, 31, 31, 3), "bilinear", antialias=False)
    # jax.image.resize computes positions in float32: 1.5e-5 at 64 pixels. Ours: 4e-7.
    np.testing.assert_allclose(inception.resized(x, 31), expected, atol=4e-5)


def test_average_pooling_excludes_the_padding():
    x = np.arange(9.0, dtype=np.float32).reshape(1, 3, 3, 1)
    corner, edge, centre = x[0, :2, :2].mean(), x[0, :2].mean(), x.mean()
    averaged = np.asarray(inception.AVERAGE(x))[0, ..., 0]
    np.testing.assert_allclose(
        [averaged[0, 0], averaged[0, 1], averaged[1, 1]], [corner, edge, centre], rtol=1e-6
    )


@pytest.fixture(scope="module")
def first_stage():
    """The first stage, with arbitrary weights."""
    graphdef, _ = nnx.split(nnx.eval_shape(inception.InceptionV3))
    like = inception.weights_like()
    weights = jax.tree.map(lambda w: np.resize(np.float32([0.5, 1.5, 0.7]), w.shape), like)
    run = jax.jit(lambda weights, images: nnx.merge(graphdef, weights).stages(images)[0])
    return lambda images: run(weights, images)


def test_grey_images_are_repeated_to_three_channels(first_stage):
    grey = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 1), np.uint8)
    whole = first_stage(np.repeat(grey, 3, axis=-1))
    assert np.ptp(whole) > 0
    np.testing.assert_allclose(first_stage(grey), whole, rtol=1e-5)


def test_float_and_uint8_images_agree(first_stage):
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
    np.testing.assert_array_equal(first_stage(images), first_stage(images.astype(np.float32)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_activations_are_in_the_dtype_and_outputs_in_float32(dtype):
    image = jax.ShapeDtypeStruct((1, 9, 9, 3), np.uint8)
    stages = nnx.eval_shape(lambda x: inception.InceptionV3(dtype).stages(x), image)
    assert [(x.shape, x.dtype) for x in stages] == [
        ((1, 73, 73, 64), dtype),
        ((1, 35, 35, 192), dtype),
        ((1, 17, 17, 768), dtype),
        ((1, 8, 8, 2048), dtype),
    ]
    outputs = jax.eval_shape(inception.extractor(dtype), inception.weights_like(), image)
    assert [(x.shape, x.dtype) for x in outputs] == [
        ((1, 2048), np.float32),
        ((1, 1008), np.float32),
        ((1, 1008), np.float32),
    ]


@pytest.mark.parametrize("shape", [(2, 9, 9, 4), (9, 9, 3)])
def test_other_shapes_are_refused(first_stage, shape):
    with pytest.raises(ConfigError, match=r"images of shape \(.*expected \(n, h, w, 3\)"):
        first_stage(np.zeros(shape, np.uint8))


def test_features_record_their_provenance():
    note = dataclasses.asdict(inception.Features(weights_sha256="ab", dtype="float32"))
    assert json.loads(json.dumps(note)) == note
    assert note["network"] == "inception-2015-12-05"
    assert "299x299" in note["resize"]
    assert {"weights_sha256", "dtype"} <= note.keys()
