"""What one step costs: at most 1.05 times 11 forwards (two of G, 3 + 4 of the scores, 2 of G)."""

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
@pytest.mark.parametrize("loss", ["sim", "sid"])
def test_one_step_costs_eleven_forwards(loss):
    options = config.Config(
        batch=8,
        network=LARGER,
        loss=config.Loss(name=loss),
    )
    denoise, params = as_denoise(build.module(options))
    training = setup.distillation(options, denoise, sharding.make_mesh(devices=jax.devices()[:1]))
    step = flops(training.call, training.init(params, params), Constants(params), KEY)
    xt, sigma, labels = jnp.zeros((8, 8, 8, 1)), jnp.ones(8), jnp.zeros((8, 10))
    with for_cpus():
        forward = flops(denoise, params, xt, sigma, labels)
    assert 10.5 * forward < step <= 1.05 * 11 * forward
