"""Data sets in MNIST's idx format: (Fashion-)MNIST, KMNIST, EMNIST.

Format (http://yann.lecun.com/exdb/mnist/): two zero bytes, element type, number of dimensions, the
dimensions as big-endian uint32, then the elements. File names are MNIST's. Files may be gzipped,
named train-images.idx3-ubyte, or inside a folder of the same name, as on Kaggle.
"""

import contextlib
import gzip
import math
import struct
import zlib
from typing import BinaryIO

import numpy as np
from etils import epath

from simjax.data.dataset import Dataset, in_memory
from simjax.errors import ConfigError

UNSIGNED_BYTE = 8
PREFIXES = {"train": "train", "test": "t10k"}
CHUNK = 1 << 20  # bytes read at a time, so that memory grows with the content, not the header


def open_idx(where: str, split: str) -> Dataset:
    """Images (n, h, w, 1) and labels of MNIST-format files.

    Raises:
      ConfigError: a missing or malformed file, or another number of labels than images.
    """
    if split not in PREFIXES:
        raise ConfigError(f"idx:{where} has no split {split!r}; known: {', '.join(PREFIXES)}.")
    prefix, folder = PREFIXES[split], epath.Path(where).expanduser()
    images = _found(folder, f"{prefix}-images-idx3-ubyte", dimensions=3)
    labels = _found(folder, f"{prefix}-labels-idx1-ubyte", dimensions=1)
    label_dim = int(labels.max(initial=0)) + 1
    return in_memory(f"idx:{where}", images[..., None], labels.astype(np.int32), label_dim)


def read_idx(path: epath.Path, *, dimensions: int) -> np.ndarray:
    """The uint8 array of one file.

    Raises:
      ConfigError: not an idx file of bytes with `dimensions` dimensions, or its length differs
        from that in its header.
    """
    opened = gzip.open if path.suffix == ".gz" else contextlib.nullcontext
    try:
        with path.open("rb") as file, opened(file) as content:
            header = content.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
                raise ConfigError(
                    f"{path} begins with {header[:4].hex(' ')}, expected 00 00 08 "
                    f"{dimensions:02x}: an idx file of bytes with {dimensions} dimension(s)."
                )
            shape = struct.unpack(f">{dimensions}I", header[4:])
            data = _exactly(content, shape, path)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ConfigError(f"{path} cannot be read: {error}; download it again.") from error
    return np.frombuffer(data, np.uint8).reshape(shape)


def _exactly(content: BinaryIO, shape: tuple[int, ...], path: epath.Path) -> bytearray:
    """The elements; raises if there are fewer or more than in `shape`."""
    expected = math.prod(shape)  # a Python int: a false header may overflow int64
    data = bytearray()
    while len(data) <= expected and (chunk := content.read(min(CHUNK, expected + 1 - len(data)))):
        data += chunk
    if len(data) != expected:
        held = f"more than {expected}" if len(data) > expected else len(data)
        raise ConfigError(
            f"{path} has {held} bytes, expected {' x '.join(map(str, shape))} = {expected} by its "
            "header; download it again."
        )
    return data


def _found(folder: epath.Path, name: str, *, dimensions: int) -> np.ndarray:
    """The array of the file with this name, in any spelling.

    Raises:
      ConfigError: there is no such file, or several that differ.
    """
    dotted = name.replace("-idx", ".idx")
    spellings = [f"{inside}{end}" for inside in (name, dotted) for end in ("", ".gz")]
    places = [*spellings, *(f"{inside}/{one}" for inside in (name, dotted) for one in spellings)]
    paths = [folder / place for place in places]
    paths = [path for path in paths if path.exists() and not path.is_dir()]
    if not paths:
        raise ConfigError(
            f"{folder} has none of {', '.join(spellings)}, nor a folder {name} with one; put the "
            "four files in MNIST's format there (Debian's package dataset-fashion-mnist has them "
            "in /usr/share/datasets/fashion-mnist)."
        )
    first = read_idx(paths[0], dimensions=dimensions)
    for other in paths[1:]:
        if not np.array_equal(read_idx(other, dimensions=dimensions), first):
            raise ConfigError(f"{paths[0]} and {other} differ; keep only the right one.")
    return first
