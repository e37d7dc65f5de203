"""Writes files in MNIST's idx format."""

import struct
from pathlib import Path

import numpy as np


def encoded(array: np.ndarray) -> bytes:
    """A uint8 array in idx format, header included."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write(folder: Path, images: np.ndarray, labels: np.ndarray, split: str = "train") -> str:
    """Writes images (n, h, w) and labels (n,), uint8; returns the data source."""
    (folder / f"{split}-images-idx3-ubyte").write_bytes(encoded(images))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(encoded(labels))
    return f"idx:{folder}"


def write_squares(folder: Path, count: int, side: int, classes: int) -> str:
    """Writes random grey squares on black whose width increases with the class."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, side, side), np.uint8)
    labels = np.arange(count) % classes
    for image, label in zip(images, labels, strict=True):
        width = 1 + label * (side - 1) // classes
        row, column = rng.integers(0, side - width + 1, 2)
        image[row : row + width, column : column + width] = rng.integers(100, 256)
    return write(folder, images, labels.astype(np.uint8))
