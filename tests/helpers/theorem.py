"""Checks SIM's Theorem 3.1: a generator loss has the gradient of the divergence.

    D(theta) = w E_{xt ~ pi} d(scale (s_p(xt) - s_q(xt))),   pi = law of xt at theta0, held fixed

with scale = 1 in score units and sigma^2 in denoiser units. In both, the loss on images in those
units has exactly the gradient of D, with factor 1. With u = d'(scale (s_p - s_q)) the loss is

    L = -w scale E u(xt) (s_p(xt) + eps / sigma)

By score projection, E u (s_theta + eps / sigma) = 0 at every theta, so the gradient through the
sampling distribution is minus the gradient through s_theta: grad L = w scale E u ds_theta/dtheta
= grad D. The divergences in the two units differ: d(sigma^2 y) replaces d(y).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simjax.losses import sim
from simjax.losses.distances import Distance
from tests.helpers import analytic
from tests.helpers.analytic import World

WEIGHT = 1.7  # w(sigma), any positive number but 1
UNITS: dict[str, Callable[[float], float]] = {
    "score": lambda sigma: 1.0,
    "denoiser": lambda sigma: sigma**2,
}


class Case(NamedTuple):
    """A distance, and the singularities of its derivatives."""

    distance: Distance
    levels: tuple[float, ...] = (0.0,)  # |y| where d'' has a kink, a pole or a fast change
    jump: float = 0.0  # d'(0+) - d'(0-)


def assert_loss_has_the_divergence_gradient(
    loss: Callable, world: World, case: Case, units: str, *, fake_score_moves: bool = False
):
    """Asserts Theorem 3.1 for a generator loss, to 1e-6 of the gradient's norm."""
    scale = UNITS[units](world.sigma)
    levels = tuple(level / scale for level in case.levels)
    actual = loss_gradient(loss, world, case.distance, units, levels, fake_score_moves)
    if case.jump:
        actual = actual + WEIGHT * case.jump * scale * unseen_by_autodiff(world)
    expected = divergence_gradient(world, case.distance, scale, levels)
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < 1e-6, f"gradient {actual} instead of {expected}, relative error {error:.1e}"


def loss_gradient(
    loss: Callable,
    world: World,
    distance: Distance,
    units: str,
    levels: tuple[float, ...],
    fake_score_moves: bool = False,
) -> np.ndarray:
    """d/dtheta of the expected loss over the generator's samples (k, z, eps)."""
    nodes = analytic.draws(world, levels)
    sigma = jnp.full(nodes.z.shape, world.sigma)

    def expected_loss(theta):
        fake_score = world.generator(theta) if fake_score_moves else None
        images = analytic.images(world, theta, nodes, fake_score)
        if units == "score":
            images = sim.score_units(sigma, *images)
        return nodes.weight @ loss(*images, jnp.full_like(sigma, WEIGHT), distance=distance)

    return np.asarray(jax.grad(expected_loss)(jnp.asarray(world.theta0)))


def divergence_gradient(
    world: World, distance: Distance, scale: float, levels: tuple[float, ...]
) -> np.ndarray:
    """d/dtheta of D(theta), through the score inside d only."""
    xt, dx = analytic.panels(world, levels)
    law = np.exp(analytic.log_density(world.frozen, world.sigma, xt))

    def divergence(theta):
        s_p = analytic.score(world.generator(theta), world.sigma, xt)
        y = scale * (s_p - analytic.score(world.teacher, world.sigma, xt))
        return WEIGHT * (dx * law) @ jax.vmap(distance)(y.reshape(-1, 1, 1, 1))

    return np.asarray(jax.grad(divergence)(jnp.asarray(world.theta0)))


@functools.cache
def unseen_by_autodiff(world: World) -> np.ndarray:
    """Contribution of a unit jump of d' at y = 0 to the gradient, in score units.

    At the jump d'' has a delta function, which autodiff misses. Its contribution is

        -E delta(y) y' dx0/dtheta (s_p + eps / sigma)
            = sum over roots r of y:  pi(r) sign(y'(r)) Cov(dx0/dtheta, x0 | xt = r) / sigma^2,

    as s_p = E[-eps / sigma | xt] and eps = (xt - x0) / sigma. It is 0 for a location family.
    """
    roots = np.asarray(analytic.crossings(world, 0.0))
    nodes = analytic.posterior(world, roots)
    sign = np.sign(jax.vmap(jax.grad(lambda x: analytic.score_gap(world, x)))(roots))
    law = np.exp(analytic.log_density(world.frozen, world.sigma, roots))
    weight = nodes.weight.reshape(len(roots), -1)
    x0 = analytic.generate(world.frozen, nodes).reshape(len(roots), -1)
    centred = x0 - jnp.sum(weight * x0, axis=1, keepdims=True)

    def covariance(theta):  # its theta-derivative is Cov(dx0/dtheta, x0 | xt = r), summed over r
        moving = analytic.generate(world.generator(theta), nodes).reshape(len(roots), -1)
        return (law * sign) @ jnp.sum(weight * moving * centred, axis=1)

    return np.asarray(jax.grad(covariance)(jnp.asarray(world.theta0))) / world.sigma**2
