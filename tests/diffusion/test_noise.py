"""Adding noise, and the weights w(sigma)."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from simjax.diffusion import noise, precondition

SIGMA = jnp.array([0.002, 0.1, 0.5, 2.5, 80.0], jnp.float32)

# Closed forms of w(sigma). Collection fails if an entry of WEIGHTS is missing here.
CLOSED_FORMS = {
    "uniform": lambda sigma: np.ones_like(sigma),
    "edm": lambda sigma: 1 / 0.5**2 + 1 / sigma**2,
    "score": lambda sigma: sigma**-2.0,
    "flow": lambda sigma: (1 + 1 / sigma) ** 2,
    "gvp": lambda sigma: np.pi**2 / 4 * (1 + sigma**2) / sigma**2,
    "one_minus_u": lambda sigma: 1 - sigma / (1 + sigma),
    "one_minus_u_squared": lambda sigma: (1 - sigma / (1 + sigma)) ** 2,
    "inverse_u": lambda sigma: 1 + 1 / sigma,
    "snr_root": lambda sigma: 1 / sigma,
}
CASES = [pytest.param(noise.WEIGHTS[name], CLOSED_FORMS[name], id=name) for name in noise.WEIGHTS]


def test_each_example_gets_its_own_sigma():
    x0 = np.arange(12.0).reshape(2, 1, 2, 3)
    eps = np.random.default_rng(0).normal(size=x0.shape)
    xt = noise.add_noise(x0, jnp.array([0.5, 3.0]), eps)
    np.testing.assert_allclose(xt, np.stack([x0[0] + 0.5 * eps[0], x0[1] + 3 * eps[1]]))


@pytest.mark.parametrize(("weight", "closed_form"), CASES)
def test_weight_equals_its_closed_form(weight, closed_form):
    sigma = np.asarray(SIGMA, np.float64)
    np.testing.assert_allclose(weight(sigma), closed_form(sigma), rtol=1e-12)
    assert weight(SIGMA).dtype == SIGMA.dtype


def test_edm_weight_is_the_inverse_square_of_edms_c_out():
    for sigma_data in (0.5, 1.3):
        c_out = precondition.edm(SIGMA, sigma_data=sigma_data).c_out
        weight = noise.edm_weight(SIGMA, sigma_data=sigma_data)
        np.testing.assert_allclose(weight * c_out**2, 1, rtol=1e-5)


def test_sigma_with_image_axes_is_refused():
    images = jnp.ones((2, 4, 4, 3))
    with pytest.raises(TypeCheckError):
        noise.add_noise(images, jnp.ones((2, 1, 1, 1)), images)
