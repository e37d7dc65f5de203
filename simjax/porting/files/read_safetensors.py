"""Reads safetensors files as NumPy views of the mapped file.

The safetensors library (0.8.0) is not used: its NumPy loader copies every tensor, keeps the last of
two tensors with the same name, and allocates 180 MB for a header of 10 MB before any check. Format:
the header's length (8 bytes, little-endian), a JSON header {name: {dtype, shape, data_offsets}},
then the tensors without gaps. https://github.com/huggingface/safetensors
"""

import math
import os
from typing import Any

import ml_dtypes
import numpy as np

from simjax.errors import ConfigError
from simjax.porting.files.foreign_file import (
    DOWNLOAD_AGAIN,
    are_counts,
    json_object,
    reading,
    shown,
)

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors by name, in the header's order; __metadata__ is ignored.

    Raises:
      ConfigError: "PATH: problem; remedy".
    """
    with reading(path) as (data, budget):
        length = int.from_bytes(data[:8], "little")
        if length > min(LONGEST_HEADER, len(data) - 8):
            raise ConfigError(
                f"a header of {length} bytes, expected at most {LONGEST_HEADER} and inside the "
                f"file: not a safetensors file, or cut short; {DOWNLOAD_AGAIN}"
            )
        entries = json_object(data[8 : 8 + length], "its header", budget)
        entries.pop("__metadata__", None)
        contents = data[8 + length :]
        tensors = {}
        spans = [(len(contents), len(contents), "")]
        for name, entry in entries.items():
            tensors[name], span = _tensor(contents, name, entry)
            spans.append((*span, name))
        _refuse_gaps(spans)
        return tensors


def _tensor(contents: memoryview, name: str, entry: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """The array, and its byte range [begin, end) in the contents.

    Raises:
      ConfigError: the dtype is not in DTYPES, or shape, offsets and file size disagree.
    """
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ConfigError(f"tensor {shown(name)} lacks a dtype, shape or offsets; {DOWNLOAD_AGAIN}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise ConfigError(
            f"tensor {shown(name)} has an unsupported dtype; known: {', '.join(DTYPES)}"
        )
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not are_counts(numbers):
            raise ConfigError(
                f"tensor {shown(name)}'s shape or offsets are not lists of nonnegative integers; "
                f"{DOWNLOAD_AGAIN}"
            )
    dtype, (begin, end) = DTYPES[entry["dtype"]], offsets
    if not begin <= end <= len(contents) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ConfigError(
            f"tensor {shown(name)} lies at {begin} to {end} of {len(contents)} bytes, expected "
            f"{math.prod(shape)} x {dtype.itemsize} bytes inside; {DOWNLOAD_AGAIN}"
        )
    return np.frombuffer(contents[begin:end], dtype).reshape(shape), (begin, end)


def _refuse_gaps(spans: list[tuple[int, int, str]]) -> None:
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise ConfigError(
                f"a gap of {begin - position} bytes before {shown(name) or 'its end'}, expected 0 "
                f"(negative: tensors overlap); {DOWNLOAD_AGAIN}"
            )
        position = end
