"""Writes files in the formats of torch.save, safetensors and NVIDIA's pickles, without torch.

Arrays become tensors; views of one array share its storage, with offsets and strides. Used by tests
of file readers, name maps and porting.
"""

import functools
import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {
    "protocol_version": VERSION,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}
STORAGE_CLASSES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}
MODULE_SOURCE = "class EDMPrecond:\n    pass\n"
CLASSES = {"model": "SongUNet"}  # classes of inner modules; all others are "Block"
HOOKS = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks")


class _Name:
    """Pickled as a class or function of this name, whether or not it exists."""

    def __init__(self, full: str):
        self.module, _, self.name = full.rpartition(".")

    def __call__(self, *_):  # pickle requires a callable
        raise AssertionError("only written, never called")


Name = functools.cache(_Name)  # one object per name, so that pickles memoize it


class Call:
    """Pickled as the call `name(*args)`, with a state."""

    def __init__(self, name: str, *args: Any, state: Any = None):
        self.name, self.args, self.state = name, args, state

    def __reduce_ex__(self, protocol):
        return Name(self.name), self.args, self.state


class Object:
    """Pickled as an instance of a class by NEWOBJ with a state, like a torch.nn module."""

    def __init__(self, name: str, state: Any):
        self.name, self.state = name, state


class Opcodes:
    """Pickled as these bytes."""

    def __init__(self, opcodes: bytes):
        self.opcodes = opcodes


class Parameter:
    """Pickled as a torch.nn.Parameter."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __reduce_ex__(self, protocol):
        return Name("torch._utils._rebuild_parameter"), (self.array, True, OrderedDict())


class Storage:
    """The storage of an array, pickled as a nested torch.save stream."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.kind = Name(f"torch.{STORAGE_CLASSES[array.dtype]}")

    def __reduce_ex__(self, protocol):
        return Name("torch.storage._load_from_bytes"), (stream(self),)


class _Pickler(pickle._Pickler):
    """Python's pickler, with Name, Object and Opcodes, and arrays as tensors."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file, protocol):
        super().__init__(file, protocol)
        self.storages: dict[int, Storage] = {}

    def save_name(self, name):
        if self.proto >= 4:
            self.save(name.module)
            self.save(name.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{name.module}\n{name.name}\n".encode())
        self.memoize(name)

    def save_opcodes(self, obj):
        self.write(obj.opcodes)

    def save_object(self, obj):
        self.save(Name(obj.name))
        self.save(())
        self.write(pickle.NEWOBJ)
        self.memoize(obj)
        self.save(obj.state)
        self.write(pickle.BUILD)

    def save_tensor(self, array):
        owner = array
        while isinstance(owner.base, np.ndarray) and owner.base.dtype == array.dtype:
            owner = owner.base
        if not owner.flags.c_contiguous:
            owner = array = np.ascontiguousarray(array)
        storage = self.storages.setdefault(id(owner), Storage(owner))
        offset = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        strides = tuple(step // array.itemsize for step in array.strides)
        parts = (offset // array.itemsize, array.shape, strides, False, OrderedDict())
        self.save_reduce(Name("torch._utils._rebuild_tensor_v2"), (storage, *parts), obj=array)

    dispatch[_Name] = save_name
    dispatch[Opcodes] = save_opcodes
    dispatch[Object] = save_object
    dispatch[np.ndarray] = save_tensor


class _TorchPickler(_Pickler):
    """torch.save's pickler: storages are written separately, with keys "0", "1", ..."""

    legacy = False

    def __init__(self, file, protocol=2):
        super().__init__(file, protocol)
        self.written: dict[int, tuple[str, Storage]] = {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key, _ = self.written.setdefault(id(obj), (str(len(self.written)), obj))
        view = (None,) if self.legacy else ()
        return ("storage", obj.kind, key, "cpu", obj.array.size, *view)


class _LegacyPickler(_TorchPickler):
    legacy = True


def dumps(value: Any, protocol: int = 4) -> bytes:
    """A plain pickle with tensors, as written by pickle.dump."""
    file = io.BytesIO()
    _Pickler(file, protocol).dump(value)
    return file.getvalue()


def stream(value: Any) -> bytes:
    """As torch.save(value, _use_new_zipfile_serialization=False)."""
    file = io.BytesIO()
    for constant in (MAGIC, VERSION, SYSTEM):
        pickle.dump(constant, file, protocol=2)
    pickler = _LegacyPickler(file)
    pickler.dump(value)
    storages = sorted(pickler.written.values(), key=lambda pair: pair[0])
    pickle.dump([key for key, _ in storages], file, protocol=2)
    for _, storage in storages:
        file.write(struct.pack("<q", storage.array.size))
        file.write(storage.array.tobytes())
    return file.getvalue()


def write_torch_stream(path: Path, value: Any) -> None:
    path.write_bytes(stream(value))


def write_torch_zip(path: Path, value: Any, root: str = "archive") -> None:
    """As torch.save(value)."""
    file = io.BytesIO()
    pickler = _TorchPickler(file)
    pickler.dump(value)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", file.getvalue())
        archive.writestr(f"{root}/byteorder", "little")
        for key, storage in pickler.written.values():
            archive.writestr(f"{root}/data/{key}", storage.array.tobytes())
        archive.writestr(f"{root}/version", "3\n")


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a header, then the tensors in the given order."""
    codes = {"f": "F", "i": "I", "u": "U"}
    header, contents = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors.items():
        code = codes.get(array.dtype.kind, "BF") + str(8 * array.itemsize)
        end = len(contents) + array.nbytes
        offsets = [len(contents), end]
        code = "BOOL" if array.dtype == np.bool_ else code
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": offsets}
        contents += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + contents)


def network(
    class_name: str,
    arguments: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    buffers: Iterable[str] = (),
    passing_buffers: Iterable[str] = (),
    module_dicts: Iterable[str] = ("model.enc", "model.dec"),
    module_source: str = MODULE_SOURCE,
    positional: tuple = (),
) -> Call:
    """A network of NVIDIA's persistent classes, for `dumps`.

    Args:
      tensors: by state-dict name, whose dots define the modules.
      buffers, passing_buffers: names of persistent and of non-persistent buffers.
      module_dicts: modules that are plain torch.nn.ModuleDicts, as in SongUNet.
    """
    kinds = dict.fromkeys((*buffers, *passing_buffers), "_buffers")
    root = _attributes(arguments, positional)
    modules = {"": root}
    for name, array in tensors.items():
        parent, _, own = name.rpartition(".")
        state = _module(parent, modules)
        kind = kinds.get(name, "_parameters")
        state[kind][own] = array if kind == "_buffers" else Parameter(array)
        if name in passing_buffers:
            state["_non_persistent_buffers_set"].add(own)
    state = _assembled("", modules, set(module_dicts), module_source)
    return _persistent(class_name, state, module_source)


def write_network_pickle(
    path: Path,
    class_name: str,
    arguments: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    key: str = "ema",
    others: Mapping[str, Any] | None = None,
    protocol: int = 4,
    **options: Any,
) -> None:
    """Writes a snapshot as EDM's training does; see `network` for the options."""
    contents = {key: network(class_name, arguments, tensors, **options)} | dict(others or {})
    with open(path, "wb") as file:
        _Pickler(file, protocol).dump(contents)


def _attributes(arguments: Mapping[str, Any], positional: tuple = ()) -> dict[str, Any]:
    """A module's __dict__ after torch.nn.Module.__init__, with the persistence attributes."""
    state: dict[str, Any] = {
        "training": False,
        "_parameters": OrderedDict(),
        "_buffers": OrderedDict(),
        "_non_persistent_buffers_set": set(),
    }
    state |= {hook: OrderedDict() for hook in HOOKS}
    state["_modules"] = OrderedDict()
    return state | {"_init_args": positional, "_init_kwargs": dict(arguments)}


def _module(name: str, modules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The module's attributes, created on first use together with its parents'."""
    if name not in modules:
        _module(name.rpartition(".")[0], modules)["_modules"][name.rpartition(".")[2]] = None
        modules[name] = _attributes({})
    return modules[name]


def _persistent(class_name: str, state: dict, source: str) -> Call:
    meta = {
        "type": "class",
        "version": 6,
        "module_src": source,
        "class_name": class_name,
        "state": state,
    }
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def _assembled(name: str, modules: dict, module_dicts: set[str], source: str) -> dict:
    """The module's attributes with its children filled in."""
    state = modules[name]
    for own in state["_modules"]:
        child = f"{name}.{own}".strip(".")
        inside = _assembled(child, modules, module_dicts, source)
        if child in module_dicts:
            state["_modules"][own] = Object("torch.nn.modules.container.ModuleDict", inside)
        else:
            state["_modules"][own] = _persistent(CLASSES.get(child, "Block"), inside, source)
    return state
