"""Flow-matching noise levels and Euler steps against diffusers' FlowMatchEulerDiscreteScheduler."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from simjax.diffusion import sampler, schedule

MEAN, VARIANCE = 0.4, 0.64


def velocity(z, u):
    """E[eps - x0 | z] for x0 ~ N(MEAN, VARIANCE)."""
    total = (1 - u) ** 2 * VARIANCE + u**2
    return -MEAN + (u - (1 - u) * VARIANCE) / total * (z - (1 - u) * MEAN)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_euler_steps_equal_those_of_the_scheduler(shift, steps):
    u_max = 0.999
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=(u_max * (1 - np.arange(steps) / steps)).tolist())
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)
    sigmas = schedule.flow_ladder(steps, shift=shift, u_max=u_max)
    u = np.asarray(scheduler.sigmas[:-1], np.float64)
    np.testing.assert_allclose(sigmas / (1 + sigmas), u, rtol=1e-6)

    def denoise(xt, sigma):
        sigma = sigma[:, None, None, None]
        return (VARIANCE * xt + sigma**2 * MEAN) / (VARIANCE + sigma**2)

    start = z.numpy().reshape(5, 1, 1, 1) / u[0]  # z = u eps at the first level
    found = sampler.euler(denoise, start, sigmas)
    for time, level in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        z = scheduler.step(velocity(z, float(level)), time, z).prev_sample
    np.testing.assert_allclose(np.ravel(found), z.numpy(), atol=1e-6)
