"""Options that a function declares by its keywords, from the fields of the same names."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


@functools.cache
def keywords(function: Callable) -> list[str]:
    """Names of the options that a function declares: its keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]


def options_of(function: Callable, record: Any) -> dict[str, Any]:
    """Values of the options that a function declares, from the fields of the same names.

    >>> options_of(sample_karras, Sigma(t_max=0.5))["t_max"]
    0.5
    """
    return {name: getattr(record, name) for name in keywords(function) if hasattr(record, name)}
