"""A scheduler of diffusers that samples a chain of calls as it was trained.

diffusers' LCMScheduler denoises at each time step and adds new noise for the next: the chain of
models/generator.py in the variance-preserving scale. Its table of noise levels is the training's,
but at the chain's time steps, where it holds the chain's levels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from simjax.diffusion import precondition
from simjax.errors import ConfigError

FILE = "scheduler/scheduler_config.json"


def times(levels: Sequence[float]) -> list[int]:
    """The training's time steps nearest to noise levels, which the network is given.

    Raises:
      ConfigError: two levels have the same.
    """
    *_, found = precondition.ddpm_linear(np.asarray(levels, np.float32))
    found = [int(time) for time in found]
    if len(set(found)) < len(found):
        raise ConfigError(
            f"levels {tuple(levels)} have time steps {found}: those of diffusers must differ; use "
            "--format=safetensors or stablehlo."
        )
    return found


def settings(levels: Sequence[float]) -> dict[str, Any]:
    """The scheduler's configuration, in plain JSON."""
    table = precondition.ddpm_linear_levels()[-2::-1].astype(np.float64)  # at times 0, 1, ...
    table[times(levels)] = levels
    kept = 1 / (1 + table**2)  # alpha_bar
    betas = 1 - kept / np.concatenate([[1.0], kept[:-1]])
    return {
        "_class_name": "LCMScheduler",
        "num_train_timesteps": len(table),
        "trained_betas": betas.tolist(),
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "original_inference_steps": len(table),
        "timestep_scaling": 1e6,  # D itself, without a share of xt, at every time step
    }
