"""The Frechet distance between Gaussians fitted to two sets of features. NumPy, float64.

Reference: Heusel et al., arXiv:1706.08500, eq. 6; moments as EDM's fid.py (denominator n - 1).
"""

import numpy as np
from jaxtyping import Float

from simjax.typing import typed


@typed
def moments(
    features: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """Mean and unbiased covariance of rows."""
    features = features.astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False).reshape(features.shape[1], -1)


@typed
def frechet_distance(
    mean_a: Float[np.ndarray, "d"],
    cov_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, "d"],
    cov_b: Float[np.ndarray, "d d"],
) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), in squared feature units.

    tr (A B)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2), with symmetric roots: exact
    for rank-deficient covariances too.
    """
    singular = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False)
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b)
    return float(distance - 2 * singular.sum())


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
