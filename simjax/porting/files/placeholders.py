"""Placeholders for a pickle's classes and calls, and their safe traversal.

unpickle.py creates them; the readers in this folder convert them to arrays and plain values.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simjax.errors import ConfigError
from simjax.porting.files.foreign_file import DOWNLOAD_AGAIN, Budget, shown

LARGEST_KEY = 2**60  # larger integers can be made to collide, which makes a dict quadratic
DEEPEST = 100  # nesting of containers; our choice, several times that of published files

Table = Mapping[str, Callable]  # name in a pickle -> our function

# Upper bounds of CPython's bytes per object, including the growth of its container.
POINTER_COST = 24  # on the stack, in a list or in the memo
NUMBER_COST = 32
ENTRY_COST = 160  # of a dict or a set
CONTAINER_COST = 96  # an empty list, dict or tuple; a Name; a Foreign
SET_COST = 224
TEXT_COST = 64  # an empty string; characters cost up to 4 bytes per byte of UTF-8
BYTES_COST = 256  # a memoryview


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A class or function named by a pickle, e.g. "torch.FloatStorage"; never imported."""

    full: str


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Foreign:
    """A recorded call of `name` with `args`, then `state` set; never executed.

    Items that the pickle appends to it or sets in it are dropped.
    """

    name: str
    args: tuple
    state: Any = None


def untangled(
    value: Any, leaves: type | tuple[type, ...], what: str, budget: Budget, depth: int = 0
) -> Any:
    """Copies nested lists, tuples and dicts into a tree without shared members.

    A container that contains itself, or doubles at every level, exceeds the depth or the budget.

    Raises:
      ConfigError: a leaf is not of type `leaves`; the message starts with `what`.
    """
    if depth > DEEPEST:
        raise ConfigError(f"{what} is nested more than {DEEPEST} deep; {DOWNLOAD_AGAIN}")
    if isinstance(value, dict):
        budget.spend(CONTAINER_COST + ENTRY_COST * len(value))
        keys = (untangled(key, leaves, what, budget, depth + 1) for key in value)
        members = (untangled(member, leaves, what, budget, depth + 1) for member in value.values())
        return dict(zip(keys, members, strict=True))
    if type(value) in (list, tuple):
        budget.spend(CONTAINER_COST + POINTER_COST * len(value))
        return type(value)(untangled(member, leaves, what, budget, depth + 1) for member in value)
    if not isinstance(value, leaves):
        raise ConfigError(f"{what}: {described(value)} is not a plain value; save without it")
    return value


def described(value: Any) -> str:
    """An unpickled value's kind, for messages; never its contents, possibly huge.

    >>> described(Foreign("os.system", ("rm",))), described([1, 2])
    ('an object of os.system', 'a list')
    """
    if isinstance(value, Foreign):
        return f"an object of {shown(value.name)}"
    return shown(value.full) if isinstance(value, Name) else f"a {type(value).__name__}"


def hashable(key: Any) -> Any:
    """Returns a dict key or set element that is cheap to hash."""
    if not isinstance(key, str | int | Name | None):
        raise ConfigError(f"a dict or set in it has {described(key)} as a key; {DOWNLOAD_AGAIN}")
    if isinstance(key, int) and abs(key) >= LARGEST_KEY:
        raise ConfigError(f"a dict or set in it has a huge integer as a key; {DOWNLOAD_AGAIN}")
    return key


def _empty_dict() -> dict:
    return {}


def _default_dict(factory: Any = None) -> dict:
    return {}


def _set(items: Sequence = ()) -> set:
    return set(map(hashable, items))


# Containers that pickles create by name, not by opcode. (Python 2's names occur in protocol 2.)
CONTAINERS: Table = {
    "collections.OrderedDict": _empty_dict,
    "collections.defaultdict": _default_dict,
    "dnnlib.util.EasyDict": _empty_dict,  # NVIDIA's dict with attributes
    "builtins.set": _set,
    "__builtin__.set": _set,
}
