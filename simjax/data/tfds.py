"""TensorFlow Datasets, with random access through tfds.data_source.

The library is slow to import and only used here, so it is imported inside `open_tfds`.
"""

import importlib.util
from typing import Any

import numpy as np

from simjax.data.dataset import Classes, Dataset, Pixels
from simjax.errors import ConfigError


def open_tfds(where: str, split: str) -> Dataset:
    """A data set with features "image", of one size, and optionally "label".

    Raises:
      ConfigError: it is not available, or its images are not uint8 of one size.
    """
    import tensorflow_datasets as tfds

    name = f"tfds:{where}"
    try:
        _require_readable(tfds.builder(where), name)
        source = tfds.data_source(where, split=split)
        features = dict(source.dataset_info.features.items())
    except ImportError as error:
        raise ConfigError(f"{name} needs {error.name}: pip install {error.name}.") from error
    except ConfigError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")  # the rest lists all known data sets
        raise ConfigError(
            f"{name}, split {split!r}: {reason}. If it cannot be downloaded here or is stored as "
            "tfrecord, prepare it with `tfds build NAME --file_format=array_record`, if necessary "
            "on another machine, and copy ~/tensorflow_datasets (or $TFDS_DATA_DIR)."
        ) from error
    image = features.get("image")
    if image is None or len(image.shape) != 3 or None in image.shape or image.np_dtype != np.uint8:
        raise ConfigError(
            f"{name} has features {sorted(features)} with image {image}; expected uint8 images of "
            "one size."
        )

    def read(indices: Classes) -> Pixels:
        images = np.empty((len(indices), *image.shape), np.uint8)
        for number, index in enumerate(indices):
            images[number] = source[int(index)]["image"]
        return images

    labels, label_dim = None, 0
    if "label" in features:
        undecoded = {"image": tfds.decode.SkipDecoding()}
        quick = tfds.data_source(where, split=split, decoders=undecoded)
        labels = np.array([quick[index]["label"] for index in range(len(quick))], np.int32)
        label_dim = features["label"].num_classes
    return Dataset(name, len(source), tuple(image.shape), labels, label_dim, read)


def _require_readable(builder: Any, name: str) -> None:
    """Raises if a data set is not prepared and TensorFlow is missing."""
    if builder.is_prepared() or importlib.util.find_spec("tensorflow"):
        return
    raise ConfigError(
        f"{name} is not prepared in {builder.data_path}, and preparing it needs TensorFlow: pip "
        'install "simjax[tensorboard]". Once prepared with `tfds build NAME '
        "--file_format=array_record`, here or on another machine, it is read without TensorFlow."
    )
