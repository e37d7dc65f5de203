"""EDM's sampler on Gaussian data, where the ODE, and the variance under churn, are closed forms.

Data N(0, s^2): D(xt; sigma) = xt s^2 / (s^2 + sigma^2), and along the probability-flow ODE
dxt/dsigma = (xt - D) / sigma, the ratio xt / sqrt(s^2 + sigma^2) is constant.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax.diffusion import sampler, schedule
from simjax.diffusion.sampler import Churn

S = 0.5


def denoise(xt, sigma):
    return xt * S**2 / (S**2 + sigma[:, None, None, None] ** 2)


def marginal_std(sigma):
    return np.sqrt(S**2 + sigma**2)


def impulse(index, steps):
    """An image of steps + 1 elements, 1 at one of them.

    The sampler is linear in z and in each step's noise. With z and every noise at elements of their
    own, the sum of squares of the result is its exact variance under independent N(0, 1) draws.
    """
    return jnp.eye(steps + 1)[index].reshape(1, 1, steps + 1, 1)


def variance_with_churn(sigmas, churn):
    steps = len(sigmas)
    z = impulse(steps, steps) * marginal_std(sigmas[0]) / sigmas[0]  # starts on the marginal law
    draw_noise = lambda index: impulse(index, steps)  # noqa: E731
    result = sampler.heun(denoise, z, sigmas, churn=churn, draw_noise=draw_noise)
    return float(jnp.sum(result**2))


@pytest.mark.parametrize(("alpha", "order"), [(1.0, 2), (2 / 3, 2), (0.5, 3)])
def test_error_on_the_known_solution_falls_with_the_order_of_the_method(alpha, order):
    # Second order; on this ODE the midpoint rule's leading error happens to vanish.
    z = jnp.array([1.0, -0.3]).reshape(2, 1, 1, 1)
    top, bottom = 3.0, 0.2
    solution = top * z * marginal_std(bottom) / marginal_std(top)
    expected = denoise(solution, jnp.full(2, bottom))  # the last step, to sigma = 0, is Euler's

    def error(intervals):
        sigmas = jnp.linspace(top, bottom, intervals + 1)
        return jnp.max(jnp.abs(sampler.heun(denoise, z, sigmas, alpha=alpha) - expected))

    errors = [error(intervals) for intervals in (32, 64, 128)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    np.testing.assert_allclose(orders, order, atol=0.15)


def test_edms_ladder_leads_to_the_known_solution_without_noise():
    z = jnp.array([1.0, -0.3]).reshape(2, 1, 1, 1)
    result = sampler.heun(denoise, z, schedule.karras_ladder(100))
    np.testing.assert_allclose(result, 80 * z * S / marginal_std(80), rtol=2e-3)


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_denoiser_is_evaluated_twice_a_step_and_once_at_the_last(steps):
    seen = []

    def counted(xt, sigma):
        seen.append(float(sigma[0]))
        return denoise(xt, sigma)

    sigmas = schedule.karras_ladder(steps)
    with jax.disable_jit():  # lax.scan becomes a Python loop
        sampler.heun(counted, jnp.ones((1, 1, 1, 1)), sigmas)
    assert len(seen) == 2 * steps - 1
    np.testing.assert_allclose(seen[0::2], sigmas, rtol=1e-9)
    np.testing.assert_allclose(seen[1::2], sigmas[1:], rtol=1e-9)


def test_one_step_is_the_denoiser_at_the_first_level():
    z = jnp.array([1.0, -2.0]).reshape(2, 1, 1, 1)
    result = sampler.heun(denoise, z, jnp.array([2.5]))
    np.testing.assert_allclose(result, denoise(2.5 * z, jnp.full(2, 2.5)), rtol=1e-12)


def test_churn_keeps_the_marginal_variance():
    # What a churned step adds to the variance, the wider step back removes, up to the error of
    # second order that the deterministic sampler has too.
    errors = []
    for steps in (60, 120):
        sigmas = schedule.karras_ladder(steps, sigma_min=0.001, sigma_max=20.0)
        errors.append(abs(variance_with_churn(sigmas, Churn(amount=10.0)) / S**2 - 1))
    assert errors[1] < 5e-3
    assert 3 < errors[0] / errors[1] < 5


@pytest.mark.parametrize(("amount", "raised"), [(0.3, 1.3), (10.0, math.sqrt(2))])
@pytest.mark.parametrize("inflation", [1.0, 1.007])
def test_churn_raises_sigma_by_gamma_which_is_capped(amount, raised, inflation):
    # One step from sigma: variance of xt, then the denoiser at the raised level.
    sigma = 2.0
    top = raised * sigma
    variance = S**2 + sigma**2 + inflation**2 * (top**2 - sigma**2)
    expected = variance * (S**2 / (S**2 + top**2)) ** 2
    churn = Churn(amount=amount, inflation=inflation)
    np.testing.assert_allclose(variance_with_churn(jnp.array([sigma]), churn), expected, rtol=1e-12)


@pytest.mark.parametrize("churn", [Churn(2.0, low=100.0), Churn(2.0, high=1e-4)])
def test_churn_outside_its_range_of_sigma_does_nothing(churn):
    sigmas = schedule.karras_ladder(6)
    z = jnp.ones((1, 1, 1, 1))
    churned = sampler.heun(denoise, z, sigmas, churn=churn, draw_noise=lambda index: z)
    np.testing.assert_allclose(churned, sampler.heun(denoise, z, sigmas), rtol=1e-12)


def test_churn_draws_another_noise_at_each_step_within_its_range():
    sigmas = jnp.array([8.0, 4.0, 2.0, 1.0])
    z = jnp.zeros((1, 1, 5, 1))
    churn = Churn(amount=1.0, low=1.5, high=5.0)
    result = sampler.heun(denoise, z, sigmas, churn=churn, draw_noise=lambda i: impulse(i, 4))
    np.testing.assert_array_equal(result.ravel() != 0, [False, True, True, False, False])


def test_churn_without_noise_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="needs draw_noise"):
        sampler.heun(denoise, jnp.ones((1, 1, 1, 1)), jnp.ones(2), churn=Churn(amount=1.0))
