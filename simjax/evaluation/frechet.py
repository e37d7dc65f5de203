"""Frechet distance between Gaussians fitted to two feature sets (FID). float64.

Reference: Heusel et al., arXiv:1706.08500, eq. 6. Called from evaluation/evaluator.py.
"""

import numpy as np
from jaxtyping import Float

from simjax.evaluation import statistics
from simjax.typing import typed


@typed
def moments(
    features: Float[np.ndarray, "n d"], *, ddof: int = 1
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """Mean and covariance of features, denominator n - ddof.

    ddof = 1 is EDM's (fid.py), 0 SiD's.

    >>> mean, cov = moments(np.array([[0.0, 0.0], [2.0, 4.0]]))
    >>> mean.tolist(), cov.tolist()
    ([1.0, 2.0], [[2.0, 4.0], [4.0, 8.0]])

    Raises:
      ConfigError: fewer than two rows.
    """
    mean = features.mean(0, dtype=np.float64)
    rest = features - mean
    stats = statistics.Statistics(len(features), mean, rest.T @ rest)
    return statistics.moments(stats, ddof=ddof)


@typed
def frechet_distance(
    mean_a: Float[np.ndarray, "d"],
    cov_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, "e"],
    cov_b: Float[np.ndarray, "e e"],
) -> float:
    """Squared Frechet distance of two Gaussians, in squared feature units.

        |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))

    tr (A B)^(1/2) is computed as the sum of the singular values of A^(1/2) B^(1/2), with symmetric
    roots, which is exact for rank-deficient covariances too. Bitwise symmetric in its arguments.

    >>> frechet_distance(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2))
    4.0

    Raises:
      ConfigError: the dimensions differ, or an input is not finite.
    """
    statistics.require_comparable("the first mean", mean_a, "the second mean", mean_b)
    statistics.require_finite("the covariances", cov_a, cov_b)
    pair = [(mean, cov.astype(np.float64)) for mean, cov in ((mean_a, cov_a), (mean_b, cov_b))]
    pair.sort(key=lambda gaussian: gaussian[1].tobytes())  # any fixed order, for symmetry
    (mean_a, cov_a), (mean_b, cov_b) = pair
    singular = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False)
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b)
    return max(float(distance - 2 * singular.sum()), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root; eigenvalues below numpy.linalg.matrix_rank's tolerance are 0."""
    values, vectors = np.linalg.eigh(covariance)
    rounding = np.abs(values).max() * len(values) * np.finfo(np.float64).eps
    return (vectors * np.sqrt(np.where(values > rounding, values, 0))) @ vectors.T
