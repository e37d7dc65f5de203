"""The SiD loss: SIM with squared L2 at alpha = 1, and where the naive loss fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from simjax.losses import distances, sid, sim
from tests.helpers import analytic
from tests.helpers.analytic import Mixture, World


def failure_case(theta: float, sigma: float) -> World:
    """SiD Proposition 4: p_data = N(0, 1), generator theta + z, an optimal frozen fake score."""
    return World(
        lambda t: Mixture((1.0,), (t[0],), (1.0,)), (theta,), Mixture((1.0,), (0.0,), (1.0,)), sigma
    )


@pytest.fixture(params=[(-1.5, 0.4), (0.3, 0.7), (2.0, 3.0)], ids="theta,sigma={}".format)
def toy(request):
    """The failure case, its draws, and half the gradient of E ||D_fake - D_teacher||^2 in theta.

    The gap of the denoisers is sigma^2 theta / (1 + sigma^2), whatever xt.
    """
    theta, sigma = request.param
    world = failure_case(theta, sigma)
    return world, analytic.draws(world), theta * (sigma**2 / (1 + sigma**2)) ** 2


def gradient(world, nodes, loss):
    def expected_loss(theta):
        return nodes.weight @ loss(*analytic.images(world, theta, nodes))

    return jax.grad(expected_loss)(jnp.asarray(world.theta0))[0]


def test_naive_loss_has_no_gradient_in_proposition_4s_failure_case(toy):
    # The gap does not depend on xt, so all its gradient lies in the fake score, which is frozen.
    world, nodes, _ = toy
    naive = gradient(world, nodes, lambda x0, d_t, d_f: jnp.sum((d_f - d_t) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(naive, 0, atol=1e-12)


def test_sim_has_the_true_gradient_in_proposition_4s_failure_case(toy):
    world, nodes, half = toy
    options = {"distance": distances.l2_squared}
    weight = jnp.ones(nodes.z.shape)
    actual = gradient(world, nodes, lambda *a: sim.generator_loss(*a, weight, **options))
    np.testing.assert_allclose(actual, 2 * half, rtol=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid_has_the_true_gradient_over_2_omega_on_each_draw_of_the_failure_case(alpha, toy):
    # Independent of alpha: the gap has no gradient, so only D_teacher - x0 contributes.
    world, nodes, half = toy
    theta0 = jnp.asarray(world.theta0)

    def losses(theta):
        images = analytic.images(world, theta, nodes)
        return sid.generator_loss(*images, jnp.ones(nodes.z.shape), alpha=alpha)

    x0, d_teacher, _ = analytic.images(world, theta0, nodes)
    omega = jnp.maximum(jnp.abs(x0 - d_teacher).ravel(), 1e-5)
    per_draw = jax.jacfwd(losses)(theta0)[:, 0]
    np.testing.assert_allclose(per_draw * omega, jnp.full_like(omega, half), rtol=1e-9)


def test_alpha_1_is_sim_with_squared_l2_at_weight_over_2_omega():
    images = tuple(np.random.default_rng(0).normal(size=(3, 5, 4, 4, 3)))
    weight = jnp.array([1.0, 0.5, 2.0, 3.0, 0.1])
    x0, d_teacher, _ = images
    omega = jnp.mean(jnp.abs(x0 - d_teacher), axis=(1, 2, 3))

    def by_sid(images):
        return sid.generator_loss(*images, weight, alpha=1.0)

    def by_sim(images):  # no gradient through omega
        return sim.generator_loss(*images, weight / (2 * omega), distance=distances.l2_squared)

    np.testing.assert_allclose(by_sid(images), by_sim(images), rtol=1e-12)
    both = jax.jacrev(by_sid)(images), jax.jacrev(by_sim)(images)
    for actual, expected in zip(*both, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-14)


def test_omega_is_per_example_with_a_lower_bound():
    # Two elements each. First: gap (1, -2), D_teacher - x0 = (1, 1), omega = 1. Second: D_teacher =
    # x0, so omega is its lower bound 1e-5 and the loss is -alpha ||gap||^2 / omega.
    x0 = jnp.zeros((2, 1, 2, 1))
    d_teacher = jnp.array([[1.0, 1.0], [0.0, 0.0]]).reshape(2, 1, 2, 1)
    d_fake = jnp.array([[0.0, 3.0], [0.01, 0.0]]).reshape(2, 1, 2, 1)
    loss = sid.generator_loss(x0, d_teacher, d_fake, jnp.array([2.0, 3.0]), alpha=1.2)
    np.testing.assert_allclose(loss, [2 * (-1 - 1.2 * 5), 3 * -1.2 * 1e-4 / 1e-5], rtol=1e-12)


def test_weight_with_image_axes_is_refused():
    images = jnp.ones((2, 4, 4, 3))
    with pytest.raises(TypeCheckError):
        sid.generator_loss(images, images, images, jnp.ones((2, 1, 1, 1)), alpha=1.0)
