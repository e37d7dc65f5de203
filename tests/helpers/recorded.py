"""Configs that record which of their fields are read."""

import copy
import dataclasses
import sys
from types import FrameType
from typing import Any

from simjax import config

# Modules that compare, check or serialize fields; their accesses are not recorded.
BOOKKEEPING = ("simjax.config.checks", "simjax.config.schema", "simjax.config.serial")
BOOKKEEPING += ("simjax.runs.fields", "simjax.runs.check", "simjax.runs.resume")


def recorded(options: config.Config) -> tuple[config.Config, set[str]]:
    """A recording copy of a config, and the (growing) set of dotted names that were read."""
    seen: set[str] = set()
    return _watched(options, "", seen), seen


def _watched(record: Any, path: str, seen: set[str]) -> Any:
    names = {field.name for field in dataclasses.fields(record)}

    def getter(self, name):
        value = object.__getattribute__(self, name)
        found = names if name == "__dict__" else names.intersection([name])  # vars() reads all
        if found and _is_read(sys._getframe(1)):
            seen.update(f"{path}.{each}".lstrip(".") for each in found)
        return value

    made = copy.copy(record)
    for name in names:
        value = getattr(record, name)
        if dataclasses.is_dataclass(value) and name != "network":
            setattr(made, name, _watched(value, f"{path}.{name}".lstrip("."), seen))
    made.__class__ = type(type(record).__name__, (type(record),), {"__getattribute__": getter})
    return made


def _is_read(frame: FrameType | None) -> bool:
    """Whether the frame reads a field, other than to copy or check the config."""
    through = set()
    while frame.f_globals["__name__"] in ("dataclasses", "copy"):
        through.add(frame.f_code.co_name)
        frame = frame.f_back
    is_copy = through and "asdict" not in through
    return not is_copy and not frame.f_globals["__name__"].startswith(BOOKKEEPING)
