"""Adam, the EMA and its ramp-up, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax.train import optim

GRADS = [np.float32([0.5, -2.0, 0.0, 3e-9]), np.float32([1.5, 0.1, 0.0, -1e-7])]


def make(**changes):
    options = {"lr": 0.1, "beta1": 0.0, "beta2": 0.9, "eps": 1e-8, "warmup_steps": 0, "final_lr": 1}
    return optim.adam(steps=10, **(options | changes))


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_is_bias_corrected_with_eps_outside_the_root(beta1):
    tx = make(beta1=beta1)
    params = jnp.zeros(4)
    opt = tx.init(params)
    m = v = np.zeros(4)
    for step, g in enumerate(np.float64(GRADS), start=1):
        updates, opt = tx.update(jnp.float32(g), opt, params)
        m, v = beta1 * m + (1 - beta1) * g, 0.9 * v + 0.1 * g**2
        expected = -0.1 * m / (1 - beta1**step) / (np.sqrt(v / (1 - 0.9**step)) + 1e-8)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_non_finite_gradients_are_replaced():
    tx = optim.finite_gradients()
    updates, _ = tx.update(jnp.array([np.nan, np.inf, -np.inf, 2.0]), tx.init(None))
    np.testing.assert_array_equal(updates, [0, 1e5, -1e5, 2])


def test_clipping_equals_adam_on_clipped_gradients():
    clipped, plain = make(clip=0.5), make()
    opt, expected_opt = (tx.init(jnp.zeros(4)) for tx in (clipped, plain))
    for g in ([np.nan, np.inf, -3.0, 0.2], [0.1, 0.6, -0.1, 0.2]):
        updates, opt = clipped.update(jnp.float32(g), opt)
        within = np.clip(np.nan_to_num(g), -0.5, 0.5)
        expected, expected_opt = plain.update(jnp.float32(within), expected_opt)
        np.testing.assert_array_equal(updates, expected)


def test_learning_rate_has_linear_warm_up_and_cosine_decay():
    # The update of a constant gradient is -lr(step).
    tx = make(warmup_steps=2, final_lr=0.1)
    opt = tx.init(jnp.zeros(1))
    rates = []
    for _ in range(12):
        updates, opt = tx.update(jnp.ones(1), opt)
        rates.append(-float(updates[0]))
    cosine = 0.1 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.arange(9) / 8)))
    np.testing.assert_allclose(rates, [0.05, 0.075, *cosine, 0.01], rtol=1e-4)


@pytest.mark.parametrize(
    ("images", "half_life"), [(0, 0.0), (1000, 50.0), (10_000, 500.0), (1e9, 500.0)]
)
def test_ema_half_life_and_its_ramp_up(images, half_life):
    beta = optim.ema_decay(jnp.float32(images), 64, half_life_kimg=0.5, rampup_ratio=0.05)
    np.testing.assert_allclose(beta, 0.5 ** (64 / half_life) if half_life else 0.0, rtol=1e-6)


def test_ema_decay_without_ramp_up_is_constant():
    beta = optim.ema_decay(jnp.float32(0), 64, half_life_kimg=0.5, rampup_ratio=0.0)
    np.testing.assert_allclose(beta, 0.5 ** (64 / 500), rtol=1e-6)


def test_ema_update_is_a_convex_combination():
    found = optim.ema_update({"a": jnp.zeros(2)}, {"a": jnp.ones(2)}, jnp.float32(0.75))
    np.testing.assert_allclose(found["a"], 0.25)


def test_adam_with_beta1_zero_stores_one_number_per_parameter():
    numbers = {beta1: _size(make(beta1=beta1).init(jnp.zeros(400))) for beta1 in (0.0, 0.9)}
    assert 400 <= numbers[0.0] < 410
    assert 800 <= numbers[0.9] < 810


def _size(state) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state))
