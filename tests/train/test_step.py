"""Inputs of each network in a step, e.g. augmentation only when the fake score is trained.

Also microbatch gradients, and captions of each update.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax.losses import distances, sim
from simjax.models.generator import OneStep
from simjax.train import step, update
from simjax.train.accumulate import accumulated_grad
from simjax.train.state import TrainState
from simjax.train.update import Constants, Draws, Update
from simjax.typing import Caption

AUGMENT_LABELS = jnp.full((2, 9), 0.5)


class Recorder:
    """A denoiser that returns its parameters and records its inputs."""

    def __init__(self):
        self.calls = []

    def __call__(self, params, xt, sigma, labels, *, augment_labels=None, dropout_keys=None):
        self.calls.append((xt, augment_labels, dropout_keys))
        return params * jnp.ones_like(xt)


def fns(denoise: Recorder) -> step.StepFns:
    return step.StepFns(
        denoise=denoise,
        generate=functools.partial(OneStep(1.0).train_sample, denoise),
        denoise_teacher=denoise,
        denoise_fake=denoise,
        loss=lambda x0, d_teacher, d_fake, sigma: sim.generator_loss(
            x0, d_teacher, d_fake, sigma, distance=distances.l2_squared
        ),
        distance=distances.l2_squared,
        fake_score_weight=jnp.ones_like,
        augment=lambda images, keys: (images + keys[:, None, None, None], AUGMENT_LABELS),
    )


def draws() -> Draws:
    images = jnp.zeros((2, 4, 4, 1))
    return Draws(
        z=images,
        cond=jnp.zeros((2, 0)),
        sigma=jnp.ones(2),
        eps=images,
        dropout_keys=jnp.zeros(2),
        augment_keys=jnp.array([10.0, 20.0]),
    )


def test_the_fake_score_is_trained_on_augmented_images_with_their_labels():
    # G = 3; augmented: 13 and 23; D_fake = 1: the loss sums (12^2 + 22^2) / 2 over 16 pixels.
    denoise = Recorder()
    loss, _ = step.fake_score_loss(jnp.ones(()), jnp.full((), 3.0), draws(), fns=fns(denoise))
    np.testing.assert_allclose(loss, 16 * (12**2 + 22**2) / 2)
    (_, generate_labels, generate_dropout), (xt, labels, dropout) = denoise.calls
    assert generate_labels is None
    assert generate_dropout is None  # the generator is in evaluation mode here
    np.testing.assert_array_equal(xt[:, 0, 0, 0], [13, 23])
    np.testing.assert_array_equal(labels, AUGMENT_LABELS)
    assert dropout is not None


def test_the_generator_loss_uses_no_augmentation():
    denoise = Recorder()
    values = (jnp.full((), 3.0), jnp.ones(()), jnp.ones(()))
    step.generator_loss(*values, draws(), fns=fns(denoise))
    assert [labels for _, labels, _ in denoise.calls] == [None] * 3
    generator, teacher, fake_score = (dropout for _, _, dropout in denoise.calls)
    assert generator is not None
    assert teacher is None
    assert fake_score is None
    np.testing.assert_array_equal(denoise.calls[1][0], 3 * np.ones((2, 4, 4, 1)))


@pytest.mark.parametrize("classes", [0, 3])
def test_microbatch_gradients_average_to_the_batch_gradient(classes):
    many = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf + 1]), draws())
    many = many.replace(cond=jnp.eye(4, classes))

    def loss(params, draws):
        assert draws.cond.shape[1:] == (classes,)
        value = params * draws.sigma + draws.cond.sum(1)
        return jnp.mean(value**2), {"rows": jnp.float32(len(value))}

    whole = accumulated_grad(loss, jnp.float32(3), many, 1)
    sliced = accumulated_grad(loss, jnp.float32(3), many, 2)
    assert (whole[1]["rows"], sliced[1]["rows"]) == (4, 2)
    np.testing.assert_allclose(sliced[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(sliced[2], whole[2], rtol=1e-6)


def test_each_update_of_a_step_reads_its_own_captions():
    numbers = jnp.arange(3 * 2 * 4.0).reshape(3, 2, 4, 1, 1)
    captions = Caption(numbers, numbers[..., 0] >= 0, numbers[..., 0, 0] < 0)
    taken = [
        Update(role, None, lambda key, found, _: found, None) for role in ("fake", "generator")
    ]
    state = TrainState(jnp.int32(7), {}, None)  # the second of three pairs
    fake_score, generator = update.draws(
        state, Constants(None, captions), jax.random.key(0), updates=taken
    )
    np.testing.assert_array_equal(fake_score.embedding, numbers[1, 0])
    np.testing.assert_array_equal(generator.embedding, numbers[1, 1])
