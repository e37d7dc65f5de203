"""The SIM loss: its gradient equals the divergence's (Theorem 3.1), for every distance."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from simjax.losses import distances, sim
from tests.helpers import analytic, theorem
from tests.helpers.theorem import Case

# Options of each distance and arguments of theorem.Case: the |y| where it is not smooth, and the
# jump of d' at 0. Collection fails if an entry of DISTANCES is missing here.
SETTINGS: dict[str, list[tuple[dict, dict]]] = {
    "l2_squared": [({}, {})],
    "power": [
        ({"exponent": 1.0}, {"jump": 2.0}),
        ({"exponent": 1.5}, {}),
        ({"exponent": 2.0}, {}),
        ({"exponent": 3.0}, {}),
    ],
    "pseudo_huber": [
        ({"c": 0.3}, {}),
        ({"c": 0.001}, {"levels": (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)}),
    ],
    "huber": [({"delta": 0.3}, {"levels": (0.0, 0.3)})],
    "l1": [({}, {"jump": 2.0})],
    "exponential": [
        ({"exponent": 1.0, "rate": 0.1}, {"jump": 0.2}),
        ({"exponent": 1.5, "rate": 0.1}, {}),
        ({"exponent": 2.0, "rate": 0.1}, {}),
    ],
}


def linex(y):
    """A user-defined distance that is not even in y: e^y - y - 1."""
    return jnp.sum(jnp.expm1(y) - y)


def cases() -> Iterator:
    for name in distances.DISTANCES:
        for options, behaviour in SETTINGS[name]:
            label = "-".join([name, *(f"{key}={value}" for key, value in options.items())])
            yield pytest.param(Case(distances.bind(name, **options), **behaviour), id=label)
    yield pytest.param(Case(linex), id="user")


@pytest.mark.parametrize("units", theorem.UNITS)
@pytest.mark.parametrize("world", analytic.WORLDS.values(), ids=analytic.WORLDS)
@pytest.mark.parametrize("case", list(cases()))
def test_gradient_is_that_of_the_divergence_at_a_fixed_sampling_distribution(case, world, units):
    # Where d' jumps at 0 (l1, exponent 1) autodiff misses a delta function. The check adds its
    # closed form, so it holds in all three families, and in the location family without it.
    theorem.assert_loss_has_the_divergence_gradient(sim.generator_loss, world, case, units)


def test_autodiff_misses_jumps_of_d_prime_except_in_a_location_family():
    # Scale family: y has one root, and given xt the variance of z is sigma^2 / v.
    theta, sigma = np.sqrt(0.8), 0.7
    v, u = 0.8 + sigma**2, 1.3 + sigma**2
    root = (0.4 / v + 0.5 / u) / (1 / v - 1 / u)
    density = np.exp(-((root - 0.4) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
    expected = -density * theta / v  # minus: y falls with xt, as v < u
    np.testing.assert_allclose(theorem.unseen_by_autodiff(analytic.SCALE), [expected], rtol=1e-9)
    np.testing.assert_allclose(theorem.unseen_by_autodiff(analytic.LOCATION), [0.0], atol=1e-15)
    assert np.all(np.abs(theorem.unseen_by_autodiff(analytic.MIXTURE)) > 1e-3)


def test_gradient_has_the_spot_value_of_two_gaussians():
    # p = N(0.4, 0.8), q = N(-0.5, 1.3), variances, sigma = 0.7, c = 0.3: the location world.
    # The value is E d'(y) / (0.8 + sigma^2), as ds_p/d(mean) = 1 / (0.8 + sigma^2).
    distance = distances.bind("pseudo_huber", c=0.3)
    gradient = theorem.loss_gradient(
        sim.generator_loss, analytic.LOCATION, distance, "score", levels=(0.0,)
    )
    np.testing.assert_allclose(gradient / theorem.WEIGHT, [0.604575995], atol=1e-9)


@pytest.mark.parametrize("world", analytic.WORLDS.values(), ids=analytic.WORLDS)
@pytest.mark.parametrize(
    "u",
    [jnp.ones_like, lambda x: x, jnp.sin, lambda x: jnp.exp(-(x**2)), lambda x: (x > 0.3) * x**2],
    ids=["1", "x", "sin", "exp", "half-parabola"],
)
def test_score_projection_vanishes_for_every_function_of_xt(u, world):
    # E u(xt) (s_p(xt) - grad log q(xt | x0)) = 0, with grad log q(xt | x0) = -eps / sigma.
    nodes = analytic.draws(world)
    xt = analytic.generate(world.frozen, nodes) + world.sigma * nodes.eps
    bracket = analytic.score(world.frozen, world.sigma, xt) + nodes.eps / world.sigma
    size = nodes.weight @ (u(xt) * bracket) ** 2
    assert size > 0.01
    np.testing.assert_allclose(nodes.weight @ (u(xt) * bracket), 0, atol=1e-12)


@pytest.mark.parametrize("world", analytic.WORLDS.values(), ids=analytic.WORLDS)
def test_the_analytic_score_is_the_gradient_of_a_normalised_log_density(world):
    xt, dx = analytic.panels(world)
    gradient_of = jax.vmap(jax.grad(analytic.log_density, argnums=2), (None, None, 0))
    for law in (world.frozen, world.teacher):
        gradient = gradient_of(law, world.sigma, xt)
        np.testing.assert_allclose(analytic.score(law, world.sigma, xt), gradient, atol=1e-12)
    mass = dx @ jnp.exp(analytic.log_density(world.frozen, world.sigma, xt))
    np.testing.assert_allclose(mass, 1, rtol=1e-12)


def test_denoiser_units_are_score_units_with_c_over_sigma_squared_at_weight_sigma_squared():
    x0, d_teacher, d_fake = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 3))
    sigma, sigma_squared = jnp.full(2, 0.6), 0.36
    in_score = sim.generator_loss(
        *sim.score_units(sigma, x0, d_teacher, d_fake),
        sigma**2,
        distance=distances.bind("pseudo_huber", c=0.3 / sigma_squared),
    )
    distance = distances.bind("pseudo_huber", c=0.3)
    in_denoiser = sim.generator_loss(x0, d_teacher, d_fake, jnp.ones(2), distance=distance)
    np.testing.assert_allclose(in_score, in_denoiser, rtol=1e-12)


def test_score_units_divide_each_example_by_its_own_sigma_squared():
    images = jnp.ones((2, 1, 1, 3))
    (scaled,) = sim.score_units(jnp.array([0.5, 2.0]), images)
    np.testing.assert_array_equal(scaled[:, 0, 0, 0], [4.0, 0.25])


@pytest.mark.parametrize("name", distances.DISTANCES)
def test_the_norm_is_per_example(name):
    x0, d_teacher, d_fake = np.random.default_rng(1).normal(size=(3, 4, 2, 2, 3))
    weight = jnp.array([1.0, 0.5, 2.0, 3.0])
    distance = distances.bind(name, **SETTINGS[name][0][0])
    arrays = (x0, d_teacher, d_fake, weight)
    together = sim.generator_loss(*arrays, distance=distance)
    for i in range(4):
        alone = sim.generator_loss(*(a[i : i + 1] for a in arrays), distance=distance)
        np.testing.assert_allclose(alone, together[i : i + 1], rtol=1e-12)


@pytest.mark.parametrize(
    "shapes",
    [((2, 4, 4, 3), (2, 1, 1, 1)), ((2, 4, 4, 3), (3,)), ((2, 4, 4, 1), (2,)), ((4, 4, 3), (2,))],
    ids=["weight of rank 4", "other batch", "other channels", "no batch axis"],
)
def test_wrong_shapes_are_refused(shapes):
    fake, weight = shapes
    images = jnp.ones((2, 4, 4, 3))
    with pytest.raises(TypeCheckError):
        sim.generator_loss(
            images, images, jnp.ones(fake), jnp.ones(weight), distance=distances.l2_squared
        )
