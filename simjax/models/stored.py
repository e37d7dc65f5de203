"""What run directories hold: networks, stored once with all that is known of them, and loaded."""

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

GENERATORS = ("generator", "best")  # of a run: the newest, and what evaluation.best has kept


def find_run(source: str) -> tuple[epath.Path, c.Config] | None:
    """The directory of a run and its config; None of anything else, as a file or a URL.

    Raises:
      ConfigError: its config.json is broken, or of another version.
    """
    if zoo.is_url(source):
        return None
    directory = storage.absolute(source)
    config = config_of_run(directory)
    return None if config is None else (directory, config)


def config_of_run(directory: epath.Path) -> c.Config | None:
    """What a run directory says; None of anything else, as a diffusers folder.

    Raises:
      ConfigError: its config.json is broken, or of another version.
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
    """Writes a network (numpy arrays) and all that is known of it; one process does it."""
    what = description._replace(network=c.describe(description.network))._asdict()
    note = provenance | {"description": what, "simjax": versions.SIMJAX}
    checkpoint.save_teacher(directory, weights, note)


def store_again(directory: epath.Path, model: Model, params: Params, found: dict[str, Any]) -> None:
    """Writes other parameters of a model's network, with what is known of them."""
    note = {"description": model.provenance["description"], "simjax": versions.SIMJAX}
    save = functools.partial(
        checkpoint.save_teacher, directory, model.weights(params), note | found
    )
    processes.by_first(save, f"{directory} is stored")


def described(config: c.Config, directory: epath.Path) -> tuple[c.Config, dict[str, Any]]:
    """The config that a stored network completes, and what is known of it; no weights are read.

    Raises:
      ConfigError: it does not fit the config.
    """
    provenance = checkpoint.load_provenance(directory)
    what = dict(provenance["description"])
    return c.complete(config, **what | {"network": c.network_from(what["network"])}), provenance


def load(config: c.Config, directory: epath.Path, **beside: Any) -> Model:
    """A stored network, and the config that it completes.

    Args:
      beside: what model_of takes beside weights.

    Raises:
      ConfigError: it is damaged, or does not fit the config.
    """
    config, provenance = described(config, directory)
    like = sharding.abstract(build.weights_like(config), build.mesh(config))
    return model_of(config, checkpoint.load_teacher(directory, like), provenance, **beside)


def generator_of_run(
    model: Model, directory: epath.Path, which: str
) -> tuple[Params, dict[str, Any]]:
    """A generator of a run, and its "step"; of the best also its "metric" and "value".

    Args:
      which: "generator", the newest; or "best", which evaluation.best has kept.

    Raises:
      ConfigError: there is none, or it is damaged.
    """
    if which == "best":
        return _best_generator(model, directory)
    generator, step = _newest_generator(model, directory)
    return generator, {"step": step}


def describe_generator(found: dict[str, Any]) -> str:
    """What a person reads of a generator that `generator_of_run` has found."""
    best = f", the best by {found['metric']} ({found['value']:.4g})" if "metric" in found else ""
    return f"EMA at step {found['step']}{best}"


def _newest_generator(model: Model, directory: epath.Path) -> tuple[Params, int]:
    """The generator's EMA in a run's newest checkpoint, and its step; nothing is written."""
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints", keep=None, say=print)
    generator, step = checkpoints.restore_tree("generator_ema", model.params)
    checkpoints.close()
    return generator, step


def _best_generator(model: Model, directory: epath.Path) -> tuple[Params, dict[str, Any]]:
    steps = checkpoint.steps_in(directory / "best")
    if not steps:
        raise ConfigError(
            f"{directory} has kept no best generator: a run keeps one with --config.evaluation."
            "best=METRIC (as inception/fid) and --config.evaluation.every=STEPS."
        )
    found = load(model.config, directory / "best" / str(steps[-1]))
    return found.params, {name: found.provenance[name] for name in ("step", "metric", "value")}
