"""Class agreement: how often a classifier of real images reads a sample as what was asked for.

The classifier is a support vector machine on raw pixels, fitted on half of the real images; the
other half gives its held-out accuracy, which bounds what agreement can mean.
"""

import numpy as np
from jaxtyping import Float, Int
from sklearn.svm import SVC

from simjax.typing import typed


class Classifier:
    """An RBF support vector machine (scikit-learn's defaults) and its held-out accuracy."""

    @typed
    def __init__(
        self, images: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], *, seed: int = 0
    ):
        order = np.random.default_rng(seed).permutation(len(images))
        fit, held_out = np.array_split(order, 2)
        self.model = SVC().fit(images[fit], labels[fit])
        self.held_out_accuracy = self.agreement(images[held_out], labels[held_out])

    @typed
    def agreement(self, images: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"]) -> float:
        """Share of rows that are classified as their label."""
        return float(np.mean(self.model.predict(images) == labels))
