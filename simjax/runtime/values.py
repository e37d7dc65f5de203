"""Checks of the values that users give in flags and in Python. Imports no JAX."""

import math
import operator
import os
from collections.abc import Collection
from typing import Any

import numpy as np

from simjax.errors import ConfigError

LARGEST_SEED = 2**32 - 1  # what jax.random.fold_in takes


def require_known(path: str, value: str, known: Collection[str]) -> None:
    """Refuses a name that is not one of `known`.

    Raises:
      ConfigError: listing them.
    """
    if value not in known:
        raise ConfigError(f"{path} = {value!r} is not known; known: {', '.join(sorted(known))}.")


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
