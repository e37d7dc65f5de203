"""Keyword-only arguments as config fields.

A loss, a distance or a sigma law declares its options in its signature:

    def generator_loss(x0, d_teacher, d_fake, weight, *, alpha: float = 1.2): ...

The dataclass of the schema that selects it gets a field with the same name, type and default.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

PLAIN = (bool, int, float, str)  # types of command-line flags
WRITTEN = ("__init__", "__repr__", "__eq__", "__match_args__")  # methods that dataclass generates


@functools.cache
def keywords(function: Callable) -> list[str]:
    """Names of a function's options, its keyword-only parameters.

    >>> keywords(lambda x0, *, alpha=1.2: None)
    ['alpha']
    """
    return list(_declared(function))


def options_of(function: Callable, record: Any) -> dict[str, Any]:
    """Option values of a function, read from fields of the same names.

    >>> from simjax.config.schema import Sigma
    >>> from simjax.diffusion.schedule import sample_karras
    >>> options_of(sample_karras, Sigma(t_max=0.5))["t_max"]
    0.5
    """
    return {name: getattr(record, name) for name in keywords(function) if hasattr(record, name)}


def extend(record: type, *functions: Callable, redefined: Collection[str] = ()) -> None:
    """Adds the functions' options to a dataclass, as fields, in place.

    Options of the same name share one field, so their defaults must agree.

    Args:
      redefined: options whose default may change.

    Raises:
      ValueError: an option without a default, of an unsupported type, or with conflicting defaults.
    """
    for function in functions:
        for name, option in _declared(function).items():
            known = {field.name: field.default for field in dataclasses.fields(record)}
            if name in known and option.default in (known[name], inspect.Parameter.empty):
                continue
            if option.annotation not in PLAIN or option.default is inspect.Parameter.empty:
                raise ValueError(
                    f"{function.__name__}: option {name} needs a default and one of the types "
                    f"{', '.join(kind.__name__ for kind in PLAIN)}."
                )
            if name in known and name not in redefined:
                raise ValueError(
                    f"{function.__name__}: option {name} = {option.default!r} conflicts with the "
                    f"existing {record.__name__}.{name} = {known[name]!r}; choose another name."
                )
            setattr(record, name, option.default)
            record.__annotations__[name] = option.annotation
            for method in WRITTEN:
                delattr(record, method)
            dataclasses.dataclass(record)


def _declared(function: Callable) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
