"""The 1,797 handwritten 8 x 8 digits that ship inside scikit-learn (UCI, CC BY 4.0)."""

import numpy as np
from sklearn.datasets import load_digits

CLASSES = 10


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8, 1) float32 in [-1, 1] and labels (1797,) int32 in 0..9."""
    digits = load_digits()
    images = digits.images[..., None].astype(np.float32) / 8 - 1  # grey levels 0..16
    return images, digits.target.astype(np.int32)
