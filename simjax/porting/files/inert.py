"""What the pickle machine puts in place of foreign classes and calls, and a way to walk it safely.

unpickle.py makes these values; the readers beside it turn them into arrays and plain values.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simjax.errors import ConfigError
from simjax.porting.files.foreign_file import DOWNLOAD_AGAIN, Budget, shown

LARGEST_KEY = 2**60  # larger integers can share one hash, and slow a dict down to a crawl
DEEPEST = 100  # lists in lists; our choice, several times what real files need

Table = Mapping[str, Callable]  # names in files -> what stands for them

# Bytes that CPython may hold for one of each, with what growing its container takes.
POINTER_COST = 24  # on the stack, in a list or in the memo
NUMBER_COST = 32
ENTRY_COST = 160  # of a dict or a set
CONTAINER_COST = 96  # an empty list, dict or tuple; a class's name; an inert record
SET_COST = 224
TEXT_COST = 64  # of no characters; they cost up to 4 bytes for each of UTF-8
BYTES_COST = 256  # of a view


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a file names in full, e.g. "torch.FloatStorage"; never imported."""

    full: str


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Foreign:
    """What a file would build by calling `name` with `args`, then setting `state`; never called.

    Items appended to it or set in it are dropped.
    """

    name: str
    args: tuple
    state: Any = None


def untangled(
    value: Any, leaves: type | tuple[type, ...], what: str, budget: Budget, depth: int = 0
) -> Any:
    """A copy as a tree: lists, tuples and dicts with `leaves` and nothing that is shared.

    A container that holds itself, or doubles at every level, runs out of depth or budget here.

    Raises:
      ConfigError: naming `what` for another kind of leaf.
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
        raise ConfigError(f"{what}: {described(value)} is no plain value; save it without")
    return value


def described(value: Any) -> str:
    """A foreign value's kind, for messages; never its contents, which can be endless."""
    if isinstance(value, Foreign):
        return f"an object of {shown(value.name)}"
    return shown(value.full) if isinstance(value, Name) else f"a {type(value).__name__}"


def hashable(key: Any) -> Any:
    """A dict's key or a set's element, whose hash is cheap."""
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


# Containers that files name instead of using an opcode. (Python 2's names serve protocol 2.)
CONTAINERS: Table = {
    "collections.OrderedDict": _empty_dict,
    "collections.defaultdict": _default_dict,
    "dnnlib.util.EasyDict": _empty_dict,  # NVIDIA's dict with attributes
    "builtins.set": _set,
    "__builtin__.set": _set,
}
