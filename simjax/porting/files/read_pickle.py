"""Reads network pickles of NVIDIA's repositories (EDM, StyleGAN, SiD).

Such a file is a pickled dict of networks. Each module is stored with its class's source code,
which the original loader executes; here only its attributes are read. `read_network` returns what
maps/edm.py needs: class name, constructor arguments and tensors by name.
"""

import functools
import itertools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from simjax.errors import ConfigError
from simjax.porting.files import read_torch
from simjax.porting.files.foreign_file import DOWNLOAD_AGAIN, Budget, reading, shown
from simjax.porting.files.placeholders import Foreign, described, untangled
from simjax.porting.files.unpickle import load

PREFERRED = ("ema", "G_ema")  # keys of the EMA network in EDM's and StyleGAN's files
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
DEEPEST_MODULE = 50  # our choice; SongUNet is 5 deep
TENSOR_COST = 512  # upper bound of the bytes of Python objects for a name and its array
PLAIN = (bool, int, float, str, type(None))


class Network(NamedTuple):
    """A network as stored in a file.

    Attributes:
      class_name: class of the outermost module, e.g. "EDMPrecond".
      arguments: keyword arguments of its constructor.
      tensors: parameters and persistent buffers by state-dict name, e.g.
        "model.enc.32x32_conv.weight", in their stored dtype and in the modules' order.
      positional: positional arguments of its constructor; empty in the public files.
    """

    class_name: str
    arguments: dict[str, Any]
    tensors: dict[str, np.ndarray]
    positional: tuple = ()


class _Module(NamedTuple):
    """A pickled torch.nn.Module: its class's name and its __dict__."""

    class_name: str
    attributes: dict[str, Any]


def read_network(path: str | os.PathLike) -> Network:
    """Reads the network under ema, else G_ema, else the only one.

    Raises:
      ConfigError: "PATH: problem; remedy".
    """
    with reading(path) as (data, budget):
        load_bytes = functools.partial(_storage, budget=budget)
        table = read_torch.TENSORS | {"torch.storage._load_from_bytes": load_bytes}
        contents, _ = load(data, 0, table, budget)
        network = _preferred(contents)
        class_name, attributes = _as_module(network)
        tensors: dict[str, np.ndarray] = {}
        _collect(network, "", 0, tensors, budget)
        arguments = attributes.get("_init_kwargs", {})
        positional = attributes.get("_init_args", ())
        if not isinstance(arguments, dict) or not isinstance(positional, tuple):
            raise ConfigError(f"its constructor's arguments are not recorded; {DOWNLOAD_AGAIN}")
        what = "its constructor's arguments"
        return Network(
            class_name,
            untangled(arguments, PLAIN, what, budget),
            tensors,
            untangled(positional, PLAIN, what, budget),
        )


def _storage(content: memoryview, *, budget: Budget) -> read_torch.Storage:
    """A tensor's storage: in these files an embedded torch.save stream."""
    if not isinstance(content, memoryview):
        raise ConfigError(f"a storage is {described(content)}, expected bytes; {DOWNLOAD_AGAIN}")
    storage = read_torch.stream(content, budget)
    if not isinstance(storage, read_torch.Storage):
        raise ConfigError(f"a storage holds {described(storage)}; {DOWNLOAD_AGAIN}")
    return storage


def _preferred(contents: Any) -> Foreign:
    """The EMA network, or else the only network, in the unpickled contents."""
    if _as_module(contents):
        return contents
    if not isinstance(contents, dict):
        raise ConfigError(
            f"holds {described(contents)}, expected a dict of networks: give another file"
        )
    networks = [key for key, value in contents.items() if _as_module(value)]
    wanted = [key for key in PREFERRED if key in contents][:1] or networks
    if len(wanted) == 1 and wanted[0] in networks:
        return contents[wanted[0]]
    first = itertools.islice(contents.items(), 10)
    held = ", ".join(f"{shown(str(k))} ({described(v)})" for k, v in first)
    raise ConfigError(
        f"holds {len(networks)} networks, none under {' or '.join(PREFERRED)}; it has: {held}; "
        "give a file with a trained network"
    )


def _as_module(value: Any) -> _Module | None:
    """The torch.nn.Module that a Foreign record represents, or None."""
    if not isinstance(value, Foreign):
        return None
    name, attributes = value.name.rpartition(".")[2], value.state
    if value.name == PERSISTENT and len(value.args) == 1 and isinstance(value.args[0], dict):
        name, attributes = value.args[0].get("class_name"), value.args[0].get("state")
    parts = ("_parameters", "_buffers", "_modules")
    if not isinstance(name, str) or not isinstance(attributes, dict):
        return None
    if not all(isinstance(attributes.get(part), dict) for part in parts):
        return None
    return _Module(name, attributes)


def _collect(
    value: Any, name: str, depth: int, tensors: dict[str, np.ndarray], budget: Budget
) -> None:
    """Collects a module's tensors, then its children's, prefixed with "NAME.".

    Raises:
      ConfigError: a module contains itself, or a member is neither a module nor a tensor.
    """
    module = _as_module(value)
    if module is None:
        raise ConfigError(f"module {shown(name)} is {described(value)}; {DOWNLOAD_AGAIN}")
    if depth > DEEPEST_MODULE:
        raise ConfigError(
            f"module {shown(name)} contains itself, or is more than {DEEPEST_MODULE} deep; "
            + DOWNLOAD_AGAIN
        )
    passing = module.attributes.get("_non_persistent_buffers_set", set())
    for own in ("_parameters", "_buffers"):
        for key, tensor in _named(module.attributes[own], name, budget).items():
            if tensor is None or (own == "_buffers" and key.rpartition(".")[2] in passing):
                continue
            if not isinstance(tensor, np.ndarray) or key in tensors:
                raise ConfigError(f"{shown(key)} is {described(tensor)}; {DOWNLOAD_AGAIN}")
            tensors[key] = tensor
    for key, child in _named(module.attributes["_modules"], name, budget).items():
        if child is not None:
            _collect(child, key, depth + 1, tensors, budget)


def _named(members: Mapping[str, Any], prefix: str, budget: Budget) -> dict[str, Any]:
    """A module's members by full name; charges the names to the budget."""
    for key in members:
        if not isinstance(key, str) or "." in key:
            raise ConfigError(f"{shown(prefix)} has a member with a bad name; {DOWNLOAD_AGAIN}")
        budget.spend(TENSOR_COST + 4 * (len(prefix) + len(key) + 1))
    return {f"{prefix}.{key}" if prefix else key: value for key, value in members.items()}
