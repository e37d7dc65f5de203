"""Reads torch.save files (zip archive or older stream) without torch.

`read` returns the saved value, with arrays that are read-only views of the mapped file. Tensors of
network pickles are built here too: read_pickle.py uses `TENSORS` and `stream`.
"""

import dataclasses
import math
import os
from typing import Any

import ml_dtypes
import numpy as np

from simjax.errors import ConfigError
from simjax.porting.files import stored_zip
from simjax.porting.files.foreign_file import DOWNLOAD_AGAIN, Budget, are_counts, reading, shown
from simjax.porting.files.placeholders import CONTAINERS, Name, Table, described, untangled
from simjax.porting.files.unpickle import load

STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # first value of torch.save's older format
STREAM_VERSION = 1001


@dataclasses.dataclass(frozen=True, eq=False, repr=False, slots=True)
class Storage:
    """A storage, as in torch: the memory of which tensors are views."""

    content: memoryview
    dtype: np.dtype
    count: int


def read(path: str | os.PathLike) -> Any:
    """The value that torch.save wrote, with arrays in place of tensors.

    Objects of other classes become `Foreign` records, classes `Name`s, bytes memoryviews.

    Raises:
      ConfigError: "PATH: problem; remedy".
    """
    with reading(path) as (data, budget):
        is_zip = data[:4] == b"PK\3\4"
        value = _archive(data, budget) if is_zip else stream(data, budget)
        return untangled(value, object, "it", budget)


def stream(data: memoryview, budget: Budget) -> Any:
    """The format before torch 1.6: constants, a pickle, then its storages."""
    position = 0
    for expected in (STREAM_MAGIC, STREAM_VERSION):
        value, position = load(data, position, {}, budget)
        if value != expected:
            raise ConfigError(
                "not a torch.save file (NVIDIA's network pickles are read by read_pickle.py); "
                + DOWNLOAD_AGAIN
            )
    system, position = load(data, position, {}, budget)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ConfigError("written on a big-endian machine; save it on a little-endian one")
    return _with_storages_after(data, position, budget)


def _with_storages_after(data: memoryview, start: int, budget: Budget) -> Any:
    """Unpickles twice: to list the storages, then to build tensors on them."""
    declared: dict[str, tuple[np.dtype, int]] = {}

    def declare(identity):
        key, *kind = _storage_identity(identity)
        if declared.setdefault(key, kind) != kind:
            raise ConfigError(f"storage {shown(key)} has two dtypes or sizes; {DOWNLOAD_AGAIN}")

    _, position = load(data, start, {}, budget, declare)
    keys, position = load(data, position, {}, budget)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ConfigError(f"has no list of storages; {DOWNLOAD_AGAIN}")
    if sorted(keys) != sorted(declared):
        raise ConfigError(
            f"its list of storages differs from those that tensors use; {DOWNLOAD_AGAIN}"
        )
    storages = {}
    for key in keys:
        dtype, count = declared[key]
        written = int.from_bytes(data[position : position + 8], "little")
        begin, position = position + 8, position + 8 + count * dtype.itemsize
        if written != count:
            raise ConfigError(
                f"storage {shown(key)} has {written} elements, expected {count}; {DOWNLOAD_AGAIN}"
            )
        storages[key] = _storage(data[begin:position], dtype, count, key)
    value, _ = load(
        data, start, TENSORS, budget, lambda identity: storages[_storage_identity(identity)[0]]
    )
    return value


def _archive(data: memoryview, budget: Budget) -> Any:
    """The format since torch 1.6: a zip of a pickle and storages."""
    members = stored_zip.members(data, budget)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ConfigError(
            f"a zip archive with {len(pickles)} data.pkl inside, expected 1: no torch.save file; "
            + DOWNLOAD_AGAIN
        )
    root = pickles[0].removesuffix("data.pkl")
    if members.get(f"{root}byteorder", b"little") != b"little":
        raise ConfigError("written on a big-endian machine; save it on a little-endian one")

    def storage(identity):
        key, dtype, count = _storage_identity(identity)
        content = members.get(f"{root}data/{key}")
        if content is None:
            raise ConfigError(f"storage {shown(key)} is not in the archive; {DOWNLOAD_AGAIN}")
        return _storage(content, dtype, count, key)

    return load(members[pickles[0]], 0, TENSORS, budget, storage)[0]


def _storage_identity(identity: Any) -> tuple[str, np.dtype, int]:
    """Key, dtype and size in ("storage", class, key, device, size[, None])."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6):
        raise ConfigError(
            f"a storage reference is {described(identity)}, expected a tuple of 5 or 6; "
            f"{DOWNLOAD_AGAIN}"
        )
    tag, kind, key, _, count, *view = identity
    dtype = STORAGES.get(kind.full) if isinstance(kind, Name) else None
    if dtype is None:
        raise ConfigError(
            f"a storage is of {described(kind)}; known: {', '.join(STORAGES)}. "
            "Convert such tensors before saving them"
        )
    is_text = isinstance(tag, str) and isinstance(key, str)
    is_view = any(part is not None for part in view)  # of another storage; none since torch 0.4
    if not is_text or tag != "storage" or not are_counts([count]) or is_view:
        raise ConfigError(f"has a storage reference torch does not write; {DOWNLOAD_AGAIN}")
    return key, dtype, count


def _storage(content: memoryview, dtype: np.dtype, count: int, key: str) -> Storage:
    if len(content) != count * dtype.itemsize:
        raise ConfigError(
            f"storage {shown(key)} has {len(content)} bytes, expected {count} x {dtype.itemsize}; "
            + DOWNLOAD_AGAIN
        )
    return Storage(content, dtype, count)


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_) -> np.ndarray:
    """A strided view of the storage; requires_grad and hooks are ignored."""
    if not isinstance(storage, Storage) or type(size) is not tuple or type(stride) is not tuple:
        raise ConfigError(
            f"a tensor has {described(storage)} as storage, or size or stride is not a tuple; "
            f"{DOWNLOAD_AGAIN}"
        )
    if not are_counts([offset]) or not are_counts(size) or not are_counts(stride):
        raise ConfigError(
            f"a tensor's size, stride or offset is not a nonnegative integer; {DOWNLOAD_AGAIN}"
        )
    count = math.prod(size)
    steps = [step if length > 1 else 0 for length, step in zip(size, stride, strict=True)]
    last = offset + sum((length - 1) * step for length, step in zip(size, steps, strict=True))
    if count > storage.count or (count and last >= storage.count):
        raise ConfigError(
            f"a tensor of {count} elements, the last at {last}, needs more than its storage of "
            f"{storage.count}: damaged, or an expanded view (then save tensor.contiguous())"
        )
    if not count:
        return np.empty(size, storage.dtype)
    itemsize = storage.dtype.itemsize
    strides = [step * itemsize for step in steps]
    return np.ndarray(size, storage.dtype, storage.content, offset * itemsize, strides)


def _parameter(tensor: Any, *_) -> Any:
    return tensor


def _tensor_with_attributes(function: Name, kind: Name, args: tuple, state: Any) -> np.ndarray:
    """A tensor with Python attributes, or of a subclass of torch.Tensor."""
    if function != Name("torch._utils._rebuild_tensor_v2"):
        raise ConfigError(f"a tensor is built by {described(function)}; save a plain torch.Tensor")
    return _tensor(*args)


def _size(lengths: tuple) -> tuple:
    return lengths


TENSORS: Table = {
    **CONTAINERS,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
}
