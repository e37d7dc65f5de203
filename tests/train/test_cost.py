"""FLOPs of one step: at most 1.05 times 11 forwards (two of G, 3 + 4 of the scores, 2 of G).

Every extra fake-score update costs four: one of G, three of the fake score.
"""

import jax
import jax.numpy as jnp
import pytest

from simjax import config
from simjax.models import build
from simjax.networks.denoiser import as_denoise
from simjax.runs import setup
from simjax.runtime import sharding
from simjax.runtime.cpu import for_cpus
from simjax.train.step import Constants
from tests.helpers.configs import LARGER

KEY = jax.random.key(0)


def flops(function, *args) -> float:
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.whole_runs
@pytest.mark.parametrize(("loss", "updates"), [("sim", 1), ("sid", 1), ("sim", 2)])
def test_a_step_costs_eleven_forwards_plus_four_per_extra_fake_score_update(loss, updates):
    options = config.Config(
        batch=8,
        fake_score_updates=updates,
        network=LARGER,
        loss=config.Loss(name=loss),
    )
    step, forward = costs(options)
    forwards = 11 + 4 * (updates - 1)
    assert (forwards - 0.5) * forward < step <= 1.05 * forwards * forward


def costs(options: config.Config) -> tuple[float, float]:
    """FLOPs of a step, and of a forward pass on its batch."""
    denoise, params = as_denoise(build.module(options))
    training = setup.distillation(options, denoise, sharding.make_mesh(devices=jax.devices()[:1]))
    like = setup.real_like(options, 1)
    rows = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    constants = Constants(params, real=rows)
    step = flops(training.call, training.init(params, params), constants, KEY)
    xt, sigma, labels = jnp.zeros((8, 8, 8, 1)), jnp.ones(8), jnp.zeros((8, 10))
    with for_cpus():
        return step, flops(denoise, params, xt, sigma, labels)


@pytest.mark.parametrize("updates", [1, 2])
def test_a_discriminator_costs_at_most_fifteen_percent(updates):
    """SiDA against SiD: the encoder's forward and backward pass on real images."""
    options = config.Config(
        batch=8, network=LARGER, fake_score_updates=updates, loss=config.Loss(name="sid")
    )
    alone, _ = costs(options)
    options.real.source = "digits"
    options.adversarial = config.Adversarial(fake_score_scale=1.0, generator_scale=0.01)
    both, _ = costs(options)
    assert 1.02 * alone < both <= 1.15 * alone


@pytest.mark.whole_runs
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_each_earlier_call_of_a_four_step_generator_costs_two_forwards(k, monkeypatch):
    """With constant k and an unrolled loop: XLA's cost analysis counts a loop's body once."""
    options = config.Config(batch=8, network=LARGER, generator=config.Generator(steps=4))

    def written_out(begin, end, body, carry):
        for number in range(begin, end):
            carry = body(number, carry)
        return carry

    with monkeypatch.context() as patch:
        patch.setattr(jax.random, "randint", lambda *_: k)
        patch.setattr(jax.lax, "fori_loop", written_out)
        step, forward = costs(options)
    forwards = 11 + 2 * (k - 1)
    assert (forwards - 0.5) * forward < step <= 1.05 * forwards * forward
