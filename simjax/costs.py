"""Flops of programs, counted where nothing is compiled.

Called from simjax/timing.py, and from simjax/dry_run.py for stacks of blocks.
"""

import dataclasses
import os
from collections.abc import Callable

import jax

from simjax import config as c
from simjax import programs
from simjax.errors import ConfigError
from simjax.models import build
from simjax.programs import Arguments
from simjax.runtime import sharding
from simjax.runtime.cpu import for_cpus


def of_program(config: c.Config, name: str) -> dict[str, float]:
    """Flops an image, and an image's forward, by XLA's analysis of programs not yet compiled.

    Calls of GPU libraries would hide products in compiled ones. JAX analyses what is lowered for
    the CPU alone, so the programs are, for one CPU. The whole batch of one step at a time: only
    the sampler's loop, whose body the analysis counts once, is left to multiply. Of transformers
    every block is written out, and convolutions take the forms of the devices that are here.
    """
    config = dataclasses.replace(config, accumulate=1, steps_per_call=1, scan_blocks=False)
    denoise, like = build.blank(config)
    device = counting_device()
    made = programs.PROGRAMS[name](config, denoise, like, sharding.make_mesh(devices=[device]))
    with for_cpus(jax.default_backend() == "cpu"):
        program = _flops(made.function, made.arguments) * made.turns / made.batch
        forward = _flops(*made.forward(device, made.batch)) / made.batch
    return {
        "flops_per_image": program,
        "flops_per_forward": forward,
        "forwards": made.forwards,
        "over_forwards": program / (made.forwards * forward),
    }


def counting_device() -> jax.Device:
    """The CPU that costs are counted on; nothing runs there.

    Raises:
      ConfigError: JAX has been told to leave it out.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"costs are counted on the CPU, which JAX_PLATFORMS={platforms} leaves out; "
            f"set JAX_PLATFORMS={platforms},cpu, or unset it."
        ) from error


def _flops(function: Callable, arguments: Arguments) -> float:
    return function.lower(*arguments).cost_analysis()["flops"]
