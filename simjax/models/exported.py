"""Reads back generators that simjax exported as safetensors."""

import json
from pathlib import Path
from typing import Any

from simjax import config as c
from simjax.errors import ConfigError
from simjax.models import build
from simjax.models.generator import generator_of
from simjax.networks.network import Description
from simjax.porting.files import read_safetensors
from simjax.porting.maps import rules
from simjax.runtime import versions
from simjax.typing import Params

WEIGHTS, SETTINGS = "model.safetensors", "config.json"


def is_export(folder: Path) -> bool:
    """Whether a folder holds a simjax safetensors export."""
    return (folder / WEIGHTS).exists() and (folder / SETTINGS).exists()


def settings(config: c.Config) -> dict[str, Any]:
    """Contents of the export's config.json: all that `read` needs beside the weights."""
    return {
        "library_name": "simjax",
        "simjax": versions.SIMJAX,
        "network": c.describe(config.network),
        "precondition": config.teacher.precondition,
        "sigma_data": config.teacher.sigma_data,
        **generator_of(config).settings(),
        "compute_dtype": config.compute_dtype,
    }


def read(folder: Path) -> tuple[c.Config, Params]:
    """Config and weights of a safetensors export.

    Raises:
      ConfigError: a file is missing or damaged, or config and weights do not match.
    """
    file = folder / SETTINGS
    try:
        found = json.loads(file.read_text())
        config = c.Config(compute_dtype=found["compute_dtype"])
        config.generator = _generator(found)
        network = c.network_from(found["network"])
        config = c.complete(config, network, found["precondition"], found["sigma_data"])
        c.validate(config, build.network_choices(config), devices=1)
        like = build.weights_like(config)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{file} cannot be read ({' '.join(str(error).split())}); expected a config.json "
            "written by python -m simjax export --format=safetensors."
        ) from error
    tensors = read_safetensors.read(folder / WEIGHTS)
    try:
        return config, rules.apply([rules.Rule("(.+)", r"\1")], tensors, like)
    except ConfigError as error:
        raise ConfigError(f"{folder / WEIGHTS}: {error}") from error


def _generator(found: dict[str, Any]) -> c.Generator:
    if "levels" not in found:
        return c.Generator(sigma_init=float(found["sigma_init"]))
    levels = tuple(float(level) for level in found["levels"])
    return c.Generator(levels=levels, renoise=found["renoise"])


def described(config: c.Config) -> Description:
    """The export's network, preconditioning family and sigma_data."""
    return Description(config.network, config.teacher.precondition, config.teacher.sigma_data)
