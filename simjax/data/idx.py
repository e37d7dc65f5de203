"""Data sets in MNIST's idx format: (Fashion-)MNIST, KMNIST, EMNIST under MNIST's file names.

Format (http://yann.lecun.com/exdb/mnist/): two zero bytes, element type, number of dimensions, the
dimensions as big-endian uint32, then the elements. Files may be gzipped, named
train-images.idx3-ubyte, or lie in a folder of their own name, as Kaggle packs them.
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
CHUNK = 1 << 20  # bytes read at a time, so that memory follows what is really there


def open_idx(where: str, split: str) -> Dataset:
    """The images (n, h, w, 1) and labels of a directory with MNIST's four files.

    Raises:
      ConfigError: a missing or malformed file, or labels that do not fit the images.
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
      ConfigError: not an idx file of bytes with so many dimensions, or not as long as it says.
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
        raise ConfigError(f"{path} cannot be read: {error}; fetch it again.") from error
    return np.frombuffer(data, np.uint8).reshape(shape)


def _exactly(content: BinaryIO, shape: tuple[int, ...], path: epath.Path) -> bytearray:
    """The elements, neither fewer nor more than the shape has."""
    expected = math.prod(shape)  # exact: a false header may overflow int64
    data = bytearray()
    while len(data) <= expected and (chunk := content.read(min(CHUNK, expected + 1 - len(data)))):
        data += chunk
    if len(data) != expected:
        held = f"more than {expected}" if len(data) > expected else len(data)
        raise ConfigError(
            f"{path} says {' x '.join(map(str, shape))} = {expected} bytes, but holds {held}; "
            "fetch it again."
        )
    return data


def _found(folder: epath.Path, name: str, *, dimensions: int) -> np.ndarray:
    """The array under a name, in one of its spellings.

    Raises:
      ConfigError: it is nowhere, or several files have it and differ.
    """
    dotted = name.replace("-idx", ".idx")
    spellings = [f"{inside}{end}" for inside in (name, dotted) for end in ("", ".gz")]
    places = [*spellings, *(f"{inside}/{one}" for inside in (name, dotted) for one in spellings)]
    paths = [folder / place for place in places]
    paths = [path for path in paths if path.exists() and not path.is_dir()]
    if not paths:
        raise ConfigError(
            f"{folder} has none of {', '.join(spellings)}, nor a folder {name} with one; put the "
            "four files of MNIST's kind there (Debian's dataset-fashion-mnist has such in "
            "/usr/share/datasets/fashion-mnist)."
        )
    first = read_idx(paths[0], dimensions=dimensions)
    for other in paths[1:]:
        if not np.array_equal(read_idx(other, dimensions=dimensions), first):
            raise ConfigError(f"{paths[0]} and {other} differ; keep the right one alone.")
    return first
