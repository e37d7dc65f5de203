"""SiDA's discriminator losses and f-divergence weights against quadrature between Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from simjax.losses import adversarial, diff_instruct, sim
from tests.helpers import analytic
from tests.helpers.analytic import Mixture, World

TEACHER, SIGMA = Mixture((1.0,), (-0.5,), (1.3,)), 0.7
WORLD = World(lambda t: Mixture((1.0,), (t[0],), (t[1],)), (0.4, 0.8), TEACHER, SIGMA)
SAME = WORLD._replace(theta0=(-0.5, 1.3))

# D_f: (gradient in mean and std, f)
SPOTS = {
    "rkl": ((0.412844037, -0.340992123), lambda r: -np.log(r)),
    "kl": ((0.796460177, -1.165322271), lambda r: r * np.log(r)),
    "js": ((0.222777320, -0.212070570), lambda r: r * np.log(r) - (r + 1) * np.log((r + 1) / 2)),
    "sf": ((0.190066716, -0.128921553), lambda r: (r + 1) * np.log((r + 1) / (2 * r))),
    "sh": ((0.124537424, -0.129952481), lambda r: 1 - np.sqrt(r)),
    "neyman": ((0.817138658, -0.492774225), lambda r: 1 / r - 1),
    "jf": ((1.209304214, -1.506314394), lambda r: (r - 1) * np.log(r)),
}


def optimal_logit(world, xt):
    """ln(q / p) at fixed generator parameters."""
    q, p = (analytic.log_density(law, SIGMA, xt) for law in (world.teacher, world.frozen))
    return q - p


def gradient(loss, world=WORLD):
    nodes = analytic.draws(world)

    def expected(theta):
        images = analytic.images(world, theta, nodes)
        xt = images[0] + SIGMA * jnp.asarray(nodes.eps).reshape(images[0].shape)
        return nodes.weight @ loss(xt, *images)

    return jax.grad(expected)(jnp.asarray(world.theta0))


def weighted(name, world=WORLD, detached=True):
    """Diff-Instruct in score units with the weight h(r)."""

    def loss(xt, x0, d_teacher, d_fake):
        h = adversarial.DIVERGENCES[name](jnp.exp(optimal_logit(world, xt))).ravel()
        h = jax.lax.stop_gradient(h) if detached else h
        images = sim.score_units(jnp.full(len(x0), SIGMA), x0, d_teacher, d_fake)
        return diff_instruct.generator_loss(*images, SIGMA**2 * h)

    return loss


@pytest.mark.parametrize("name", adversarial.DIVERGENCES)
def test_weighted_diff_instruct_has_the_gradient_of_the_divergence(name):
    found = gradient(weighted(name))
    np.testing.assert_allclose(found, SPOTS[name][0], atol=1e-8)
    if name != "rkl":  # its weight is constant
        assert np.abs(gradient(weighted(name, detached=False)) - found).max() > 1e-2


@pytest.mark.parametrize("name", SPOTS)
def test_spot_values_are_derivatives_of_the_divergence(name):
    (in_mean, _), f = SPOTS[name]

    def divergence(mean):
        variance = (0.8**2 + SIGMA**2, 1.3**2 + SIGMA**2)

        def integrand(x):
            p, q = (
                np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
                for m, v in zip((mean, -0.5), variance, strict=True)
            )
            return p * f(q / p)

        return integrate.quad(integrand, -14, 14, epsabs=1e-12, epsrel=1e-12, limit=500)[0]

    found = (divergence(0.4 + 1e-4) - divergence(0.4 - 1e-4)) / 2e-4
    np.testing.assert_allclose(found, in_mean, atol=1e-6)


@pytest.mark.parametrize("name", adversarial.DIVERGENCES)
def test_gradient_is_zero_if_generated_and_real_distributions_agree(name):
    np.testing.assert_allclose(gradient(weighted(name, SAME), SAME), 0, atol=1e-12)


def non_saturating(world):
    def loss(xt, *_):
        one = jnp.ones(())
        return jax.vmap(
            lambda logit: adversarial.generator_loss(logit.reshape(1, 1, 1), one, elements=1)
        )(optimal_logit(world, xt).ravel())

    return loss


def test_the_optimal_discriminators_gradient_is_softened_reverse_kl():
    np.testing.assert_allclose(gradient(non_saturating(WORLD)), SPOTS["sf"][0], atol=1e-8)
    np.testing.assert_allclose(gradient(non_saturating(SAME), SAME), 0, atol=1e-12)


def test_the_discriminators_optimum_is_the_log_ratio_of_real_to_generated():
    """Two points x: 3/4 of the real and 1/4 of the generated images lie at the first."""
    real, generated = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])

    def loss(logits, swapped=False):
        pair = logits[real].reshape(-1, 1, 1), logits[generated].reshape(-1, 1, 1)
        return adversarial.discriminator_loss(*pair[:: -1 if swapped else 1], jnp.asarray(200.4))

    optimum = jnp.log(jnp.array([3.0, 1 / 3]))
    np.testing.assert_allclose(jax.grad(loss)(optimum), 0, atol=1e-12)
    assert np.abs(jax.grad(loss)(optimum, swapped=True)).min() > 10
    entropy = np.log(4) - 0.75 * np.log(3)  # entropy of (3/4, 1/4)
    np.testing.assert_allclose(loss(optimum), 200.4 * entropy, rtol=1e-12)


def test_generator_loss_clips_logits_and_multiplies_means():
    logits = jnp.array([0.0, 30.0, -30.0, 2.0]).reshape(2, 2, 1)
    found = adversarial.generator_loss(logits, jnp.asarray(3.0), elements=12)
    softplus = np.log1p(np.exp(-np.array([0.0, 10.0, -10.0, 2.0])))
    np.testing.assert_allclose(found, 12 * 3 * softplus.mean(), rtol=1e-12)


def test_omega_is_per_example_with_a_lower_bound_and_no_gradient():
    x0 = jnp.array([[1.0, -3.0], [0.0, 0.0]]).reshape(2, 1, 2, 1)
    found, pull = jax.vjp(lambda x: adversarial.inverse_omega(x, jnp.zeros_like(x)), x0)
    np.testing.assert_allclose(found, [0.5, 1e5], rtol=1e-12)
    np.testing.assert_array_equal(pull(jnp.ones(2))[0], 0)


def test_density_ratios_are_clipped_and_have_no_gradient():
    logits = jnp.array([[0.0, 1.0], [9.0, 15.0], [-9.0, -9.0]]).reshape(3, 2, 1)
    found, pull = jax.vjp(adversarial.density_ratio, logits)
    np.testing.assert_allclose(found, [np.exp(0.5), 20, 0.1], rtol=1e-12)
    np.testing.assert_array_equal(pull(jnp.ones(3))[0], 0)


def test_divergence_weights_normalise_ratios_per_sigma_bin():
    ratio = jnp.array([1.0, 3.0, 10.0, 20.0])
    sigma = jnp.array([0.01, 0.011, 30.0, 31.0])  # two bins
    inside = np.array([1 / 2, 3 / 2, 10 / 15, 20 / 15])
    np.testing.assert_allclose(
        adversarial.divergence_weights(ratio, sigma, divergence="kl"), inside, rtol=3e-6
    )
    js = inside / (1 + inside)
    np.testing.assert_allclose(
        adversarial.divergence_weights(ratio, sigma, divergence="js"), js / js.mean(), rtol=5e-6
    )
