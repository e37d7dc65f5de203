"""One-dimensional Gaussian mixtures with exact scores and exact expected losses.

Teacher q and generator p_theta are Gaussian mixtures: component k of p_theta makes
x0 = mean_k(theta) + std_k(theta) z. Expectations over (k, z, eps) are quadratures without sampling
noise: Gauss-Legendre panels in xt, split at the kinks of the loss, and, given xt, two Gauss-Hermite
nodes in z for each k. Two are exact: the loss is linear in x0 at fixed xt and x0 is linear in z, so
the theta-derivative at theta0 is quadratic in z.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq


class Mixture(NamedTuple):
    """A Gaussian mixture; one component is a Gaussian."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]


class World(NamedTuple):
    """A generator at theta0, the teacher's distribution of clean data, and one noise level."""

    generator: Callable[..., Mixture]  # theta -> p_theta
    theta0: tuple[float, ...]
    teacher: Mixture
    sigma: float

    @property
    def frozen(self) -> Mixture:
        return self.generator(self.theta0)


class Nodes(NamedTuple):
    """Quadrature nodes of the generator's samples: component k, z and eps, each (n,)."""

    weight: np.ndarray
    component: np.ndarray
    z: np.ndarray
    eps: np.ndarray


# p = N(0.4, 0.8) and q = N(-0.5, 1.3), variances.
Q = Mixture((1.0,), (-0.5,), (math.sqrt(1.3),))
LOCATION = World(lambda t: Mixture((1.0,), (t[0],), (math.sqrt(0.8),)), (0.4,), Q, sigma=0.7)
SCALE = World(lambda t: Mixture((1.0,), (0.4,), (t[0],)), (math.sqrt(0.8),), Q, sigma=0.7)
MIXTURE = World(
    lambda t: Mixture((0.35, 0.65), (t[0], t[1]), (t[2], t[3])),  # theta sets every mean and std
    (-1.1, 0.9, 0.5, 0.8),
    Mixture((0.5, 0.3, 0.2), (-0.8, 0.6, 2.0), (0.6, 0.4, 0.9)),
    0.6,
)
WORLDS = {"location": LOCATION, "scale": SCALE, "mixture": MIXTURE}


@jax.jit
def log_density(law: Mixture, sigma: float, xt):
    """log of the density of law * N(0, sigma^2), for xt of any shape."""
    return jax.nn.logsumexp(_log_joint(law, sigma, xt), axis=-1)


@jax.jit
def score(law: Mixture, sigma: float, xt):
    """d/dxt log_density: the posterior mean over components of (mean - xt) / (std^2 + sigma^2)."""
    posterior = jax.nn.softmax(_log_joint(law, sigma, xt), axis=-1)
    variance = jnp.asarray(law.stds) ** 2 + sigma**2
    return jnp.sum(posterior * (jnp.asarray(law.means) - xt[..., None]) / variance, axis=-1)


def denoise(law: Mixture, sigma: float, xt):
    """E[x0 | xt] by Tweedie's formula."""
    return xt + sigma**2 * score(law, sigma, xt)


def score_gap(world: World, xt):
    """y = s_p - s_q at theta0."""
    return score(world.frozen, world.sigma, xt) - score(world.teacher, world.sigma, xt)


def draws(world: World, levels: tuple[float, ...] = ()) -> Nodes:
    """Nodes over (k, z, eps) for integrands with kinks at |score_gap| in `levels`."""
    xt, dx = panels(world, levels)
    nodes = posterior(world, xt)
    density = np.exp(log_density(world.frozen, world.sigma, jnp.asarray(xt)))
    return nodes._replace(weight=nodes.weight * np.repeat(dx * density, nodes.z.size // xt.size))


def posterior(world: World, xt: np.ndarray) -> Nodes:
    """Nodes over (k, z, eps) given xt at theta0, xt[0]'s first; weights sum to 1 per xt."""
    law, sigma = world.frozen, world.sigma
    means, stds = np.asarray(law.means)[:, None], np.asarray(law.stds)[:, None]  # (k, node)
    gauss, gauss_weight = np.polynomial.hermite_e.hermegauss(2)
    component_weight = jax.nn.softmax(_log_joint(law, sigma, jnp.asarray(xt)), axis=-1)
    xt = xt[:, None, None]  # (xt, k, node)
    centre = stds * (xt - means) / (stds**2 + sigma**2)
    z = centre + sigma / np.sqrt(stds**2 + sigma**2) * gauss
    weight = np.asarray(component_weight)[..., None] * gauss_weight / math.sqrt(2 * math.pi)
    component = np.broadcast_to(np.arange(len(law.means))[:, None], z.shape)
    eps = (xt - means - stds * z) / sigma
    return Nodes(*(array.ravel() for array in (weight, component, z, eps)))


def panels(world: World, levels: tuple[float, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Nodes xt and weights dx of Gauss-Legendre panels with edges at |score_gap| in `levels`.

    Within each panel xt = start + width t^2 (3 - 2t), quadratic at both ends, so that a singularity
    like |xt - end|^(-1/2), as in the gradient of ||y||^1.5, does not reduce the accuracy.
    """
    low, high = _span(world)
    kinks = sorted({x for level in levels for s in (-1, 1) for x in crossings(world, s * level)})
    uniform = np.linspace(low, high, 49 - len(kinks))  # always 48 panels: constant shapes
    edges = np.sort(np.concatenate([uniform, kinks]))
    t, weight = np.polynomial.legendre.leggauss(16)
    t, weight = (t + 1) / 2, weight / 2
    start, width = edges[:-1, None], np.diff(edges)[:, None]
    return (start + width * t**2 * (3 - 2 * t)).ravel(), (width * 6 * t * (1 - t) * weight).ravel()


@functools.cache
def crossings(world: World, level: float) -> tuple[float, ...]:
    """The roots of score_gap = level, ascending."""
    grid = np.linspace(*_span(world), 2001)
    sign = np.sign(np.asarray(score_gap(world, jnp.asarray(grid))) - level)

    def excess(x: float) -> float:
        return float(score_gap(world, jnp.asarray(x))) - level

    changes = np.flatnonzero(sign[:-1] != sign[1:])
    return tuple(brentq(excess, grid[i], grid[i + 1], xtol=1e-15) for i in changes)


def generate(law: Mixture, nodes: Nodes):
    """x0 of each node, shape (n,)."""
    means, stds = jnp.asarray(law.means), jnp.asarray(law.stds)
    return means[nodes.component] + stds[nodes.component] * nodes.z


def images(world: World, theta, nodes: Nodes, fake_score: Mixture | None = None):
    """x0, D_teacher(xt), D_fake(xt) of each node, (n, 1, 1, 1), as functions of theta.

    The networks are frozen: the fake score is that of p_theta0 unless another is given.
    """
    x0 = generate(world.generator(theta), nodes)
    xt = x0 + world.sigma * nodes.eps
    d_teacher = denoise(world.teacher, world.sigma, xt)
    d_fake = denoise(fake_score or world.frozen, world.sigma, xt)
    return tuple(image.reshape(-1, 1, 1, 1) for image in (x0, d_teacher, d_fake))


def _log_joint(law: Mixture, sigma: float, xt):
    """log (weight_k N(xt; mean_k, std_k^2 + sigma^2)), with the components k last."""
    means, stds = jnp.asarray(law.means), jnp.asarray(law.stds)
    variance = stds**2 + sigma**2
    squared = (xt[..., None] - means) ** 2 / variance
    return jnp.log(jnp.asarray(law.weights)) - 0.5 * (squared + jnp.log(2 * math.pi * variance))


def _span(world: World) -> tuple[float, float]:
    """Interval of 12 standard deviations around every component; outside, density < 1e-31."""
    means, stds = np.asarray(world.frozen.means), np.asarray(world.frozen.stds)
    reach = 12 * np.hypot(stds, world.sigma)
    return np.min(means - reach), np.max(means + reach)
