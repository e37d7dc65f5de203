"""Every field of the schema, a changed value for it, and whether that has an effect."""

import copy
import dataclasses

from simjax import config
from simjax.models import build
from simjax.runs import check, fields


def leaves(record, path: str = ""):
    """Dotted names of all fields; `network` counts as one."""
    for field in dataclasses.fields(record):
        value, dotted = getattr(record, field.name), f"{path}.{field.name}".lstrip(".")
        yield from leaves(value, dotted) if dataclasses.is_dataclass(value) else [dotted]


LEAVES = tuple(leaves(config.Config()))


def changed(options: config.Config, **values) -> config.Config:
    """A copy with changed values; keyword a__b sets field a.b."""
    options = copy.deepcopy(options)
    for path, value in values.items():
        *parents, name = path.split("__")
        setattr(config.get_field(options, ".".join(parents)) if parents else options, name, value)
    return options


def other(path: str, value):
    """A different valid value of a field."""
    if path == "network":
        return config.SongUNet()
    known = build.NETWORK_CHOICES | check.CHOICES
    if path in known:
        plain = (
            value,
            "float32",
            "lognormal",
            "edm",
            "karras",
            "heun",
        )  # possible meanings of an empty field
        return next(name for name in known[path] if name not in plain)
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, tuple):
        return (*value, 1) if path == "evaluation.teacher_steps" else (*value, "x")
    if isinstance(value, str):
        return value + "x"
    return 3.0 if value == float("inf") else value + 1


def is_refused(base: config.Config, path: str) -> bool:
    """Whether changing a field is refused because it has no effect."""
    value = other(path, config.get_field(base, path))
    return path in fields.without_effect(changed(base, **{path.replace(".", "__"): value}))
