"""Preconditioning: each family turns its training target into a denoiser in sigma-space."""

import jax.numpy as jnp
import numpy as np
import pytest

from simjax.diffusion import precondition
from simjax.diffusion.families import FAMILIES

SIGMA = np.array([0.02, 0.3, 1.0, 2.5, 40.0])


def noise_prediction(x0, eps, sigma):
    """DDPM: alpha_bar = 1 / (1 + sigma^2), and the network predicts eps."""
    alpha_bar = 1 / (1 + sigma**2)
    return np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps, eps


def edm(x0, eps, sigma):
    """sigma_data = 0.5: input and target are both rotations of (x0 / sigma_data, eps)."""
    total = np.sqrt(sigma**2 + 0.25)
    return (x0 + sigma * eps) / total, (sigma * (x0 / 0.5) - 0.5 * eps) / total


def flow(x0, eps, sigma):
    t = sigma / (1 + sigma)
    return (1 - t) * x0 + t * eps, eps - x0


def gvp(x0, eps, sigma):
    """The GVP path at t = (2 / pi) acot(sigma)."""
    total = np.sqrt(1 + sigma**2)
    return (x0 + sigma * eps) / total, np.pi / 2 * (sigma * x0 - eps) / total


# Network input and training target as functions of (x0, eps, sigma). Collection fails if an entry
# of FAMILIES is missing here.
NETWORK_SIDES = {
    "edm": edm,
    "vp": noise_prediction,
    "ve": lambda x0, eps, sigma: (x0 + sigma * eps, -eps),
    "iddpm": noise_prediction,
    "ddpm_linear": noise_prediction,
    "flow": flow,
    "flow1000": flow,
    "sit": lambda x0, eps, sigma: (flow(x0, eps, sigma)[0], x0 - eps),
    "sit_gvp": gvp,
}
CASES = [
    pytest.param(family.coefficients, NETWORK_SIDES[name], id=name)
    for name, family in FAMILIES.items()
]
every_family = pytest.mark.parametrize(("family", "network_side"), CASES)


@every_family
@pytest.mark.parametrize(("x0", "eps"), [(1.0, 0.0), (0.0, 1.0), (-0.7, 1.9)])
def test_c_in_gives_the_network_input_and_the_target_recovers_x0(family, network_side, x0, eps):
    # D is linear in F, so F = E[target | xt] gives the exact posterior mean D = E[x0 | xt].
    c_skip, c_out, c_in, _ = family(SIGMA)
    seen, target = network_side(x0, eps, SIGMA)
    xt = x0 + SIGMA * eps
    np.testing.assert_allclose(c_in * xt, seen, rtol=1e-12)
    np.testing.assert_allclose(c_skip * xt + c_out * target, x0 * np.ones(5), rtol=1e-9, atol=1e-12)


@every_family
def test_coefficients_keep_the_shape_and_dtype_of_sigma(family, network_side):
    sigma = jnp.asarray(SIGMA, jnp.float32)
    for coefficient in family(sigma):
        assert (coefficient.shape, coefficient.dtype) == (sigma.shape, sigma.dtype)


@pytest.mark.parametrize("sigma_data", [0.5, 1.2])
def test_edm_has_input_and_target_of_unit_variance(sigma_data):
    c_skip, c_out, c_in, _ = precondition.edm(SIGMA, sigma_data=sigma_data)
    np.testing.assert_allclose(c_in**2 * (sigma_data**2 + SIGMA**2), 1, rtol=1e-12)
    target_variance = ((1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * SIGMA**2) / c_out**2
    np.testing.assert_allclose(target_variance, 1, rtol=1e-9)


def test_edm_denoiser_is_xt_at_low_noise_and_the_network_output_at_high_noise():
    c_skip, c_out, _, _ = precondition.edm(np.array([1e-6, 1e6]))
    np.testing.assert_allclose(c_skip, [1, 0], atol=1e-11)
    np.testing.assert_allclose(c_out, [1e-6, 0.5], rtol=1e-9)


def test_c_noise_of_edm_and_ve_is_logarithmic():
    np.testing.assert_allclose(precondition.edm(SIGMA).c_noise, np.log(SIGMA) / 4, rtol=1e-12)
    np.testing.assert_allclose(precondition.ve(SIGMA).c_noise, np.log(SIGMA / 2), rtol=1e-12)


def test_c_noise_of_a_flow_is_its_time():
    sigma = np.array([0.25, 1.0, 9.0])
    np.testing.assert_allclose(precondition.flow(sigma).c_noise, [0.2, 0.5, 0.9], rtol=1e-12)


@pytest.mark.parametrize(("beta_d", "beta_min"), [(19.9, 0.1), (5.0, 0.7)])
def test_vp_time_inverts_its_noise_schedule(beta_d, beta_min):
    time = np.array([1e-3, 0.1, 0.5, 1.0])
    sigma = np.sqrt(np.exp(0.5 * beta_d * time**2 + beta_min * time) - 1)
    c_noise = precondition.vp(sigma, beta_d=beta_d, beta_min=beta_min).c_noise
    np.testing.assert_allclose(c_noise, 999 * time, rtol=1e-8)


def test_ddpm_linear_levels_follow_from_the_cumulative_product_of_alphas():
    levels = precondition.ddpm_linear_levels()
    beta = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 1000  # ascending with the time step
    sigma = np.sqrt(1 / np.cumprod(1 - beta) - 1)
    np.testing.assert_allclose(levels[:-1], sigma[::-1], rtol=1e-4)  # a float32 recursion
    np.testing.assert_allclose(levels[[0, 999, 1000]], [156.6155, 0.0100, 0], rtol=1e-4)


def test_iddpm_levels_follow_the_cosine_schedule():
    # alpha_bar_j = f(j) / f(M), f(j) = sin^2(pi / 2 j / (M (C2 + 1))); only at j = 0, where f = 0,
    # does the clip of the ratio at C1 = 0.001 act.
    levels = precondition.iddpm_levels()
    f = np.sin(0.5 * np.pi * np.arange(1001) / 1000 / 1.008) ** 2
    np.testing.assert_allclose(levels[1:-1], np.sqrt(f[-1] / f[1:-1] - 1), rtol=2e-3)
    np.testing.assert_allclose(levels[0], np.sqrt((levels[1] ** 2 + 1) / 0.001 - 1), rtol=1e-6)
    assert levels[-1] == 0


@pytest.mark.parametrize("name", ["iddpm", "ddpm_linear"])
def test_c_noise_of_table_families_is_the_time_step_of_the_nearest_level(name):
    levels = getattr(precondition, f"{name}_levels")()
    assert np.all(np.diff(levels) < 0)
    family = FAMILIES[name].coefficients
    j = np.array([1, 7, 500, 998, 999])
    nearer = 0.6 * levels[j] + 0.4 * levels[j - 1]  # between two levels, nearer to level j
    for sigma in (levels[j], nearer):
        np.testing.assert_array_equal(family(sigma).c_noise, 999 - j)
    assert family(np.array([1e6])).c_noise == 999


def test_ddpm_linear_at_the_generators_sigma_is_time_step_440():
    assert precondition.ddpm_linear(np.array([2.5])).c_noise == 440
