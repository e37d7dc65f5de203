"""Denoising score matching: minimal at the posterior mean, 1 per element with EDM's weight."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from simjax.diffusion import noise
from simjax.losses import denoising
from tests.helpers import analytic


def test_loss_is_the_weighted_squared_error_summed_over_each_example():
    x0 = jnp.zeros((2, 2, 1, 3))
    denoised = jnp.ones_like(x0) * jnp.array([1.0, 2.0]).reshape(2, 1, 1, 1)
    loss = denoising.denoising_loss(x0, denoised, jnp.array([0.5, 3.0]))
    np.testing.assert_array_equal(loss, [0.5 * 6, 3 * 6 * 4])


@pytest.mark.parametrize("world", analytic.WORLDS.values(), ids=analytic.WORLDS)
@pytest.mark.parametrize("direction", [jnp.ones_like, jnp.sin, jnp.square])
def test_loss_is_minimal_at_the_posterior_mean(direction, world):
    nodes = analytic.draws(world)
    x0, _, best = analytic.images(world, jnp.asarray(world.theta0), nodes)
    xt = x0 + world.sigma * nodes.eps.reshape(x0.shape)

    def expected_loss(step):
        denoised = best + step * direction(xt)
        return nodes.weight @ denoising.denoising_loss(x0, denoised, jnp.ones(nodes.z.shape))

    before, least, after = (expected_loss(step) for step in (-1.0, 0.0, 1.0))
    np.testing.assert_allclose(before, after, rtol=1e-12)  # a parabola in the step, so slope 0 at 0
    assert before > least + 0.01


@pytest.mark.parametrize("sigma", [0.01, 0.5, 20.0])
def test_minimal_loss_on_gaussian_data_is_1_per_element_with_edms_weight(sigma):
    # x0 ~ N(0, sigma_data^2): D = xt sigma_data^2 / (sigma_data^2 + sigma^2). The loss is a
    # quadratic in (x0, eps): four sign pairs integrate it exactly.
    x0, eps = jnp.array([[1.0, 1, -1, -1], [1, -1, 1, -1]]).reshape(2, 4, 1, 1, 1)
    x0 = 0.5 * x0 * jnp.ones((4, 2, 2, 3))
    denoised = (x0 + sigma * eps) * 0.25 / (0.25 + sigma**2)
    weight = noise.edm_weight(jnp.full(4, sigma), sigma_data=0.5)
    loss = denoising.denoising_loss(x0, denoised, weight)
    np.testing.assert_allclose(loss.mean(), 12, rtol=1e-10)


def test_weight_with_image_axes_is_refused():
    images = jnp.ones((2, 4, 4, 3))
    with pytest.raises(TypeCheckError):
        denoising.denoising_loss(images, images, jnp.ones((2, 1, 1, 1)))
