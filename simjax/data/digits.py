"""scikit-learn's 1,797 handwritten 8 x 8 digits (UCI, CC BY 4.0)."""

import numpy as np
from sklearn.datasets import load_digits

from simjax.data.dataset import Dataset, in_memory, require_train
from simjax.errors import ConfigError

CLASSES = 10


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8, 1) in [-1, 1] and labels (1797,).

    Images are float32, labels int32 in 0..9.
    """
    digits = load_digits()
    images = digits.images[..., None].astype(np.float32) / 8 - 1  # grey levels 0..16
    return images, digits.target.astype(np.int32)


def open_digits(where: str, split: str) -> Dataset:
    """The digits as a data set; float32 keeps their 17 grey levels."""
    if where:
        raise ConfigError(f"data source 'digits:{where}': digits takes nothing after its name.")
    require_train("digits", split)
    images, labels = load()
    return in_memory("digits", images, labels, CLASSES)
