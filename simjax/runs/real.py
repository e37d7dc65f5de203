"""Real images for distillation methods that use them (e.g. SiDA, RealUID).

A small data set is replicated on every device, and the step samples from it. From a large one,
each process prefetches its part of the next call's images (runtime/stream.py).
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from simjax import config as c
from simjax.data import Dataset
from simjax.errors import ConfigError
from simjax.runs import setup
from simjax.runtime import sharding
from simjax.runtime.stream import Stream
from simjax.train.update import AllImages, ImageRows

MOST_ON_DEVICE = 2**28  # largest data set on devices, bytes; our choice: CIFAR-10 has 0.15 GB
LOOKED_AT = 1024  # number of images whose value range is checked at start; our choice


def open_images(config: c.Config) -> Dataset | None:
    """Opens config.real; None for methods without data or an unknown network.

    Raises:
      ConfigError: it cannot be opened, or its shape, value range or classes do not match.
    """
    if not c.needs_real_images(config) or config.network is None:
        return None
    c.require_logits(config, config.network)
    dataset = setup.open_data(config, "real")
    images = dataset.read(np.arange(min(dataset.size, LOOKED_AT)))
    is_unit = images.dtype == np.float32 and np.all(np.abs(images) <= 1)
    if not (images.dtype == np.uint8 or is_unit):
        low, high = images.min(), images.max()
        raise ConfigError(
            f"real.source = {config.real.source!r} has images of {images.dtype} from {low:g} to "
            f"{high:g}; expected uint8, or float32 in [-1, 1]."
        )
    return dataset


def stays_on_device(dataset: Dataset) -> bool:
    """Whether the data set is replicated on every device."""
    return dataset.size * math.prod(dataset.shape) <= MOST_ON_DEVICE


def like(config: c.Config, dataset: Dataset, mesh: Mesh) -> AllImages | ImageRows:
    """Shapes, dtypes and shardings of the images passed to a call."""
    dtype = dataset.read(np.arange(1)).dtype
    if not stays_on_device(dataset):
        return sharding.abstract_rows(setup.real_like(config, config.steps_per_call, dtype), mesh)
    whole = {"sharding": sharding.replicated(mesh)}
    images = jax.ShapeDtypeStruct((dataset.size, *dataset.shape), dtype, **whole)
    has_labels = config.network.label_dim > 0
    labels = jax.ShapeDtypeStruct((dataset.size,), np.int32, **whole) if has_labels else None
    return AllImages(images, labels)


def images_at(
    config: c.Config, dataset: Dataset, mesh: Mesh, reads: int
) -> Callable[[int], AllImages | ImageRows]:
    """Returns step -> real images of the compiled call that starts there.

    Args:
      reads: number of updates per step that read real images.
    """
    labels = dataset.labels if config.network.label_dim else None
    labels = None if labels is None else labels.astype(np.int32)
    if stays_on_device(dataset):
        images = sharding.place_whole(AllImages(dataset.load(), labels), mesh)
        return lambda step: images

    def read(indices: np.ndarray) -> ImageRows:
        return ImageRows(dataset.read(indices), None if labels is None else labels[indices])

    rows = (config.steps_per_call, reads, config.batch)
    first = read(np.arange(1))
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*rows, *leaf.shape[1:]), leaf.dtype), first
    )
    return Stream(read, shapes, count=dataset.size, seed=config.seed, mesh=mesh).at
