"""Noise levels: closed forms of sigma laws and ladders, and draws against the CDFs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from simjax.diffusion import precondition, schedule

# (Highest, lowest) level. Collection fails if an entry of LADDERS is missing here.
LADDER_ENDS = {  # EDM table 1; for VP, beta_d = 19.9, beta_min = 0.1 at t = 1 and at t = 1e-3
    "karras": (80, 0.002),
    "vp": (math.sqrt(math.exp(10.05) - 1), math.sqrt(math.exp(1.0995e-4) - 1)),
    "ve": (100, 0.02),
    "iddpm": (80.2037, 0.0064),
    "ddpm_linear": (156.6155, 0.1759),  # at time steps 999 and 50, for 20 steps
    "flow": (999.0, 0.04995 / 0.95005),  # u = 0.999 and 0.999 / 20, for 20 steps
    "flow_sde": (999.0, 0.04 / 0.96),
}
ENDS = [
    pytest.param(ladder, LADDER_ENDS[name], id=name) for name, ladder in schedule.LADDERS.items()
]


def karras_time(sigma, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """The inverse of schedule.karras."""
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (sigma ** (1 / rho) - bottom) / (top - bottom)


def of_table(sigma, levels):
    """CDF of a uniform choice among descending levels, smoothed by half a step."""
    return np.interp(sigma, levels[::-1], (np.arange(len(levels)) + 0.5) / len(levels))


# (options, CDF) of each law. Collection fails if an entry of SIGMA_LAWS is missing here.
CDFS = {
    "lognormal": [
        ({}, lambda sigma: stats.norm.cdf((np.log(sigma) + 1.2) / 1.2)),
        ({"shift": 3.0}, lambda sigma: stats.norm.cdf((np.log(sigma / 3) + 1.2) / 1.2)),
        ({"mean": -3.5, "std": 2.5}, lambda sigma: stats.norm.cdf((np.log(sigma) + 3.5) / 2.5)),
    ],
    "karras": [
        ({}, lambda sigma: karras_time(sigma) / 0.8),
        ({"t_max": 1.0, "rho": 5.0}, lambda sigma: karras_time(sigma, rho=5.0)),
    ],
    "vp": [
        ({}, lambda sigma: schedule.vp_time(sigma)),
        ({"t_min": 0.5}, lambda sigma: 2 * schedule.vp_time(sigma) - 1),
    ],
    "ve": [
        ({}, lambda sigma: np.log(sigma / 0.02) / np.log(5000)),
        ({"sigma_min": 1, "sigma_max": 10}, lambda sigma: np.log10(sigma)),
    ],
    "uniform_time": [
        ({}, lambda sigma: (sigma / (1 + sigma) - 1e-3) / 0.998),
        (
            {"shift": 3.0, "u_min": 0.0, "u_max": 0.5},
            lambda sigma: 2 * (sigma / 3) / (1 + sigma / 3),
        ),
    ],
    "iddpm": [({}, lambda sigma: of_table(sigma, precondition.iddpm_levels()[8:-1]))],
    "ddpm_linear": [({}, lambda sigma: of_table(sigma, precondition.ddpm_linear_levels()[:-1]))],
}
CASES = [
    pytest.param(law, options, cdf, id=f"{name}-{options}")
    for name, law in schedule.SIGMA_LAWS.items()
    for options, cdf in CDFS[name]
]


@pytest.mark.parametrize(("law", "options", "cdf"), CASES)
def test_draws_follow_the_cdf(law, options, cdf):
    sigma = np.asarray(law(jax.random.key(0), 4000, **options), np.float64)
    assert sigma.shape == (4000,)
    assert stats.kstest(sigma, cdf).pvalue > 0.01  # with a fixed key


@pytest.mark.parametrize(
    ("law", "levels"),
    [
        (schedule.sample_iddpm, precondition.iddpm_levels()[8:-1]),  # j0 of EDM table 1
        (schedule.sample_ddpm_linear, precondition.ddpm_linear_levels()[:-1]),
    ],
)
def test_table_laws_draw_exactly_the_levels_of_the_table(law, levels):
    drawn = np.unique(law(jax.random.key(0), 20_000))
    np.testing.assert_array_equal(drawn, np.sort(levels))


def test_lognormal_is_the_exponential_of_a_scaled_normal():
    normal = jnp.array([-2.0, 0.0, 1.0])
    expected = np.exp([-3.6, -1.2, 0.0])
    np.testing.assert_allclose(schedule.lognormal(normal), expected, rtol=1e-12)
    expected = np.exp([-2 - 2 * 2, -2, -2 + 2])
    np.testing.assert_allclose(schedule.lognormal(normal, mean=-2, std=2), expected, rtol=1e-12)


def test_lognormal_is_clipped_to_the_given_range():
    normal = jnp.array([-9.0, 0.0, 9.0])
    sigma = schedule.lognormal(normal, mean=-2, std=2, low=0.01, high=156.6155)
    np.testing.assert_allclose(sigma, [0.01, np.exp(-2), 156.6155], rtol=1e-12)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_runs_from_sigma_min_at_t_0_to_sigma_max_at_t_1(rho):
    t = jnp.linspace(0, 1, 101)
    sigma = schedule.karras(t, sigma_min=0.01, sigma_max=50.0, rho=rho)
    np.testing.assert_allclose(sigma[jnp.array([0, -1])], [0.01, 50], rtol=1e-12)
    assert jnp.all(jnp.diff(sigma) > 0)
    np.testing.assert_allclose(karras_time(sigma, 0.01, 50.0, rho), t, atol=1e-12)


def test_karras_with_rho_1_is_linear():
    sigma = schedule.karras(jnp.array([0.0, 0.25, 1.0]), sigma_min=2, sigma_max=10, rho=1)
    np.testing.assert_allclose(sigma, [2, 4, 10])


def test_karras_ladder_is_edms_without_zero():
    # EDM eq. 5, i = 0 .. N - 1 with N = 18.
    i, rho = np.arange(18), 7
    expected = (80 ** (1 / rho) + i / 17 * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    ladder = schedule.karras_ladder(18)
    np.testing.assert_allclose(ladder, expected, rtol=1e-10)
    np.testing.assert_allclose(ladder[jnp.array([0, -1])], [80, 0.002], rtol=1e-12)


def test_vp_ladder_descends_from_time_1_to_eps_s_in_equal_steps():
    # EDM table 1: sigma(t) with beta_d = 19.9, beta_min = 0.1, t_i = 1 + i / (N - 1) (eps_s - 1).
    t = 1 + np.arange(10) / 9 * (1e-3 - 1)
    expected = np.sqrt(np.exp(19.9 / 2 * t**2 + 0.1 * t) - 1)
    np.testing.assert_allclose(schedule.vp_ladder(10), expected, rtol=1e-10)


def test_ve_ladder_descends_in_equal_ratios():
    # EDM table 1: sigma_i^2 = sigma_max^2 (sigma_min^2 / sigma_max^2)^(i / (N - 1)).
    variance = 100**2 * (0.02**2 / 100**2) ** (np.arange(10) / 9)
    np.testing.assert_allclose(schedule.ve_ladder(10), np.sqrt(variance), rtol=1e-10)


@pytest.mark.parametrize("steps", [2, 10, 57])
def test_iddpm_ladder_selects_equally_spaced_levels_of_the_table(steps):
    # EDM table 1: u_floor(j0 + (M - 1 - j0) / (N - 1) i + 1 / 2), j0 = 8; u_M = 0 is left out.
    j = [math.floor(8 + 991 / (steps - 1) * i + 0.5) for i in range(steps)]
    np.testing.assert_array_equal(schedule.iddpm_ladder(steps), precondition.iddpm_levels()[j])


@pytest.mark.parametrize(("ladder", "ends"), ENDS)
def test_ladders_descend_between_their_ends(ladder, ends):
    levels = ladder(20)
    assert levels.shape == (20,)
    np.testing.assert_allclose(levels[jnp.array([0, -1])], ends, rtol=5e-3)
    assert jnp.all(jnp.diff(levels) < 0)
    np.testing.assert_array_equal(ladder(1), levels[:1])


@pytest.mark.parametrize(("beta_d", "beta_min"), [(19.9, 0.1), (5.0, 0.7)])
def test_vp_time_inverts_vp(beta_d, beta_min):
    t = np.array([1e-5, 1e-3, 0.1, 1.0])
    options = {"beta_d": beta_d, "beta_min": beta_min}
    sigma = schedule.vp(t, **options)
    np.testing.assert_allclose(sigma, np.sqrt(np.exp(beta_d / 2 * t**2 + beta_min * t) - 1))
    np.testing.assert_allclose(schedule.vp_time(sigma, **options), t, rtol=1e-12)


def test_vp_time_is_accurate_in_float32():
    t = np.array([1e-5, 1e-4, 1e-3], np.float32)
    np.testing.assert_allclose(schedule.vp_time(schedule.vp(t)), t, rtol=1e-6)


def test_draws_depend_on_the_key():
    for law in schedule.SIGMA_LAWS.values():
        first, again, other = (law(jax.random.key(seed), 8) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first, again)
        assert jnp.all(first != other)
