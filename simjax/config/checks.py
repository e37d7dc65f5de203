"""What is refused of a config, and of the values that users give in flags and in Python."""

import dataclasses
import math
import operator
import os
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from simjax.config import schema, serial
from simjax.errors import ConfigError

LARGEST_SEED = 2**32 - 1  # what jax.random.fold_in takes


def validate(config: schema.Config, choices: dict[str, Collection[str]], devices: int) -> None:
    """Checks across fields; `choices` maps a dotted field to the names it may hold.

    Raises:
      ConfigError: with what came, what was expected and what to do.
    """
    for path, known in choices.items():
        require_known(path, serial.get_field(config, path), known)
    for path in ("steps", "batch", "accumulate", "steps_per_call", "log_every", "sample_every"):
        _require_positive(config, path)
    for path in ("checkpoint_every", "keep_checkpoints", "checkpoint_limit", "fsdp"):
        _require_positive(config, path)
    for path in (
        "teacher.batch",
        "generator.optim.lr",
        "fake_score.optim.lr",
        "generator.sigma_init",
        "evaluation.samples",
    ):
        _require_positive(config, path)
    if config.batch % config.accumulate:
        raise ConfigError(
            f"batch = {config.batch} is not divisible by accumulate = {config.accumulate}."
        )
    for path, batch in [
        ("batch", config.batch // config.accumulate),
        ("teacher.batch", config.teacher.batch if config.teacher.steps else 0),
    ]:
        if batch % devices:
            slices = config.accumulate if path == "batch" else 1
            fitting = math.ceil(batch / devices) * devices * slices
            raise ConfigError(
                f"{path}: {batch} examples at a time cannot be split over {devices} devices; "
                f"use a multiple of {devices}, e.g. --config.{path}={fitting}."
            )
    seen = ("log_every", "sample_every", "checkpoint_every", "evaluation.every")
    for path in ("steps", "teacher.steps", *seen):
        if serial.get_field(config, path) % config.steps_per_call:
            raise ConfigError(
                f"{path} = {serial.get_field(config, path)} is not a multiple of steps_per_call = "
                f"{config.steps_per_call}: steps are only seen at the ends of compiled calls. "
                "Change it, or use --config.steps_per_call=1."
            )


def require_teacher(config: schema.Config) -> None:
    """Refuses a distillation that neither names a teacher nor can train one.

    Raises:
      ConfigError: with the fields that would do.
    """
    source, steps, network = config.teacher.source, config.teacher.steps, config.network
    for name, part in (("teacher", config.teacher), ("generator", config.generator)):
        if part.family and not part.source:
            raise ConfigError(
                f"{name}.family = {part.family!r} is of a file that {name}.source names; set "
                f"--config.{name}.source=FILE, or leave it out."
            )
    if source and (steps or network is not None):
        raise ConfigError(
            f"teacher.source = {source!r} brings its network and needs no training; leave out "
            "network and teacher.steps."
        )
    if not source and not (steps > 0 and network is not None and config.data.source):
        raise ConfigError(
            "there is no teacher: name one, e.g. --config.teacher.source="
            "edm-cifar10-32x32-cond-vp, or train one here, which needs teacher.steps (now "
            f"{steps}), a network and data.source."
        )


def complete(
    config: schema.Config, network: schema.Network, precondition: str, sigma_data: float
) -> schema.Config:
    """The config of a run whose teacher is known: its network, with the run's own dropout.

    Raises:
      ConfigError: augmentation, dropout or guidance is asked of a network without it.
    """
    if config.dropout is not None:
        if not hasattr(network, "dropout"):
            raise ConfigError(
                f"dropout = {config.dropout}, but {type(network).__name__} has none; leave it out."
            )
        network = dataclasses.replace(network, dropout=config.dropout)
    require_null_condition(config, network)
    for path in ("teacher.augment", "fake_score.augment"):
        if serial.get_field(config, path) and network.augment_dim != schema.AUGMENT_DIM:
            raise ConfigError(
                f"{path} = {serial.get_field(config, path)}, but the network has augment_dim = "
                f"{network.augment_dim}, not {schema.AUGMENT_DIM}; set --config.{path}=0."
            )
    teacher = dataclasses.replace(config.teacher, precondition=precondition, sigma_data=sigma_data)
    return dataclasses.replace(config, network=network, teacher=teacher)


def require_null_condition(config: schema.Config, network: schema.Network) -> None:
    """Refuses guidance of a network that has nothing to put in place of a condition.

    Raises:
      ConfigError: with what would do.
    """
    lacks = isinstance(network, schema.PixArt) and not network.caption_length
    for path in ("teacher.guidance", "fake_score.guidance"):
        if lacks and serial.get_field(config, path) != 1:
            raise ConfigError(
                f"{path} = {serial.get_field(config, path)}, but diffusers' folder of PixArt lacks "
                "the learned embedding of no caption; use the original .pth, or set "
                f"--config.{path}=1."
            )


def pick(method: str, **known: Callable[[], schema.Config]) -> schema.Config:
    """The variant of an experiment that --config=FILE:METHOD asks for.

    Raises:
      ConfigError: the file has no such variant.
    """
    require_known("method (after the colon of --config)", method, known)
    return known[method]()


def require_known(path: str, value: str, known: Collection[str]) -> None:
    """Refuses a name that is not one of `known`.

    Raises:
      ConfigError: listing them.
    """
    if value not in known:
        raise ConfigError(f"{path} = {value!r} is not known; known: {', '.join(sorted(known))}.")


def _require_positive(config: schema.Config, path: str) -> None:
    if not serial.get_field(config, path) > 0:
        raise ConfigError(f"{path} = {serial.get_field(config, path)} must be positive.")


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as an int.

    Raises:
      ConfigError: it is something else, as 2.5, "3" or True, or not from least to most.
    """
    upper = "" if most is None else f" to {most}"
    expected = f"expected a whole number from {least}{upper or ' on'}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if (
        number is None
        or isinstance(value, bool | np.bool_)
        or number < least
        or (most is not None and number > most)
    ):
        raise ConfigError(f"{name} = {value!r}: {expected}.")
    return number


def seed(value: Any, name: str = "seed") -> int:
    """A seed from 0 to LARGEST_SEED.

    Raises:
      ConfigError: it is something else.
    """
    return whole_number(name, value, 0, LARGEST_SEED)


def is_positive(value: float | None) -> bool:
    """Whether a number is positive and finite, or None."""
    return value is None or 0 < value < math.inf


def instance(name: str, value: Any, kind: type, remedy: str) -> None:
    """Refuses a value of another class.

    Raises:
      ConfigError: with what came, what was expected and the remedy.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {shown(value)}, expected a {kind.__name__}: {remedy}.")


def path(name: str, value: Any) -> str:
    """A path, URL or name as text; pathlib's objects too.

    Raises:
      ConfigError: it is something else.
    """
    try:
        found = os.fspath(value)
    except TypeError:
        found = None
    if not isinstance(found, str):
        raise ConfigError(f"{name} is {shown(value)}, expected text or a pathlib.Path.")
    return found


def shown(value: Any) -> str:
    """A value for a message: text in quotes, anything else by its class."""
    return repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
