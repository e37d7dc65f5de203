"""Stores and loads the networks of a run directory, with their provenance."""

import functools
import json
from typing import Any

from etils import epath

from simjax import config as c
from simjax.errors import ConfigError
from simjax.models import build
from simjax.models.model import Model, model_of
from simjax.networks.network import Description
from simjax.porting import zoo
from simjax.runtime import checkpoint, processes, sharding, storage, versions
from simjax.typing import Params

GENERATORS = ("generator", "best")  # the newest, and the best by evaluation.best


def find_run(source: str) -> tuple[epath.Path, c.Config] | None:
    """A run's directory and config, or None for other sources.

    Raises:
      ConfigError: its config.json is damaged or from an incompatible version.
    """
    if zoo.is_url(source):
        return None
    directory = storage.absolute(source)
    config = config_of_run(directory)
    return None if config is None else (directory, config)


def config_of_run(directory: epath.Path) -> c.Config | None:
    """Reads a run's config.json; None for other folders, e.g. of diffusers.

    Raises:
      ConfigError: it is damaged or from an incompatible version.
    """
    file = directory / "config.json"
    try:
        values = json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON ({error}).") from error
    return c.from_dict(values) if "teacher" in values else None


def store(
    directory: epath.Path, weights: Params, description: Description, provenance: dict[str, Any]
) -> None:
    """Writes a network (numpy arrays) with its provenance; call on one process."""
    what = description._replace(network=c.describe(description.network))._asdict()
    note = provenance | {"description": what, "simjax": versions.SIMJAX}
    checkpoint.save_teacher(directory, weights, note)


def store_again(directory: epath.Path, model: Model, params: Params, found: dict[str, Any]) -> None:
    """Writes another parameter tree of a model's network; call on every process."""
    note = {"description": model.provenance["description"], "simjax": versions.SIMJAX}
    save = functools.partial(
        checkpoint.save_teacher, directory, model.weights(params), note | found
    )
    processes.by_first(save, f"{directory} is stored")


def described(config: c.Config, directory: epath.Path) -> tuple[c.Config, dict[str, Any]]:
    """The config completed by a stored network, and its provenance.

    No weights are read.

    Raises:
      ConfigError: the network does not match the config.
    """
    provenance = checkpoint.load_provenance(directory)
    what = dict(provenance["description"])
    return c.complete(config, **what | {"network": c.network_from(what["network"])}), provenance


def load(config: c.Config, directory: epath.Path, **beside: Any) -> Model:
    """Loads a stored network as a `Model`, which completes the config.

    Args:
      beside: keyword arguments of model_of.

    Raises:
      ConfigError: it is damaged or does not match the config.
    """
    config, provenance = described(config, directory)
    like = sharding.abstract(build.weights_like(config), build.mesh(config))
    return model_of(config, checkpoint.load_teacher(directory, like), provenance, **beside)


def generator_of_run(
    model: Model, directory: epath.Path, which: str
) -> tuple[Params, dict[str, Any]]:
    """Loads a run's generator EMA and its metadata.

    Args:
      which: "generator" for the newest, "best" for the best by evaluation.best.

    Returns:
      The parameters, and {"step": ...}; for the best also "metric" and "value".

    Raises:
      ConfigError: the run has no such generator, or it is damaged.
    """
    if which == "best":
        return _best_generator(model, directory)
    generator, step = _newest_generator(model, directory)
    return generator, {"step": step}


def describe_generator(found: dict[str, Any]) -> str:
    """Human-readable metadata of `generator_of_run`.

    >>> describe_generator({"step": 500, "metric": "pixels/frechet", "value": 0.25})
    'EMA at step 500, the best by pixels/frechet (0.25)'
    """
    best = f", the best by {found['metric']} ({found['value']:.4g})" if "metric" in found else ""
    return f"EMA at step {found['step']}{best}"


def _newest_generator(model: Model, directory: epath.Path) -> tuple[Params, int]:
    """Reads the generator's EMA from a run's newest checkpoint, with its step."""
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints", keep=None, say=print)
    generator, step = checkpoints.restore_tree("generator_ema", model.params)
    checkpoints.close()
    return generator, step


def _best_generator(model: Model, directory: epath.Path) -> tuple[Params, dict[str, Any]]:
    steps = checkpoint.steps_in(directory / "best")
    if not steps:
        raise ConfigError(
            f"{directory} has no best generator: a run keeps one with --config.evaluation."
            "best=METRIC (e.g. inception/fid) and --config.evaluation.every=STEPS."
        )
    found = load(model.config, directory / "best" / str(steps[-1]))
    return found.params, {name: found.provenance[name] for name in ("step", "metric", "value")}
