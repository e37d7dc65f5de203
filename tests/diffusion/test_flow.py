"""Flow teachers in sigma-space: Gaussian spot values, mutants, ladders, float32 at sigma 999."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax.diffusion import guidance, noise, precondition, sampler, schedule
from simjax.errors import ConfigError

MEAN, VARIANCE, XT = 0.4, 0.64, 1.3  # of the data, N(0.4, 0.8^2)
DENOISED = {0.1: 1.2861538462, 0.7: 0.9097345133, 2.5: 0.4835994194, 20.0: 0.4014376997}
VELOCITY = {0.7: -0.3522123894, 2.5: -0.1570391879}  # E[eps - x0 | xt]


def exact(xt, sigma, mean=MEAN, variance=VARIANCE):
    """E[x0 | xt]."""
    return (variance * xt + sigma**2 * mean) / (variance + sigma**2)


def velocity(z, u):
    """E[eps - x0 | z = (1 - u) x0 + u eps], without sigma: by the joint Gaussian of (x0, eps)."""
    total = (1 - u) ** 2 * VARIANCE + u**2
    return -MEAN + (u - (1 - u) * VARIANCE) / total * (z - (1 - u) * MEAN)


def denoised(family, network, sigma):
    """D at XT for a network F(input, c_noise)."""
    c_skip, c_out, c_in, c_noise = (np.float64(c[0]) for c in family(np.array([sigma])))
    return c_skip * XT + c_out * network(c_in * XT, c_noise)


@pytest.mark.parametrize("sigma", DENOISED)
def test_flow_preconditioning_gives_the_exact_denoiser(sigma):
    assert denoised(precondition.flow, velocity, sigma) == pytest.approx(DENOISED[sigma], abs=1e-9)
    assert exact(XT, sigma) == pytest.approx(DENOISED[sigma], abs=1e-9)
    of_sit = denoised(precondition.sit, lambda z, t: -velocity(z, 1 - t), sigma)
    assert of_sit == pytest.approx(DENOISED[sigma], abs=1e-9)

    def thousand(sigma):
        return precondition.flow(sigma, time_scale=1000.0)

    found = denoised(thousand, lambda z, time: velocity(z, time / 1000), sigma)
    assert found == pytest.approx(DENOISED[sigma], abs=1e-9)


@pytest.mark.parametrize("sigma", VELOCITY)
def test_velocity_spot_values(sigma):
    u = sigma / (1 + sigma)
    assert velocity(XT / (1 + sigma), u) == pytest.approx(VELOCITY[sigma], abs=1e-9)


@pytest.mark.parametrize("sigma", DENOISED)
def test_gvp_preconditioning_gives_the_exact_denoiser(sigma):
    def derivative(z, t):
        """E[(pi / 2) (cos x0 - sin eps) | z = sin x0 + cos eps]."""
        sine, cosine = np.sin(np.pi * t / 2), np.cos(np.pi * t / 2)
        total = sine**2 * VARIANCE + cosine**2
        slope = (cosine * sine * VARIANCE - sine * cosine) / total
        return np.pi / 2 * (cosine * MEAN + slope * (z - sine * MEAN))

    assert denoised(precondition.sit_gvp, derivative, sigma) == pytest.approx(
        DENOISED[sigma], abs=1e-9
    )


@pytest.mark.parametrize(
    ("family", "network"),
    [
        (precondition.sit, lambda z, t: velocity(z, 1 - t)),  # the sign of F
        (precondition.flow, lambda z, u: -velocity(z, u)),
        (precondition.sit, lambda z, t: -velocity(z, t)),  # time reversed
        (precondition.flow, lambda z, u: velocity(z, 1 - u)),
    ],
)
def test_mutants_give_another_denoiser(family, network):
    assert abs(denoised(family, network, 0.7) - DENOISED[0.7]) > 1e-3


def test_flow_weight_is_uniform_on_the_velocity_error():
    """|| v - (eps - x0) ||^2 = w || D - x0 ||^2, for any network output."""
    sigma, x0, eps, output = np.array([0.3, 4.0]), 0.2, -1.1, 0.7
    c_skip, c_out, _, _ = precondition.flow(sigma)
    error = c_skip * (x0 + sigma * eps) + c_out * output - x0
    np.testing.assert_allclose(noise.flow_weight(sigma) * error**2, (output - (eps - x0)) ** 2)
    assert abs(error[0] ** 2 - (output - (eps - x0)) ** 2) > 1e-2  # without the weight


def test_float32_is_accurate_at_sigma_999():
    sigma = jnp.array([999.0], jnp.float32)
    c_skip, c_out, c_in, c_noise = precondition.flow(sigma)
    z = np.float64(1.3)
    u = float(c_noise[0])
    xt = jnp.float32(z * 1000)
    found = c_skip * xt + c_out * jnp.float32(velocity(float(c_in[0]) * float(xt), u))
    assert float(found[0]) == pytest.approx(exact(1300.0, 999.0), abs=3e-7)


def test_euler_on_the_ladder_is_eulers_method_in_time():
    """With shift and u_max; the reference integrates z = xt / (1 + sigma) in float64."""
    steps, shift, u_max = 7, 3.0, 0.999
    sigmas = schedule.flow_ladder(steps, shift=shift, u_max=u_max)
    start = np.array([-1.0, 0.3, 2.0]).reshape(3, 1, 1, 1)
    found = sampler.euler(lambda xt, sigma: exact(xt, sigma[:, None, None, None]), start, sigmas)
    u = u_max * (1 - np.arange(steps + 1) / steps)
    u = shift * u / (1 + (shift - 1) * u)
    z = start * u[0]  # of xt = sigma eps: z = u eps
    for now, then in zip(u, u[1:], strict=False):
        z = z + (then - now) * velocity(z, now)
    np.testing.assert_allclose(found, z, rtol=1e-5)  # levels are float32


def test_flow_sde_is_euler_maruyama_in_time():
    """The reference uses the score of z's Gaussian; the last step adds no noise."""
    steps = 6
    sigmas = schedule.flow_sde_ladder(steps, u_max=0.99)
    start = np.array([-1.0, 0.3, 2.0]).reshape(3, 1, 1, 1)
    normal = np.random.default_rng(0).normal(size=(steps, *start.shape))
    found = sampler.flow_sde(
        lambda xt, sigma: exact(xt, sigma[:, None, None, None]),
        start,
        sigmas,
        draw_noise=lambda step: jnp.asarray(normal)[step],
    )
    u = np.append(np.linspace(0.99, 0.04, steps), 0)
    z = start * u[0]
    for k, (now, width) in enumerate(zip(u, u[:-1] - u[1:], strict=False)):
        score = -(z - (1 - now) * MEAN) / ((1 - now) ** 2 * VARIANCE + now**2)
        noise = np.sqrt(2 * now * width) * normal[k] if k < steps - 1 else 0
        z = z + width * (-velocity(z, now) + now * score) + noise
    np.testing.assert_allclose(found, z, rtol=2e-5)


def test_flow_sde_samples_have_mean_and_std_of_the_data():
    keys = jax.random.split(jax.random.key(0), 2)
    found = sampler.flow_sde(
        lambda xt, sigma: exact(xt, sigma[:, None, None, None]),
        jax.random.normal(keys[0], (20_000, 1, 1, 1)),
        schedule.flow_sde_ladder(250),
        draw_noise=lambda k: jax.random.normal(jax.random.fold_in(keys[1], k), (20_000, 1, 1, 1)),
    )
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(0.8, abs=0.02)


def test_time_shift_multiplies_sigma():
    plain, shifted = schedule.flow_ladder(5), schedule.flow_ladder(5, shift=3.0)
    np.testing.assert_allclose(shifted, 3 * plain, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"u_max": 1.0},
        {"shift": 0.0},
        {"shift": -1.0},
        {"u_max": 0.0},
        {"shift": 1e38, "u_max": 0.9999},
    ],
)
@pytest.mark.parametrize("ladder", [schedule.flow_ladder, schedule.flow_sde_ladder])
def test_ladders_must_be_finite_and_descending(ladder, options):
    with pytest.raises(ConfigError, match="do not give descending noise levels"):
        ladder(4, **options)


def test_u_max_below_u_last_is_refused():
    with pytest.raises(ConfigError, match="do not give descending noise levels"):
        schedule.flow_sde_ladder(4, u_max=0.03)


# Guidance on Gaussians: D(cond) of N(1, 0.5^2), D(none) of N(0, 1.2^2).


def guided_gaussian(scale, sigma=0.7):
    """Mean and variance of the Gaussian whose (affine) denoiser equals the guided one."""

    def denoise(params, xt, sigma, cond):
        is_some = cond.sum(1)[:, None, None, None]
        some = exact(xt, sigma[:, None, None, None], 1.0, 0.25)
        none = exact(xt, sigma[:, None, None, None], 0.0, 1.44)
        return is_some * some + (1 - is_some) * none

    guided = guidance.guided(denoise, scale, jnp.zeros_like)
    xt = np.array([0.0, 1.0]).reshape(2, 1, 1, 1)
    low, high = np.ravel(guided(None, xt, np.full(2, sigma), np.ones((2, 1))))
    slope = high - low
    return low / (1 - slope), slope * sigma**2 / (1 - slope)


def test_fixed_point_of_a_guided_teacher():
    mean, variance = guided_gaussian(1.5)
    assert mean == pytest.approx(1.1465346535, abs=1e-9)
    assert variance == pytest.approx(0.0756237624, abs=1e-9)
    assert guided_gaussian(2.0)[1] == pytest.approx(-0.032, abs=5e-4)  # no Gaussian


@pytest.mark.parametrize(("scale", "expected"), [(1.0, (1.0, 0.25)), (0.0, (0.0, 1.44))])
def test_scales_1_and_0_are_the_conditional_and_unconditional_denoiser(scale, expected):
    assert guided_gaussian(scale) == pytest.approx(expected, abs=1e-12)


def test_scales_1_and_0_cost_one_nfe_and_others_two():
    def calls(scale, channels=None):
        rows = []

        def denoise(params, xt, sigma, cond):
            rows.append(len(xt))
            return xt

        guided = guidance.guided(denoise, scale, jnp.zeros_like, channels)
        guided(None, np.ones((3, 1, 1, 4)), np.ones(3), np.ones((3, 2)))
        assert guidance.evaluations(scale) * 3 == rows[0]
        return rows[0]

    assert [calls(scale) for scale in (1.0, 0.0, -1.0, 4.5)] == [3, 3, 6, 6]
    assert [calls(scale, channels=3) for scale in (1.0, 0.0, 4.5)] == [3, 3, 6]


def test_guidance_repeats_dropout_keys_and_augmentation_labels():
    seen = {}

    def denoise(params, xt, sigma, cond, **options):
        seen.update(options)
        return xt

    guided = guidance.guided(denoise, 2.0, jnp.zeros_like)
    options = {"dropout_keys": np.array([1, 2]), "augment_labels": np.array([[5.0], [6.0]])}
    guided(None, np.ones((2, 1, 1, 1)), np.ones(2), np.ones((2, 2)), **options)
    np.testing.assert_array_equal(seen["dropout_keys"], [1, 1, 2, 2])
    np.testing.assert_array_equal(seen["augment_labels"], [[5], [5], [6], [6]])
