"""Distances d(y) and their gradients against closed forms, for every entry of DISTANCES."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from simjax.losses import distances


def norm(y):
    return np.sqrt(np.sum(y**2))


# name: (options, d, d'). Collection fails if an entry of DISTANCES is missing here.
CLOSED_FORMS = {
    "l2_squared": [({}, lambda y: norm(y) ** 2, lambda y: 2 * y)],
    "power": [
        ({"exponent": 1.0}, lambda y: norm(y), lambda y: y / norm(y)),
        ({"exponent": 1.5}, lambda y: norm(y) ** 1.5, lambda y: 1.5 * y / norm(y) ** 0.5),
        ({"exponent": 2.0}, lambda y: norm(y) ** 2, lambda y: 2 * y),
        ({"exponent": 3.0}, lambda y: norm(y) ** 3, lambda y: 3 * y * norm(y)),
    ],
    "pseudo_huber": [
        (
            {"c": c},
            lambda y, c=c: np.sqrt(norm(y) ** 2 + c**2) - c,
            lambda y, c=c: y / np.sqrt(norm(y) ** 2 + c**2),
        )
        for c in (0.001, 0.3, 10.0)
    ],
    "huber": [
        (
            {"delta": 0.7},
            lambda y: sum(v**2 / 2 if abs(v) < 0.7 else 0.7 * (abs(v) - 0.35) for v in y.ravel()),
            lambda y: np.clip(y, -0.7, 0.7),
        )
    ],
    "l1": [({}, lambda y: np.sum(np.abs(y)), np.sign)],
    "exponential": [
        (
            {"exponent": 1.5, "rate": 0.2},
            lambda y: np.exp(0.2 * norm(y) ** 1.5) - 1,
            lambda y: 0.3 * y / norm(y) ** 0.5 * np.exp(0.2 * norm(y) ** 1.5),
        ),
        (
            {"exponent": 1.0, "rate": 0.5},
            lambda y: np.exp(0.5 * norm(y)) - 1,
            lambda y: 0.5 * y / norm(y) * np.exp(0.5 * norm(y)),
        ),
    ],
}
CASES = [
    pytest.param(distances.bind(name, **options), value, gradient, id=f"{name}-{options}")
    for name in distances.DISTANCES
    for options, value, gradient in CLOSED_FORMS[name]
]
every_case = pytest.mark.parametrize(("distance", "value", "gradient"), CASES)


@every_case
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_value_and_gradient_are_the_closed_forms(distance, value, gradient, scale):
    y = scale * np.random.default_rng(0).normal(size=(2, 3, 2))
    np.testing.assert_allclose(distance(jnp.asarray(y)), value(y), rtol=1e-9)
    np.testing.assert_allclose(jax.grad(distance)(jnp.asarray(y)), gradient(y), rtol=1e-9)


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distance_and_gradient_are_zero_at_zero(distance, value, gradient, dtype):
    zero = jnp.zeros((2, 2, 3), dtype)
    assert distance(zero) == 0
    np.testing.assert_array_equal(jax.grad(distance)(zero), zero)


@every_case
def test_distance_is_positive_elsewhere(distance, value, gradient):
    for size in (1e-6, 1.0, 10.0):
        y = jnp.zeros((2, 2, 3)).at[1, 0, 2].set(-size)
        assert distance(y) > 0
        assert jax.grad(distance)(y)[1, 0, 2] < 0


def test_pseudo_huber_does_not_cancel_near_zero_in_float32():
    y = jnp.full((1, 1, 1), 1e-5, jnp.float32)
    expected = 1e-10 / 2  # y^2 / (2 c), c = 1; sqrt(y^2 + 1) - 1 would be 0
    np.testing.assert_allclose(distances.pseudo_huber(y, c=1.0), expected, rtol=1e-5)


def test_bind_ignores_options_of_other_distances():
    y = jnp.ones((1, 1, 1))
    everything = {"c": 0.5, "delta": 0.25, "exponent": 3.0, "rate": 2.0}
    assert distances.bind("l2_squared", **everything).keywords == {}
    assert distances.bind("huber", **everything).keywords == {"delta": 0.25}
    assert distances.bind("exponential", **everything).keywords == {"exponent": 3.0, "rate": 2.0}
    assert distances.bind("pseudo_huber", **everything)(y) == distances.pseudo_huber(y, c=0.5)


def test_an_array_of_integers_is_refused():
    with pytest.raises(TypeCheckError):
        distances.l2_squared(jnp.ones((2, 2, 1), int))
