"""Guidance on Gaussians with closed-form conditional and unconditional denoisers."""

import jax.numpy as jnp
import numpy as np
import pytest

from simjax.diffusion import guidance
from simjax.networks.conditions import Prompts
from simjax.typing import Caption

XT = jnp.arange(24.0).reshape(3, 2, 2, 2)
SIGMA = jnp.array([0.5, 1.0, 2.0])


def denoise(params, xt, sigma, cond):
    """D for data N(params * class, 1); unconditional: N(0, 1)."""
    mean = params * (cond @ jnp.arange(1.0, 4))[:, None, None, None]
    variance = sigma[:, None, None, None] ** 2
    return (xt + variance * mean) / (1 + variance)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 4.5])
def test_guidance_multiplies_the_conditional_mean_by_the_scale(scale):
    labels = jnp.eye(3)
    found = guidance.guided(denoise, scale, jnp.zeros_like)(2.0, XT, SIGMA, labels)
    expected = denoise(2.0 * scale, XT, SIGMA, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_guidance_of_some_channels_leaves_the_others_conditional():
    labels = jnp.eye(3)
    found = guidance.guided(denoise, 4.5, jnp.zeros_like, channels=1)(2.0, XT, SIGMA, labels)
    np.testing.assert_allclose(found[..., :1], denoise(9.0, XT, SIGMA, labels)[..., :1], rtol=1e-6)
    np.testing.assert_array_equal(found[..., 1:], denoise(2.0, XT, SIGMA, labels)[..., 1:])


def test_scale_1_returns_the_denoiser_itself():
    assert guidance.guided(denoise, 1.0, jnp.zeros_like) is denoise


def test_guidance_without_classes_is_the_unconditional_denoiser():
    def unconditional(params, xt, sigma, cond):
        assert cond.shape == (6, 0)
        return xt / (1 + sigma[:, None, None, None] ** 2)

    guided = guidance.guided(unconditional, 4.5, jnp.zeros_like)
    found = guided(None, XT, SIGMA, jnp.zeros((3, 0)))
    np.testing.assert_allclose(found, unconditional(None, XT, SIGMA, jnp.zeros((6, 0))), rtol=1e-5)


def test_captions_are_dropped_and_keep_their_mask():
    caption = Caption(
        jnp.ones((2, 3, 4)), jnp.array([[1, 1, 0], [1, 0, 0]], bool), jnp.zeros(2, bool)
    )
    seen = []

    def record(params, xt, sigma, cond):
        seen.append(cond)
        return xt

    null = Prompts(channels=4, limit=3).null
    guidance.guided(record, 2.0, null)(None, XT[:2], SIGMA[:2], caption)
    np.testing.assert_array_equal(seen[0].dropped, [False, True, False, True])
    np.testing.assert_array_equal(seen[0].mask[0], seen[0].mask[1])
    np.testing.assert_array_equal(seen[0].mask[2:].sum(1), [1, 1])
