"""Curves and proposals for exact denoisers, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax.evaluation import calibration

COUNT, SHAPE = 2048, (4, 4, 1)


def curves_of(denoise, x0, count=25):
    sigmas = calibration.levels(float(x0.std()), count)
    eps, mean = calibration.matched_noise(x0, 1), x0.mean(0, keepdims=True)

    @jax.jit
    def at(sigma):
        level = jnp.full(len(x0), sigma, jnp.float32)
        return calibration.statistics(denoise, x0, eps, level, None, mean)

    found = [at(sigma) for sigma in sigmas]
    sums = {name: np.stack([each[name] for each in found]) for name in found[0]}
    return calibration.curves(sigmas, sums, x0)


def gaussian(b, mean):
    def denoise(xt, sigma, cond):
        square = sigma[:, None, None, None] ** 2
        return (b**2 * xt + square * mean) / (b**2 + square)

    noise = np.random.default_rng(0).standard_normal((COUNT, *SHAPE))
    return denoise, np.float32(mean + b * noise)


GAUSSIANS = [(0.5, 0.0), (0.5, 0.3), (0.2, -0.1), (1.5, 2.0)]


@pytest.mark.parametrize(("b", "mean"), GAUSSIANS)
def test_curves_of_a_gaussian_match_closed_forms(b, mean):
    found = curves_of(*gaussian(b, mean))
    square = found.sigma**2
    np.testing.assert_allclose(found.error, b**2 * square / (b**2 + square), rtol=0.01)
    low = found.share < 0.9  # above that, too few samples
    np.testing.assert_allclose(found.slope[low], 1, atol=0.01)
    if not mean:  # <D, D> of a large mean would hide it
        np.testing.assert_allclose(found.orthogonality[low], 0, atol=0.01)
    np.testing.assert_allclose(found.trace, 1, atol=0.01)
    omega = np.sqrt(2 / np.pi * found.error)  # E |.| of a Gaussian
    np.testing.assert_allclose(found.omega, omega, rtol=0.01)
    assert found.is_finite and not calibration.faults(found)


@pytest.mark.parametrize("times", [1.0, 7.0])
@pytest.mark.parametrize(("b", "mean"), GAUSSIANS)
def test_proposals_for_a_gaussian_scale_with_its_standard_deviation(b, mean, times):
    b, mean = times * b, times * mean
    found = calibration.propose(curves_of(*gaussian(b, mean)))
    edge = np.sqrt(0.02 / 0.98)  # share = sigma^2 / (b^2 + sigma^2)
    expected = {
        "low": edge * b,
        "high": b / edge,
        "half": b,
        "scale": b,
        "sigma_init": 5 * b,
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=0.01), name
    assert found.peaks == pytest.approx((b,), rel=0.01)
    assert found.mean == pytest.approx(np.log(b), abs=0.01)
    share = np.linspace(0.02, 0.98, 100_001)  # ln(sigma) is logistic with scale 1/2, truncated
    assert found.std == pytest.approx(np.std(np.log(share / (1 - share)) / 2), rel=0.01)


def test_a_mixture_has_two_peaks():
    """All pixels together reveal the component, at levels far above the width of one."""
    centre, narrow, shape = 0.25, 0.2, (16, 16, 1)
    rng = np.random.default_rng(0)
    side = rng.choice([-1.0, 1.0], (512, 1, 1, 1))
    x0 = np.float32(centre * side + narrow * rng.standard_normal((512, *shape)))

    def denoise(xt, sigma, cond):
        square = narrow**2 + sigma[:, None, None, None] ** 2
        side = jnp.tanh(centre * xt.sum((1, 2, 3), keepdims=True) / square)
        inside = narrow**2 / square
        return inside * xt + (1 - inside) * centre * side

    found = curves_of(denoise, x0)
    assert not calibration.faults(found)
    inner, outer = calibration.propose(found).peaks
    assert inner == pytest.approx(narrow, rel=0.1)
    assert outer == pytest.approx(centre * 16, rel=0.5)  # centre * sqrt(256 pixels)


BROKEN = {
    "sigma": (lambda denoise: lambda x, s, cond: denoise(x, 0.5 * s, cond), "slope"),
    "shift": (lambda denoise: lambda x, s, cond: denoise(x + 0.5, s, cond), "error"),
    "scale": (lambda denoise: lambda x, s, cond: denoise(2 * x, s, cond), "error"),
    "overflow": (
        lambda denoise: (
            lambda x, s, cond: denoise((x * 3000).astype(jnp.float16).astype(jnp.float32), s, cond)
        ),
        "finite",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_call_violates_its_curve(name):
    denoise, x0 = gaussian(0.5, 0.0)
    change, curve = BROKEN[name]
    faults = calibration.faults(curves_of(change(denoise), x0))
    assert curve in faults
    if curve == "finite":
        assert "sigma from" in faults[curve]
