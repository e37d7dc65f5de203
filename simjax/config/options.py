"""Options that functions declare by their keywords, and the fields that these become.

A loss, a distance, a law of noise levels says in its own file what it can be told:

    def generator_loss(x0, d_teacher, d_fake, weight, *, alpha: float = 1.2): ...

The record of the schema that chooses it has a field of each of these names, types and defaults.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

PLAIN = (bool, int, float, str)  # what the command line can set
WRITTEN = ("__init__", "__repr__", "__eq__", "__match_args__")  # by dataclass, from the fields


@functools.cache
def keywords(function: Callable) -> list[str]:
    """Names of the options that a function declares: its keyword-only parameters."""
    return list(_declared(function))


def options_of(function: Callable, record: Any) -> dict[str, Any]:
    """Values of the options that a function declares, from the fields of the same names.

    >>> options_of(sample_karras, Sigma(t_max=0.5))["t_max"]
    0.5
    """
    return {name: getattr(record, name) for name in keywords(function) if hasattr(record, name)}


def extend(record: type, *functions: Callable, redefined: Collection[str] = ()) -> None:
    """Gives a dataclass the options that functions declare, as fields; it may be in use already.

    Options of one name are one field, and must have one default.

    Args:
      redefined: options that may have another default now.

    Raises:
      ValueError: an option has no default, a type that no command line sets, or two defaults.
    """
    for function in functions:
        for name, option in _declared(function).items():
            known = {field.name: field.default for field in dataclasses.fields(record)}
            if name in known and option.default in (known[name], inspect.Parameter.empty):
                continue
            if option.annotation not in PLAIN or option.default is inspect.Parameter.empty:
                raise ValueError(
                    f"{function.__name__}: the option {name} needs a default, and a type of "
                    f"{', '.join(kind.__name__ for kind in PLAIN)}."
                )
            if name in known and name not in redefined:
                raise ValueError(
                    f"{function.__name__}: the option {name} = {option.default!r}, but "
                    f"{record.__name__}.{name} = {known[name]!r} is another's; choose another name."
                )
            setattr(record, name, option.default)
            record.__annotations__[name] = option.annotation
            for method in WRITTEN:
                delattr(record, method)
            dataclasses.dataclass(record)


def _declared(function: Callable) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
