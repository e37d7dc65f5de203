"""diffusers' LCMScheduler config for a multi-step generator.

LCMScheduler denoises at each time step and adds fresh noise for the next one: models/generator.py's
Chain in variance-preserving scale. Its table has the DDPM training's noise levels, except at the
generator's time steps, which have the generator's levels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from simjax.diffusion import precondition
from simjax.errors import ConfigError

FILE = "scheduler/scheduler_config.json"


def times(levels: Sequence[float]) -> list[int]:
    """DDPM time steps nearest to the noise levels.

    The network is conditioned on them.

    >>> times([2.5, 0.5])
    [440, 144]

    Args:
      levels: sigma of each call, data units.

    Raises:
      ConfigError: two levels have the same time step.
    """
    *_, found = precondition.ddpm_linear(np.asarray(levels, np.float32))
    found = [int(time) for time in found]
    if len(set(found)) < len(found):
        raise ConfigError(
            f"levels {tuple(levels)} have time steps {found}, but diffusers needs different ones; "
            "use --format=safetensors or stablehlo."
        )
    return found


def settings(levels: Sequence[float]) -> dict[str, Any]:
    """scheduler_config.json of LCMScheduler, as a dictionary.

    >>> config = settings([2.5, 0.5])
    >>> config["_class_name"], config["num_train_timesteps"], config["prediction_type"]
    ('LCMScheduler', 1000, 'epsilon')
    """
    table = precondition.ddpm_linear_levels()[-2::-1].astype(np.float64)  # at time steps 0, 1, ...
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
        "timestep_scaling": 1e6,  # makes c_skip zero: every step outputs D alone
    }
