"""`Dataset`: real images behind one interface, and their batches.

For teacher training, evaluation and methods with real images. Created by data/loader.py.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from simjax.errors import ConfigError

Pixels = UInt8[np.ndarray, "n h w c"] | Float[np.ndarray, "n h w c"]  # 0..255, or [-1, 1]
Classes = Int[np.ndarray, "n"]

SLICE = 1024  # images hashed at a time; our choice
MOST_CLASSES = 100_000  # larger labels are rejected as mistakes; our choice


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with random access, and their classes if they have any.

    Args:
      name: the source, for messages and provenance.
      size, shape: number of images, and (h, w, c) of each.
      labels: class numbers in 0..label_dim - 1, None (and label_dim 0) for unlabelled images.
      read: indices (k,) to images (k, h, w, c), uint8, or float32 in [-1, 1].

    Raises:
      ConfigError: no images, or labels of another number or range.
    """

    name: str
    size: int
    shape: tuple[int, int, int]
    labels: Classes | None
    label_dim: int
    read: Callable[[Classes], Pixels]

    def __post_init__(self):
        if not self.size:
            raise ConfigError(f"{self.name} has no images.")
        if self.labels is None:
            return
        if self.labels.shape != (self.size,):
            raise ConfigError(
                f"{self.name} has {len(self.labels)} labels for {self.size} images; expected one "
                "for each."
            )
        low, high = self.labels.min(), self.labels.max()
        if low < 0 or high >= min(self.label_dim, MOST_CLASSES):
            raise ConfigError(
                f"{self.name} has labels from {low} to {high}; expected 0 to "
                f"{min(self.label_dim, MOST_CLASSES) - 1}."
            )

    def load(self) -> Pixels:
        """All images, in memory."""
        return self.read(np.arange(self.size))

    def prior(self) -> Float[np.ndarray, "label_dim"]:
        """Frequency of each class; empty for unlabelled images."""
        if self.labels is None:
            return np.zeros(0)
        return np.bincount(self.labels, minlength=self.label_dim) / self.size

    def fingerprint(self) -> str:
        """sha256 of all images and labels, independent of how they are stored."""
        total = hashlib.sha256()
        for start in range(0, self.size, SLICE):
            total.update(self.read(np.arange(start, min(start + SLICE, self.size))).tobytes())
        if self.labels is not None:
            total.update(self.labels.tobytes())
        return total.hexdigest()


def in_memory(name: str, images: Pixels, labels: Classes, label_dim: int) -> Dataset:
    """A data set of arrays in memory.

    >>> images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 1, 1])
    >>> in_memory("mine", images, labels, label_dim=2).prior()
    array([0.25, 0.75])
    """
    return Dataset(
        name=name,
        size=len(images),
        shape=images.shape[1:],
        labels=labels,
        label_dim=label_dim,
        read=images.__getitem__,
    )


def to_unit(images: Pixels) -> Float[np.ndarray, "n h w c"]:
    """Scales uint8 images to [-1, 1]; float32 images are unchanged.

    uint8 v becomes v / 127.5 - 1 in float32.

    >>> to_unit(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)).ravel()
    array([-1.,  1.], dtype=float32)
    """
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(127.5) - 1
    if images.dtype == np.float32:
        return images
    raise TypeError(f"images of {images.dtype}; expected uint8, or float32 in [-1, 1].")


def batches(
    dataset: Dataset,
    batch: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    shuffle_seed: int | None = None,
) -> Iterator[tuple[Pixels, Classes | None]]:
    """This process's share of every batch, in one pass over the data.

    All processes use the same order, so a batch has the same images for any number of processes,
    and every process gets the same number of batches; the last one may be smaller.

    >>> images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    >>> dataset = in_memory("mine", images, np.zeros(5, np.int32), label_dim=1)
    >>> [found.ravel().tolist() for found, _ in batches(dataset, 2)]
    [[0, 1], [2, 3], [4]]

    Args:
      batch: global batch, the sum over processes.
      shuffle_seed: None keeps the order of the data set.

    Yields:
      Images as read, and labels or None; no images if the last batch has fewer than processes.
    """
    if batch < 1 or not 0 <= process_index < process_count:
        raise ConfigError(
            f"batch = {batch} for process {process_index} of {process_count}; expected a batch of "
            "at least 1 and a process index below the number of processes."
        )
    order = np.arange(dataset.size)
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(order)
    for start in range(0, dataset.size, batch):
        share = order[start : start + batch][process_index::process_count]
        yield dataset.read(share), None if dataset.labels is None else dataset.labels[share]


def require_train(name: str, split: str) -> None:
    """Raises for another split than "train", for sources without splits."""
    if split != "train":
        raise ConfigError(f"{name} has no split {split!r}; expected split='train', the whole set.")
