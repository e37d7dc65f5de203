"""SiD at alpha = 1/2 and RealUID against quadrature, with a moving sampling distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax import config
from simjax.errors import ConfigError
from simjax.losses import real_images, sid
from tests.helpers import analytic
from tests.helpers.analytic import Mixture, World

TEACHER = Mixture((1.0,), (-0.5,), (1.3,))
WORLD = World(lambda t: Mixture((1.0,), (t[0],), (0.8,)), (0.4,), TEACHER, 0.7)


def gradient(loss, world=WORLD):
    """d/dmean of the expected loss(x0, d_teacher, d_fake, xt)."""
    nodes = analytic.draws(world)

    def expected(theta):
        x0, d_teacher, d_fake = analytic.images(world, theta, nodes)
        xt = x0 + world.sigma * jnp.asarray(nodes.eps).reshape(x0.shape)
        return nodes.weight @ loss(x0, d_teacher, d_fake, xt)

    return jax.grad(expected)(jnp.asarray(world.theta0))[0]


def without_omega(alpha):
    """SiD's loss times omega (stop-gradient)."""

    def loss(x0, d_teacher, d_fake, xt):
        omega = jnp.maximum(jnp.abs(x0 - d_teacher).ravel(), 1e-5)
        return sid.generator_loss(x0, d_teacher, d_fake, jax.lax.stop_gradient(omega), alpha=alpha)

    return loss


# alpha -> d/dmean without omega
SID = {0.0: 0.003219091, 0.5: 0.045469657, 1.0: 0.087720224, 1.2: 0.104620451}


@pytest.mark.parametrize("alpha", SID)
def test_gradient_of_sid(alpha):
    np.testing.assert_allclose(gradient(without_omega(alpha)), SID[alpha], atol=1e-9)


def divergence_gradient() -> float:
    """d/dmean E_p ||D_q - D_p||^2 by quadrature, through both occurrences of p."""
    xt, dx = analytic.panels(WORLD)

    def divergence(theta):
        p = WORLD.generator(theta)
        gap = analytic.denoise(TEACHER, 0.7, xt) - analytic.denoise(p, 0.7, xt)
        return jnp.sum(dx * jnp.exp(analytic.log_density(p, 0.7, xt)) * gap**2)

    return jax.grad(divergence)(jnp.asarray(WORLD.theta0))[0]


def test_twice_sid_at_one_half_is_the_gradient_with_a_moving_sampling_distribution():
    exact = divergence_gradient()
    np.testing.assert_allclose(exact, 0.090939315, atol=1e-9)
    np.testing.assert_allclose(2 * gradient(without_omega(0.5)), exact, rtol=1e-9)
    law_held = 2 * gradient(without_omega(1.0))  # fixed sampling distribution: SIM, alpha = 1
    assert abs(law_held - exact) > 0.08


def optimum(alpha, beta, xt):
    """(beta p D_p + (1 - beta) q D_q) / (alpha p + (1 - alpha) q)."""
    p, q = (jnp.exp(analytic.log_density(law, 0.7, xt)) for law in (WORLD.frozen, TEACHER))
    d_p, d_q = (analytic.denoise(law, 0.7, xt) for law in (WORLD.frozen, TEACHER))
    return (beta * p * d_p + (1 - beta) * q * d_q) / (alpha * p + (1 - alpha) * q)


# (alpha, beta) -> d/dmean at the optimal fake score
UID = {(1.0, 1.0): 0.090939315, (0.94, 0.96): 0.086806538, (0.96, 0.94): 0.076516959}


@pytest.mark.parametrize(("alpha", "beta"), UID)
def test_gradient_of_real_uid_at_the_optimal_fake_score(alpha, beta):
    def loss(x0, d_teacher, d_fake, xt):
        return real_images.generator_loss(
            x0,
            d_teacher,
            optimum(alpha, beta, xt),
            jnp.ones(len(x0)),
            real_alpha=alpha,
            real_beta=beta,
        )

    np.testing.assert_allclose(gradient(loss), UID[alpha, beta], atol=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), UID)
def test_optimal_fake_score_of_real_uid(alpha, beta):
    """No direction lowers the loss, unless real and generated images are swapped."""
    real_world = WORLD._replace(generator=lambda t: TEACHER, theta0=())
    generated, real = analytic.draws(WORLD), analytic.draws(real_world)

    def slope(direction, swapped=False):
        """Slope of the expected loss in a direction g(xt); each term has its own nodes."""

        def expected(step):
            total = 0.0
            for nodes, law, share in ((generated, WORLD.frozen, 0), (real, TEACHER, 1)):
                x0 = analytic.generate(law, nodes).reshape(-1, 1, 1, 1)
                xt = x0 + 0.7 * jnp.asarray(nodes.eps).reshape(x0.shape)
                denoised = optimum(alpha, beta, xt) + step * direction(xt)
                pairs = [(x0, denoised), (jnp.zeros_like(x0), jnp.zeros_like(x0))]
                pair = pairs[:: -1 if share != swapped else 1]
                loss = real_images.fake_score_loss(
                    *pair[0], *pair[1], jnp.ones(len(x0)), real_alpha=alpha, real_beta=beta
                )
                total += nodes.weight @ loss
            return total

        return jax.grad(expected)(0.0)

    for direction in (jnp.ones_like, jnp.sin, jnp.cos):
        assert abs(slope(direction)) < 1e-9
    assert abs(slope(jnp.ones_like, swapped=True)) > 1e-2


def test_real_uid_without_real_images_is_twice_sid_at_one_half():
    x0, d_teacher, d_fake = np.random.default_rng(0).normal(size=(3, 5, 4, 4, 2))
    weight = jnp.array([1.0, 0.5, 2.0, 3.0, 0.1])
    omega = jnp.mean(jnp.abs(x0 - d_teacher), axis=(1, 2, 3))
    expected = 2 * sid.generator_loss(x0, d_teacher, d_fake, weight * omega, alpha=0.5)
    shares = {"real_alpha": 1.0, "real_beta": 1.0}
    found = real_images.generator_loss(x0, d_teacher, d_fake, weight, **shares)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    loss = real_images.fake_score_loss(x0, d_fake, d_teacher, d_teacher, weight, **shares)
    np.testing.assert_allclose(loss, weight * np.sum((d_fake - x0) ** 2, (1, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("name", ["sid", "real_uid"])
def test_gradient_is_zero_if_generated_and_real_distributions_agree(name):
    world = WORLD._replace(generator=lambda t: Mixture((1.0,), (t[0],), (1.3,)), theta0=(-0.5,))

    def of_uid(x0, d_teacher, d_fake, xt):
        return real_images.generator_loss(x0, d_teacher, d_teacher, jnp.ones(len(x0)))

    loss = without_omega(0.5) if name == "sid" else of_uid
    assert abs(gradient(loss, world)) < 1e-12


@pytest.mark.parametrize(("field", "value"), [("real_alpha", 1.0), ("real_beta", 0.0)])
def test_real_alpha_and_real_beta_must_lie_strictly_between_0_and_1(field, value):
    options = config.Config(loss=config.Loss(name="real_uid", **{field: value}))
    options.real.source = "digits"
    with pytest.raises(
        ConfigError, match=f"loss.{field} = {value}: expected a value strictly between"
    ):
        config.validate(options, {}, 1)
