"""Validation of flag values and API arguments, without importing JAX."""

import math
import operator
import os
from collections.abc import Collection
from typing import Any

import numpy as np

from simjax.errors import ConfigError

LARGEST_SEED = 2**32 - 1  # what jax.random.fold_in takes


def require_known(path: str, value: str, known: Collection[str]) -> None:
    """Raises ConfigError, listing the choices, if `value` is not one of `known`.

    Args:
      path: field or flag, for the message.
    """
    if value not in known:
        raise ConfigError(f"{path} = {value!r} is not known; known: {', '.join(sorted(known))}.")


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Validates an integer argument and returns it as an int.

    Raises:
      ConfigError: it is something else, such as 2.5, "3" or True, or not from least to most.

    >>> whole_number("steps", 18, least=1)
    18
    >>> whole_number("steps", 2.5, least=1)
    Traceback (most recent call last):
    ...
    simjax.errors.ConfigError: steps = 2.5: expected a whole number from 1 upwards.
    """
    upper = "" if most is None else f" to {most}"
    expected = f"expected a whole number from {least}{upper or ' upwards'}"
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
    """Validates a random seed, an integer from 0 to LARGEST_SEED.

    Raises:
      ConfigError: it is something else.
    """
    return whole_number(name, value, 0, LARGEST_SEED)


def is_positive(value: float | None) -> bool:
    """Whether a number is positive and finite, or None."""
    return value is None or 0 < value < math.inf


def instance(name: str, value: Any, kind: type, remedy: str) -> None:
    """Raises ConfigError if the value is not an instance of `kind`.

    Args:
      name: of the argument, for the message.
      remedy: end of the message.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {shown(value)}, expected a {kind.__name__}: {remedy}.")


def path(name: str, value: Any) -> str:
    """Validates a path, URL or name, and returns it as text.

    Raises:
      ConfigError: it is neither text nor a pathlib object.
    """
    try:
        found = os.fspath(value)
    except TypeError:
        found = None
    if not isinstance(found, str):
        raise ConfigError(f"{name} is {shown(value)}, expected text or a pathlib.Path.")
    return found


def shown(value: Any) -> str:
    """A value for messages: repr of text and numbers, else the class.

    >>> shown("digits"), shown([1, 2])
    ("'digits'", 'a list')
    """
    return repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
