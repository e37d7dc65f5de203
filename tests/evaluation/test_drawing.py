"""Samples for evaluation: reproducible, compiled once, quantised, refused when not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.evaluation.drawing import Drawing
from simjax.runtime import sharding
from simjax.runtime.monitor import to_uint8
from tests.helpers import subprocesses


def draw(
    sampler, params=None, *, count=7, batch=3, shape=(2, 2, 1), devices=None
) -> list[np.ndarray]:
    mesh = sharding.make_mesh(devices=devices)
    drawing = Drawing(jax.random.key(0), np.zeros((count, 0), np.float32), shape, batch, mesh)
    return list(drawing.draw(sampler, params))


def identity(params, z, labels, keys):
    return z


def test_samples_depend_only_on_the_key_and_index():
    few, many = draw(identity, batch=3), draw(identity, batch=7)
    assert [len(part) for part in few] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(few), many[0])
    assert many[0].dtype == np.uint8
    assert len(np.unique(many[0], axis=0)) == 7


def test_each_sample_has_its_own_key():
    def noisy(params, z, labels, keys):
        return jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)

    ((images),) = draw(noisy, batch=7)
    assert len(np.unique(images, axis=0)) == 7
    assert np.any(images != draw(identity, batch=7)[0])


def test_samplers_that_differ_in_parameters_share_a_program():
    traced = []

    def sampler(params, z, labels, keys):
        traced.append(1)
        return params + 0 * z

    drawing = Drawing(jax.random.key(0), np.zeros((4, 0)), (2, 2, 1), 2, sharding.make_mesh())
    for level in (-1.0, 0.5):
        for part in drawing.draw(sampler, np.float32(level)):
            np.testing.assert_array_equal(part, to_uint8(np.full((2, 2, 2, 1), level)))
    assert len(traced) == 1
    assert drawing.seconds > 0
    # A bfloat16 teacher after a float32 generator.
    (first, _) = drawing.draw(sampler, jnp.bfloat16(0.5))
    np.testing.assert_array_equal(first, to_uint8(np.full((2, 2, 2, 1), 0.5)))


def test_latents_are_decoded():
    mesh = sharding.make_mesh()
    doubled = lambda samples: np.repeat(samples, 2, axis=1)  # noqa: E731
    conditions = np.zeros((3, 0), np.float32)
    drawing = Drawing(jax.random.key(0), conditions, (2, 2, 1), 2, mesh, doubled)
    parts = list(drawing.draw(identity, None))
    assert [part.shape for part in parts] == [(2, 4, 2, 1), (1, 4, 2, 1)]


def test_samples_that_are_not_finite_are_refused():
    def broken(params, z, labels, keys):
        return z.at[1].set(np.nan)

    with pytest.raises(ConfigError, match="1 of 3 samples are not finite"):
        draw(broken)


def test_eight_devices_equal_one():
    program = (
        "import jax, numpy as np\n"
        "from tests.evaluation import test_drawing as t\n"
        "split = np.concatenate(t.draw(t.scaled, np.float32(0.3), batch=3))\n"
        "assert jax.device_count() == 8\n"
        "one = t.draw(t.scaled, np.float32(0.3), batch=3, devices=jax.devices()[:1])\n"
        "whole = np.concatenate(one)\n"
        "np.testing.assert_array_equal(split, whole)\n"
        "print(len(split))"
    )
    assert subprocesses.on_devices(8, program) == "7\n"


def scaled(params, z, labels, keys):
    return params * z
