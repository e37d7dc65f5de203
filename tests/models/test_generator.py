"""Multi-step generators: closed-form samples, gradients and the mixture theorem."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax import config
from simjax.diffusion import schedule
from simjax.errors import ConfigError
from simjax.losses import distances, sim
from simjax.models import generator
from simjax.models.generator import Chain, OneStep
from simjax.runs import check, setup
from simjax.runtime import sharding
from simjax.train import step, update
from tests.helpers.configs import load

LEVELS = (2.5, 1.1538, 0.5556, 0.2174)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def exact(params, xt, sigma, cond, **options):
    """E[x0 | xt] for data N(0.4, 0.8^2)."""
    sigma = sigma[:, None, None, None]
    return (0.64 * xt + sigma**2 * 0.4) / (0.64 + sigma**2)


def images(*values) -> jax.Array:
    return jnp.array(values, jnp.float64).reshape(-1, 1, 1, 1)


def noise_of(values):
    """Returns eps_2, eps_3, ... of one example."""
    return lambda k: jnp.array([*values, 0.0])[k - 1].reshape(1, 1, 1, 1)


# Noise levels: equal steps in time.


@pytest.mark.parametrize(
    ("steps", "sigma_init", "shift", "expected"),
    [
        (1, 2.5, 1.0, [2.5]),
        (2, 2.5, 1.0, [2.5, 0.5556]),
        (4, 2.5, 1.0, [2.5, 1.1538, 0.5556, 0.2174]),
        (4, 999.0, 1.0, [999.0, 2.988, 0.998, 0.3329]),
        (4, 999.0, 3.0, [2997.0, 8.964, 2.994, 0.9987]),
    ],
)
def test_levels_are_equal_steps_in_time(steps, sigma_init, shift, expected):
    found = schedule.generator_levels(steps, sigma_init=sigma_init, shift=shift)
    assert found == pytest.approx(expected, rel=2e-4)
    options = config.Generator(steps=steps, sigma_init=sigma_init, shift=shift)
    assert config.generator_levels(options) == found


def test_one_step_level_is_exactly_sigma_init():
    for sigma in (2.5, 0.1, 1 / 3):
        made = config.Config(generator=config.Generator(sigma_init=sigma))
        assert generator.generator_of(made) == OneStep(sigma)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (1.0, 2.0)}, "strictly decreasing"),
        ({"levels": (2.0, 2.0)}, "strictly decreasing"),
        ({"levels": (2.0, 0.0)}, "above 0"),
        ({"levels": (2.0, -1.0)}, "above 0"),
        ({"levels": (float("inf"), 1.0)}, "finite"),
        ({"levels": (float("nan"), 1.0)}, "finite"),
        ({"levels": (2.0, float("nan"))}, "strictly decreasing"),
        ({"levels": (2.0, 1.0), "steps": 4}, "has 2 levels, but generator.steps = 4"),
        ({"levels": (2.0, 1.0), "steps": 1}, "has 2 levels, but generator.steps = 1"),
        ({"steps": 0}, "generator.steps = 0"),
        ({"steps": 2, "shift": 0.0}, "above 0"),
        ({"steps": 2, "shift": -1.0}, "above 0"),
        ({"steps": 2, "sigma_init": float("inf")}, "finite"),
    ],
)
def test_invalid_levels_are_refused_at_start(options, message):
    made = config.Config(generator=config.Generator(**options))
    with pytest.raises(ConfigError, match=message):
        config.validate(made, {}, devices=1)


def test_unknown_renoise_error_lists_the_known_ones():
    with pytest.raises(ConfigError, match="generator.renoise = 'new' .* known: ddim, fixed, fresh"):
        config.require_known("generator.renoise", "new", generator.RENOISE)


# Closed form: with an affine denoiser, x_k is affine in the noises.


def moments(chain: Chain) -> tuple[float, float]:
    """Mean and variance of x_K over independent noises, from its values at unit noises."""
    steps = len(chain.levels)

    def last(z, *later):
        return float(chain.sample(exact, {}, images(z), None, noise_of(later))[0, 0, 0, 0])

    mean = last(*np.zeros(steps))
    return mean, sum((last(*unit) - mean) ** 2 for unit in np.eye(steps))


@pytest.mark.parametrize(
    ("calls", "mean", "variance"),
    [
        (1, 0.3628447025, 0.0539264115),
        (2, 0.3879375766, 0.1460049303),
        (3, 0.3918621027, 0.2069328852),
        (4, 0.3924217006, 0.2204351002),
    ],
)
def test_gaussian_chain_has_closed_form_moments(calls, mean, variance):
    levels = schedule.generator_levels(4, sigma_init=2.5)[:calls]
    assert moments(Chain(levels)) == pytest.approx((mean, variance), abs=1e-9)
    # A wrong level or reused noise gives other moments.
    wrong = (levels[0] * 1.1, *levels[1:])
    assert abs(moments(Chain(wrong))[0] - mean) > 1e-6
    if calls > 1:
        assert abs(moments(Chain(levels, "fixed"))[1] - variance) > 1e-3


def test_fixed_renoise_reuses_z_and_ddim_the_predicted_noise():
    z, x, eps = images(0.7, -1.2), 0.0, images(0.7, -1.2)
    for sigma in LEVELS:
        xt = x + sigma * eps
        x = exact({}, xt, jnp.full(2, sigma), None)
        eps = (xt - x) / sigma
    np.testing.assert_allclose(Chain(LEVELS, "ddim").sample(exact, {}, z, None), x, rtol=1e-12)
    x = 0.0
    for sigma in LEVELS:
        x = exact({}, x + sigma * z, jnp.full(2, sigma), None)
    np.testing.assert_allclose(Chain(LEVELS, "fixed").sample(exact, {}, z, None), x, rtol=1e-12)


def test_fresh_noise_differs_by_call_and_example_but_not_by_batch():
    keys = jax.random.split(jax.random.key(0), 3)
    draw = generator.noise_of(keys, (2, 2, 1))
    first, second = draw(1), draw(2)
    assert first.shape == (3, 2, 2, 1)
    drawn = [*first, *second]
    assert all((a != b).all() for i, a in enumerate(drawn) for b in drawn[:i])
    np.testing.assert_array_equal(generator.noise_of(keys[1:], (2, 2, 1))(2), second[1:])


# Training: which call is drawn, and where its gradient flows.


def moving(params, xt, sigma, cond, **options):
    """A denoiser that is nonlinear in its parameter."""
    return jnp.sin(params * xt) / (1 + sigma[:, None, None, None])


@pytest.mark.parametrize("renoise", generator.RENOISE)
@pytest.mark.parametrize("calls", [1, 2, 4])
def test_gradient_flows_through_the_last_call_only(renoise, calls):
    """Against an explicit loop with stop_gradient in the earlier calls."""
    chain, z = Chain(LEVELS, renoise), images(0.7, -1.2)
    keys = jax.random.split(jax.random.key(0), 2)
    noise = generator.noise_of(keys, z.shape[1:])

    def found(params, k):
        return chain.train_sample(moving, params, z, None, calls=k, noise_keys=keys).sum()

    def written(params, stopped):
        x, eps = jnp.zeros_like(z), z
        for k, sigma in enumerate(LEVELS[:calls]):
            xt = x + sigma * eps
            used = params if k == calls - 1 else stopped(params)
            x = moving(used, xt, jnp.full(2, sigma), None)
            eps = {"fresh": noise(k + 1), "fixed": z, "ddim": (xt - x) / sigma}[renoise]
        return x.sum()

    value, gradient = jax.jit(jax.value_and_grad(found))(0.6, calls)
    expected = jax.value_and_grad(written)(0.6, jax.lax.stop_gradient)
    np.testing.assert_allclose((value, gradient), expected, rtol=1e-10)
    if calls > 1:
        through = jax.grad(written)(0.6, lambda params: params)
        assert abs(through - gradient) > 1e-3 * abs(gradient)


def test_train_sample_at_k_equals_sample_of_a_k_step_chain():
    chain, z = Chain(LEVELS), images(0.7, -1.2)
    keys = jax.random.split(jax.random.key(0), 2)
    noise = generator.noise_of(keys, z.shape[1:])
    for k in range(1, 5):
        found = chain.train_sample(moving, 0.6, z, None, calls=k, noise_keys=keys)
        shorter = Chain(LEVELS[:k]).sample(moving, 0.6, z, None, noise)
        np.testing.assert_allclose(found, shorter, rtol=1e-12)


def distilled(steps: int, **fields) -> tuple[config.Config, list[update.Update]]:
    made = config.Config(batch=6, network=config.SongUNet(resolution=2, label_dim=3), **fields)
    made.generator.steps = steps
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    fns = setup.step_fns(made, moving, mesh)
    return made, setup.updates_of(made, fns, mesh)


def test_all_updates_of_a_step_share_one_uniformly_drawn_k():
    _, updates = distilled(4, fake_score_updates=2)
    state = update.TrainState(jnp.int32(0), {}, None)

    def drawn(key):
        return [d.calls for d in update.draws(state, update.Constants(None), key, updates=updates)]

    found = np.array([jax.jit(drawn)(jax.random.key(n)) for n in range(400)])
    assert (found == found[:, :1]).all()
    np.testing.assert_allclose(np.bincount(found[:, 0], minlength=5)[1:] / 400, 0.25, atol=0.07)


def test_one_step_draws_no_k_or_noise_keys_and_otherwise_the_same_values():
    key, captions = jax.random.key(0), None
    one, four = ((distilled(n)[1][0].draw)(key, captions, key) for n in (1, 4))
    assert one.calls is None and one.noise_keys is None
    np.testing.assert_array_equal(one.z, four.z)
    np.testing.assert_array_equal(one.eps, four.eps)
    both = {bytes(np.asarray(jax.random.key_data(key))) for key in [*four.noise_keys]}
    others = (*four.dropout_keys, *four.augment_keys)
    assert len(both) == 6
    assert not both & {bytes(np.asarray(jax.random.key_data(key))) for key in others}


def test_scores_are_not_conditioned_on_k():
    """If the generator's samples do not depend on k, neither do the losses."""
    made, updates = distilled(4)
    fns = dataclasses.replace(
        setup.step_fns(made, moving, sharding.make_mesh(devices=jax.devices()[:1])),
        generate=lambda params, z, cond, **options: params * z,
    )
    key = jax.random.key(0)
    drawn = updates[0].draw(key, None, key)
    for loss in (
        lambda draws: step.fake_score_loss(0.3, 0.5, draws, fns=fns)[0],
        lambda draws: step.generator_loss(0.5, 0.2, 0.3, draws, fns=fns)[0],
    ):
        first, fourth = (loss(drawn.replace(calls=jnp.int32(k))) for k in (1, 4))
        assert first == fourth != 0


# SIM's theorem for a mixture: components N(m_k, s_k^2), teacher N(-0.5, 1.3^2), sigma 0.7.

COMPONENTS, TEACHER, SIGMA = ((0.1, 0.5), (0.6, 0.9)), (-0.5, 1.3), 0.7
NODES = np.polynomial.hermite_e.hermegauss(60)


def score(xt, mean, std):
    return (mean - xt) / (std**2 + SIGMA**2)


def mixture_score(xt, means):
    stds = [std for _, std in COMPONENTS]
    logs = jnp.stack(
        [
            -((xt - mean) ** 2) / (2 * (std**2 + SIGMA**2)) - jnp.log(std**2 + SIGMA**2) / 2
            for mean, std in zip(means, stds, strict=True)
        ]
    )
    share = jax.nn.softmax(logs, axis=0)
    return sum(w * score(xt, m, s) for w, m, s in zip(share, means, stds, strict=True))


def mixture_gradient(distance, own: bool = False) -> list[float]:
    """Gradient of the loss for each component's mean, each weighted by 1/2 (k is uniform).

    Args:
      own: use the component's own score as the fake score, instead of the mixture's.
    """
    means = [mean for mean, _ in COMPONENTS]
    z, eps = (axis.reshape(-1, 1, 1, 1) for axis in np.meshgrid(NODES[0], NODES[0]))
    weight = np.outer(NODES[1], NODES[1]).reshape(-1) / NODES[1].sum() ** 2

    def loss(shift, component):
        mean, std = COMPONENTS[component]
        x0 = mean + shift + std * z
        xt = x0 + SIGMA * eps
        fake = score(xt, mean, std) if own else mixture_score(xt, means)
        denoised = [xt + SIGMA**2 * found for found in (score(xt, *TEACHER), fake)]
        sigma = jnp.full(len(xt), SIGMA)
        of_scores = sim.score_units(sigma, x0, *denoised)
        losses = sim.generator_loss(*of_scores, jnp.ones(len(xt)), distance=distance)
        return losses @ weight / len(COMPONENTS)

    return [float(jax.grad(loss)(0.0, k)) for k in range(len(COMPONENTS))]


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (distances.l2_squared, [0.6102351157, 0.2635884059]),
        (distances.bind("pseudo_huber", c=0.3), [0.4118499325, 0.0941295880]),
    ],
    ids=["l2_squared", "pseudo_huber"],
)
def test_loss_gradient_is_that_of_the_mixture_divergence(distance, expected):
    assert mixture_gradient(distance) == pytest.approx(expected, rel=1e-5)


def test_component_scores_give_a_different_gradient():
    found = mixture_gradient(distances.l2_squared, own=True)
    assert found == pytest.approx([0.3719315646, 0.3881439661], rel=1e-5)


# Sampling with another number of calls than in training.


def test_with_calls_recomputes_the_levels_and_warns():
    made = config.Config(generator=config.Generator(steps=4))
    assert generator.with_calls(made, 4) == (made, "")
    fewer, warning = generator.with_calls(made, 2)
    assert generator.generator_of(fewer).levels == pytest.approx((2.5, 0.5556), rel=1e-4)
    assert "trained for 4 calls at sigma 2.5, 1.154, 0.5556, 0.2174" in warning
    assert "2 calls at sigma 2.5, 0.5556" in warning
    listed = config.Config(generator=config.Generator(levels=(5.0, 1.0)))
    one, _ = generator.with_calls(listed, 1)
    assert generator.generator_of(one) == OneStep(5.0)
    with pytest.raises(ConfigError, match="leave --sigma_init out"):
        generator.set_sigma_init(listed, 3.0)


@pytest.mark.parametrize("method", ["sim", "two_steps"])
def test_with_generator_replaces_the_config_generator(method):
    options = load("digits", method)
    for made in (Chain((3.0, 1.0), "ddim"), OneStep(2.0), Chain((2.0, 1.0))):
        changed = generator.with_generator(options, made)
        assert generator.generator_of(changed) == made
        check.check(changed, devices=1)
        assert changed.generator.optim == options.generator.optim
