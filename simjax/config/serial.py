"""Serialisation of configs and networks, dotted field names, differences."""

import dataclasses
import typing
from typing import Any

from simjax.config import schema
from simjax.errors import ConfigError
from simjax.networks.registry import NETWORKS

# Removed fields that old runs contain, with the only value that is still supported.
RETIRED = {"mode": "distill", "share_samples": False}


def describe(network: schema.Network) -> dict[str, Any]:
    """The network as a JSON-compatible dict; inverse of `network_from`."""
    return {"class": type(network).__name__} | dataclasses.asdict(network)


def network_from(description: dict[str, Any]) -> schema.Network:
    """Builds the network options from a dict; inverse of `describe`."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    return NETWORKS[values.pop("class")](**values)


def get_field(config: schema.Config, path: str) -> Any:
    """The value at a dotted path.

    >>> get_field(schema.Config(), "loss.name")
    'sim'
    """
    for name in path.split("."):
        config = getattr(config, name)
    return config


def to_dict(config: schema.Config) -> dict[str, Any]:
    """The config as nested dicts, as in config.json (tuples become lists)."""
    network = None if config.network is None else describe(config.network)
    return dataclasses.asdict(config) | {"network": network}


def from_dict(values: dict[str, Any], cls: type = schema.Config) -> Any:
    """Builds a config from nested dicts; inverse of `to_dict`, also through JSON.

    Raises:
      ConfigError: unknown fields.

    >>> options = schema.Config(batch=8)
    >>> from_dict(to_dict(options)) == options
    True
    """
    kinds = typing.get_type_hints(cls)
    if cls is schema.Config:
        values = {k: v for k, v in values.items() if k not in RETIRED or RETIRED[k] != v}
    if unknown := sorted(values.keys() - kinds.keys()):
        raise ConfigError(
            f"{cls.__name__} has no field {', '.join(unknown)}; was it written by another version?"
        )
    made = {}
    for name, value in values.items():
        if name == "network" and value is not None:
            value = network_from(value)
        elif dataclasses.is_dataclass(kinds[name]):
            value = from_dict(value, kinds[name])
        made[name] = tuple(value) if isinstance(value, list) else value
    return cls(**made)


def differences(saved: Any, current: Any) -> list[str]:
    """Differing leaves of two nested dicts, as lines "field: saved -> current".

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
    ['a.b: 1 -> 2']
    """
    return [str(change) for change in changes(saved, current)]


class Change(typing.NamedTuple):
    """A dotted field name with its saved and current value."""

    field: str
    saved: Any
    current: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.saved!r} -> {self.current!r}"


def changes(saved: Any, current: Any, path: str = "") -> list[Change]:
    """The leaves that differ between two nested dicts."""
    if not (isinstance(saved, dict) and isinstance(current, dict)):
        same = saved == current or (saved != saved and current != current)
        return [] if same else [Change(path, saved, current)]
    missing = "(absent)"
    return [
        change
        for name in sorted({*saved, *current})
        for change in changes(
            saved.get(name, missing), current.get(name, missing), f"{path}.{name}".lstrip(".")
        )
    ]


def known_fields(cls: type = schema.Config, path: str = "") -> list[str]:
    """All dotted field names of the schema, for messages about misspelled ones."""
    names = []
    for name, kind in typing.get_type_hints(cls).items():
        dotted = f"{path}.{name}".lstrip(".")
        inner = [k for k in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(k)]
        inner = list(NETWORKS.values()) if schema.Network in inner else inner
        names += [n for k in inner for n in known_fields(k, dotted)] or [dotted]
    return list(dict.fromkeys(names))
