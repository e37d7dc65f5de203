"""bfloat16 networks: losses and gradient directions of every block equal float32's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax.models import build
from simjax.perf import programs
from simjax.runs import setup
from simjax.runtime import sharding
from simjax.train import step
from tests.helpers.configs import load


def losses_and_gradients(options, dtype):
    """Loss and gradient of both updates on the same draws, for three random networks."""
    options = dataclasses.replace(options, compute_dtype=dtype)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    denoise, like = build.blank(options)
    teacher = programs.random_params(like)
    generator = jax.tree.map(np.flip, teacher)  # another network from the same distribution
    fake_score = jax.tree.map(lambda a, b: 0.8 * a + 0.6 * b, teacher, generator)
    fns = setup.step_fns(options, denoise, mesh)
    of_fake_score, of_generator = setup.updates_of(options, fns, mesh)

    @jax.jit
    def both(generator, teacher, fake_score, key):
        fake_key, generator_key = jax.random.split(key)
        (fake_loss, _), fake_grads = jax.value_and_grad(step.fake_score_loss, has_aux=True)(
            fake_score, generator, of_fake_score.draw(fake_key, None), fns=fns
        )
        (loss, _), grads = jax.value_and_grad(step.generator_loss, has_aux=True)(
            generator, teacher, fake_score, of_generator.draw(generator_key, None), fns=fns
        )
        return {"fake_score": (fake_loss, fake_grads), "generator": (loss, grads)}

    return both(generator, teacher, fake_score, jax.random.key(0))


def blocks(grads) -> dict[str, np.ndarray]:
    """Gradients flattened to one vector per block of the network."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(grads):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        found.setdefault("/".join(names[:3]), []).append(np.ravel(leaf))
    return {name: np.concatenate(leaves) for name, leaves in found.items()}


@pytest.fixture(scope="module")
def exact_and_rough():
    options = load("digits")
    options.batch = 16
    return [losses_and_gradients(options, dtype) for dtype in ("float32", "bfloat16")]


@pytest.mark.whole_runs
@pytest.mark.parametrize("update", ["fake_score", "generator"])
def test_losses_and_gradients_in_bfloat16(update, exact_and_rough):
    (loss, grads), (rough_loss, rough) = (found[update] for found in exact_and_rough)
    np.testing.assert_allclose(rough_loss, loss, rtol=0.02)
    assert rough_loss != loss  # bfloat16 is really used
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rough))
    rough = blocks(rough)
    for name, exact in blocks(grads).items():
        cosine = exact @ rough[name] / np.linalg.norm(exact) / np.linalg.norm(rough[name])
        assert cosine >= 0.99, (name, cosine)
