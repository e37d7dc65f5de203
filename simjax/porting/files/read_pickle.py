"""Network pickles of NVIDIA's repositories (EDM, StyleGAN, SiD) as names and arrays.

Such a file is a pickled dict of whole networks. Each module comes with its class's source text,
which the original loader runs; here its attributes are read and the source is left alone.
`read_network` gives what a name map (maps/*) and its config need.
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
from simjax.porting.files.inert import Foreign, described, untangled
from simjax.porting.files.unpickle import load

PREFERRED = ("ema", "G_ema")  # the averaged network's key in EDM's and StyleGAN's files
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
DEEPEST_MODULE = 50  # our choice; SongUNet is 5 deep
TENSOR_COST = 512  # bytes of Python's objects for a name and its array, generously
PLAIN = (bool, int, float, str, type(None))


class Network(NamedTuple):
    """A network as a file holds it.

    Attributes:
      class_name: of the outer module, e.g. "EDMPrecond".
      arguments: those its constructor was given by keyword.
      tensors: by state-dict name, e.g. "model.enc.32x32_conv.weight", in their stored dtype and in
        the modules' order; parameters and persistent buffers.
      positional: the constructor's arguments given by position; empty in the public files.
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
    """The network under the key ema, else G_ema, else the only one in the file.

    Raises:
      ConfigError: naming the file, what is wrong with it and what to do.
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
    """A tensor's memory: in these files a whole stream of torch.save, with one storage in it."""
    if not isinstance(content, memoryview):
        raise ConfigError(f"a storage is {described(content)}, expected bytes; {DOWNLOAD_AGAIN}")
    storage = read_torch.stream(content, budget)
    if not isinstance(storage, read_torch.Storage):
        raise ConfigError(f"a storage holds {described(storage)}; {DOWNLOAD_AGAIN}")
    return storage


def _preferred(contents: Any) -> Foreign:
    """The network wanted among what the file holds."""
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
        f"holds {len(networks)} networks, none under {' or '.join(PREFERRED)}, and has: {held}; "
        "give a file with a trained network"
    )


def _as_module(value: Any) -> _Module | None:
    """The module that an inert record stands for, None where it stands for something else."""
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
    """Adds a module's tensors, then its children's, under "NAME.".

    Raises:
      ConfigError: for a module inside itself, and for what is neither module nor tensor.
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
    """A module's members by their full names, paid for before they are written out."""
    for key in members:
        if not isinstance(key, str) or "." in key:
            raise ConfigError(f"{shown(prefix)} has a member without a name; {DOWNLOAD_AGAIN}")
        budget.spend(TENSOR_COST + 4 * (len(prefix) + len(key) + 1))
    return {f"{prefix}.{key}" if prefix else key: value for key, value in members.items()}
