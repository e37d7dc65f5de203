"""The Diff-Instruct loss: gradient of the KL divergence, none through the networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from simjax.losses import diff_instruct
from tests.helpers import analytic


def test_gradient_is_the_weighted_gap_in_x0_and_zero_in_the_denoisers():
    x0, d_teacher, d_fake = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 3))
    weight = jnp.array([1.0, 2.5])

    def total(*images):
        return diff_instruct.generator_loss(*images, weight).sum()

    in_x0, in_teacher, in_fake = jax.grad(total, argnums=(0, 1, 2))(x0, d_teacher, d_fake)
    expected = weight[:, None, None, None] * (d_fake - d_teacher)
    np.testing.assert_allclose(in_x0, expected, rtol=1e-12)
    np.testing.assert_array_equal(in_teacher, jnp.zeros_like(x0))
    np.testing.assert_array_equal(in_fake, jnp.zeros_like(x0))


@pytest.mark.parametrize("name", ["location", "scale"])
def test_gradient_is_sigma_squared_times_that_of_the_kl_divergence_between_gaussians(name):
    # KL(N(m, v) || N(-0.5, u)) = log(u / v) / 2 + (v + (m + 0.5)^2) / (2 u) - 1 / 2.
    world = analytic.WORLDS[name]
    nodes = analytic.draws(world)

    def expected_loss(theta):
        images = analytic.images(world, theta, nodes)
        return nodes.weight @ diff_instruct.generator_loss(*images, jnp.ones(nodes.z.shape))

    m, s, sigma = 0.4, np.sqrt(0.8), world.sigma
    v, u = 0.8 + sigma**2, 1.3 + sigma**2
    kl_gradient = {"location": (m + 0.5) / u, "scale": s / u - s / v}[name]
    actual = jax.grad(expected_loss)(jnp.asarray(world.theta0))
    np.testing.assert_allclose(actual, [sigma**2 * kl_gradient], rtol=1e-10)


def test_loss_is_summed_over_the_elements_of_each_example():
    x0 = jnp.arange(8.0).reshape(2, 2, 2, 1)
    loss = diff_instruct.generator_loss(x0, jnp.zeros_like(x0), jnp.ones_like(x0), jnp.ones(2))
    np.testing.assert_array_equal(loss, [0 + 1 + 2 + 3, 4 + 5 + 6 + 7])


def test_weight_with_image_axes_is_refused():
    images = jnp.ones((2, 4, 4, 3))
    with pytest.raises(TypeCheckError):
        diff_instruct.generator_loss(images, images, images, jnp.ones((2, 1, 1, 1)))
