"""Samplers on Gaussian data: closed forms of the ODE solution and of the variance under churn.

Data N(0, S^2): D(xt; sigma) = xt S^2 / (S^2 + sigma^2), and along the probability-flow ODE
dxt/dsigma = (xt - D) / sigma, the ratio xt / sqrt(S^2 + sigma^2) is constant, on every path.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax.diffusion import sampler, schedule
from simjax.diffusion.sampler import EULER, PATHS, Churn, heun_stages

S = 0.5
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def denoise(xt, sigma):
    return xt * S**2 / (S**2 + sigma[:, None, None, None] ** 2)


def marginal_std(sigma):
    return np.sqrt(S**2 + sigma**2)


def vp_last_step(sigma):
    """s' and sigma' in closed form, for s = 1 / sqrt(1 + sigma^2) at beta_d = 19.9, beta_min = 0.1.

    t solves beta_d t^2 / 2 + beta_min t = log(1 + sigma^2).
    """
    t = (np.sqrt(0.1**2 + 2 * 19.9 * np.log(1 + sigma**2)) - 0.1) / 19.9
    s, d_sigma = (1 + sigma**2) ** -0.5, (19.9 * t + 0.1) * (1 + sigma**2) / (2 * sigma)
    return s + t * s**3 * sigma * d_sigma, t * s * d_sigma / sigma


# The Euler step to sigma = 0 is  a xt - b (xt - D(xt; sigma)); sigma -> (a, b). Collection fails if
# an entry of PATHS is missing here.
LAST_STEPS = {
    "edm": lambda sigma: (1, 1),  # t = sigma
    "ve": lambda sigma: (1, 0.5),  # t = sigma^2
    "vp": vp_last_step,
}
every_last_step = pytest.mark.parametrize(
    ("path", "last_step"), [(path, LAST_STEPS[name]) for name, path in PATHS.items()], ids=PATHS
)


def impulse(index, steps):
    """An image of steps + 1 elements, one-hot at `index`.

    The sampler is linear in z and in the noise of each step. With z and every noise in separate
    elements, the sum of squares of the result is its exact variance under independent N(0, 1)
    draws.
    """
    return jnp.eye(steps + 1)[index].reshape(1, 1, steps + 1, 1)


def variance_with_churn(sigmas, churn, path=PATHS["edm"]):
    steps = len(sigmas)
    z = (
        impulse(steps, steps) * marginal_std(sigmas[0]) / sigmas[0]
    )  # starts at the marginal distribution
    draw_noise = lambda index: impulse(index, steps)  # noqa: E731
    result = jax.jit(
        lambda: sampler.heun(denoise, z, sigmas, path=path, churn=churn, draw_noise=draw_noise)
    )()
    return float(jnp.sum(result**2))


@every_path
@pytest.mark.parametrize(
    ("stages", "order"),
    [(EULER, 1), (heun_stages(), 2), (heun_stages(2 / 3), 2), (heun_stages(0.5), 2)],
    ids=["euler", "heun", "two-thirds", "midpoint"],
)
def test_methods_converge_with_their_order(path, stages, order):
    if path is not PATHS["vp"] and stages[-1, 0] == 0.5:
        order = 3  # without a scale, the leading error of the midpoint rule vanishes here
    integrate = jax.jit(functools.partial(sampler.integrate, denoise, stages=stages, path=path))
    z = jnp.array([1.0, -0.3]).reshape(2, 1, 1, 1)
    top, bottom = 2.0, 0.5
    solution = top * z * marginal_std(bottom) / marginal_std(top)
    expected = integrate(solution / bottom, jnp.array([bottom]))  # the last step alone

    def error(intervals):
        times = jnp.linspace(*path.time(jnp.array([top, bottom])), intervals + 1)
        return jnp.max(jnp.abs(integrate(z, path.sigma(times)) - expected))

    errors = [error(intervals) for intervals in (64, 128, 256)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    np.testing.assert_allclose(orders, order, atol=0.15)


@every_last_step
@pytest.mark.parametrize("stages", [EULER, heun_stages(0.5)], ids=["euler", "midpoint"])
def test_last_step_is_an_euler_step_on_the_path(path, last_step, stages):
    z, sigma = jnp.array([1.0, -2.0]).reshape(2, 1, 1, 1), 2.5
    result = sampler.integrate(denoise, z, jnp.array([sigma]), stages=stages, path=path)
    keep, pull = last_step(sigma)
    xt = sigma * z
    expected = keep * xt - pull * (xt - denoise(xt, jnp.full(2, sigma)))
    np.testing.assert_allclose(result, expected, rtol=1e-12)


@every_path
def test_time_inverts_sigma_and_paths_end_at_sigma_0_and_scale_1(path):
    time = np.array([1e-5, 1e-3, 0.1, 0.5, 1.0])
    np.testing.assert_allclose(path.time(path.sigma(time)), time, rtol=1e-12)
    ends = [function(np.zeros(1))[0] for function in path]
    np.testing.assert_array_equal(ends, [0, 0, 1])


def test_vp_scale_and_sigma_follow_alpha_bar():
    time = np.array([1e-3, 0.1, 1.0])
    alpha_bar = np.exp(-19.9 / 2 * time**2 - 0.1 * time)  # exp of minus the integral of beta
    np.testing.assert_allclose(PATHS["vp"].scale(time), np.sqrt(alpha_bar), rtol=1e-12)
    sigma = PATHS["vp"].sigma(time)
    np.testing.assert_allclose(sigma, np.sqrt(1 / alpha_bar - 1), rtol=1e-9)


def test_heun_on_edms_ladder_reaches_the_closed_form():
    z = jnp.array([1.0, -0.3]).reshape(2, 1, 1, 1)
    result = sampler.heun(denoise, z, schedule.karras_ladder(100))
    np.testing.assert_allclose(result, 80 * z * S / marginal_std(80), rtol=2e-3)


@every_path
@pytest.mark.parametrize(("steps", "alpha"), [(1, 1.0), (2, 1.0), (7, 1.0), (7, 0.5)])
def test_heun_evaluates_the_denoiser_twice_a_step_and_once_at_the_last(path, steps, alpha):
    sigmas = schedule.karras_ladder(steps)
    seen = noise_levels_seen(functools.partial(sampler.heun, alpha=alpha, path=path), sigmas)
    time = path.time(sigmas)
    within = path.sigma(time[:-1] + alpha * jnp.diff(time))
    assert len(seen) == 2 * steps - 1
    np.testing.assert_allclose(seen[0::2], sigmas, rtol=1e-9)
    np.testing.assert_allclose(seen[1::2], within, rtol=1e-9)


@every_path
def test_euler_evaluates_the_denoiser_once_a_step(path):
    sigmas = schedule.karras_ladder(7)
    integrate = functools.partial(sampler.integrate, stages=EULER, path=path)
    np.testing.assert_allclose(noise_levels_seen(integrate, sigmas), sigmas, rtol=1e-9)


def noise_levels_seen(integrate, sigmas):
    seen = []

    def counted(xt, sigma):
        seen.append(float(sigma[0]))
        return denoise(xt, sigma)

    with jax.disable_jit():  # lax.scan becomes a Python loop
        integrate(counted, jnp.ones((1, 1, 1, 1)), sigmas)
    return seen


@pytest.mark.parametrize("stages", [EULER, heun_stages()])
@pytest.mark.parametrize("churn", [Churn(), Churn(amount=1.0)])
def test_program_contains_the_denoiser_once(stages, churn):
    # For compilation time and program size: the denoiser is traced once, the program has one erf.
    traces = []

    def marked(xt, sigma):
        traces.append(sigma)
        return jax.lax.erf(xt)

    def sample(z):
        ladder = schedule.karras_ladder(18)
        draw_noise = lambda index: z + index  # noqa: E731
        return sampler.integrate(
            marked, z, ladder, stages=stages, churn=churn, draw_noise=draw_noise
        )

    program = jax.jit(sample).lower(jnp.ones((1, 2, 2, 1))).as_text()
    assert len(traces) == 1
    assert program.count("erf") == 1


def test_churn_keeps_the_marginal_variance():
    # The longer denoising step removes the variance that churn adds, up to the second-order error
    # that the deterministic sampler has too.
    errors = []
    for steps in (60, 120):
        sigmas = schedule.karras_ladder(steps, sigma_min=0.001, sigma_max=20.0)
        errors.append(abs(variance_with_churn(sigmas, Churn(amount=10.0)) / S**2 - 1))
    assert errors[1] < 5e-3
    assert 3 < errors[0] / errors[1] < 5


@every_last_step
@pytest.mark.parametrize(("amount", "raised"), [(0.3, 1.3), (10.0, math.sqrt(2))])
@pytest.mark.parametrize("inflation", [1.0, 1.007])
def test_churn_raises_sigma_by_gamma_which_is_capped(path, last_step, amount, raised, inflation):
    # One step from sigma: variance of xt, then an Euler step from the raised level.
    sigma = 2.0
    top = raised * sigma
    variance = S**2 + sigma**2 + inflation**2 * (top**2 - sigma**2)
    keep, pull = last_step(top)
    expected = variance * (keep - pull * (1 - S**2 / (S**2 + top**2))) ** 2
    churn = Churn(amount=amount, inflation=inflation)
    result = variance_with_churn(jnp.array([sigma]), churn, path)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.parametrize("churn", [Churn(2.0, low=100.0), Churn(2.0, high=1e-4)])
def test_churn_outside_its_range_of_sigma_does_nothing(churn):
    sigmas = schedule.karras_ladder(6)
    z = jnp.ones((1, 1, 1, 1))
    churned = sampler.heun(denoise, z, sigmas, churn=churn, draw_noise=lambda index: z)
    np.testing.assert_allclose(churned, sampler.heun(denoise, z, sigmas), rtol=1e-12)


def test_churn_draws_new_noise_at_each_step_within_its_range():
    sigmas = jnp.array([8.0, 4.0, 2.0, 1.0])
    z = jnp.zeros((1, 1, 5, 1))
    churn = Churn(amount=1.0, low=1.5, high=5.0)
    result = sampler.heun(denoise, z, sigmas, churn=churn, draw_noise=lambda i: impulse(i, 4))
    np.testing.assert_array_equal(result.ravel() != 0, [False, True, True, False, False])


def test_churn_without_noise_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="needs draw_noise"):
        sampler.heun(denoise, jnp.ones((1, 1, 1, 1)), jnp.ones(2), churn=Churn(amount=1.0))


def test_dpm_solver_converges_with_second_order():
    start, exact = 10.0, S / marginal_std(10.0)
    errors = []
    for steps in (20, 40, 80):
        sigmas = jnp.geomspace(start, 1e-4, steps)
        z = jnp.ones((1, 1, 1, 1))
        found = float(sampler.dpm_solver(denoise, z, sigmas)[0, 0, 0, 0])
        errors.append(abs(found - start * exact))
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 2, atol=0.3)


def test_ddim_is_eulers_method_in_sigma():
    # DDIM (arXiv:2010.02502, eq. 12, eta = 0) with alpha = 1 / (1 + sigma^2), noise prediction.
    sigmas = jnp.array([5.0, 2.0, 0.5])
    z = jnp.linspace(-2, 2, 8).reshape(2, 2, 2, 1)
    x = sigmas[0] * z / jnp.sqrt(1 + sigmas[0] ** 2)
    for sigma, following in zip(sigmas, jnp.append(sigmas[1:], 0.0), strict=True):
        alpha, beyond = 1 / (1 + sigma**2), 1 / (1 + following**2)
        xt = x / jnp.sqrt(alpha)
        eps = (xt - denoise(xt, jnp.full(2, sigma))) / sigma
        x0 = (x - jnp.sqrt(1 - alpha) * eps) / jnp.sqrt(alpha)
        x = jnp.sqrt(beyond) * x0 + jnp.sqrt(1 - beyond) * eps
    np.testing.assert_allclose(sampler.euler(denoise, z, sigmas), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sampler.SOLVERS)
def test_nfe_of_a_solver_is_the_declared_one(name):
    solver = sampler.SOLVERS[name]
    calls = []

    def counted(xt, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return denoise(xt, sigma)

    z = jnp.ones((1, 1, 1, 1))
    noise = {"draw_noise": lambda step: z} if "draw_noise" in solver.options else {}
    jax.block_until_ready(solver.sample(counted, z, jnp.geomspace(9, 0.1, 5), **noise))
    jax.effects_barrier()
    assert len(calls) == solver.evaluations(5)
