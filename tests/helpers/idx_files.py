"""Files in MNIST's idx format, as tests need them."""

import struct
from pathlib import Path

import numpy as np


def encoded(array: np.ndarray) -> bytes:
    """An array of bytes, with its header."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write(folder: Path, images: np.ndarray, labels: np.ndarray, split: str = "train") -> str:
    """Images (n, h, w) and labels (n,), uint8; returns the data source."""
    (folder / f"{split}-images-idx3-ubyte").write_bytes(encoded(images))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(encoded(labels))
    return f"idx:{folder}"
