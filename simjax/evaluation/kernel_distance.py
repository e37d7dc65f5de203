"""Kernel Inception distance (KID): squared MMD of two feature sets. float64.

Reference: Bińkowski et al., arXiv:1801.01401, section 4; subsets are drawn as in SiD's metrics.
Called from evaluation/evaluator.py.
"""

import numpy as np
from jaxtyping import Float

from simjax.errors import ConfigError
from simjax.evaluation.statistics import require_comparable
from simjax.typing import typed


@typed
def kernel_distance(
    generated: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "m d2"],
    *,
    seed: int,
    subsets: int = 100,
    subset_size: int = 1000,
) -> float:
    """KID: mean of mmd_squared over random subsets.

    Zero in expectation for equal distributions. Defaults are SiD's. If a set has fewer than
    subset_size rows, all subsets have its size.

    Raises:
      ConfigError: the feature dimensions differ, a number is not finite, or a set has one row.
    """
    require_comparable("generated features", generated, "real features", real)
    size = min(subset_size, len(generated), len(real))
    if size < 2:
        raise ConfigError(
            f"{len(generated)} generated and {len(real)} real images, subsets of {subset_size}: "
            "KID needs at least two of each."
        )
    draws = np.random.RandomState(seed)  # SiD's generator, which NumPy keeps stable
    total = 0.0
    for _ in range(subsets):
        ours = generated[draws.choice(len(generated), size, replace=False)]
        theirs = real[draws.choice(len(real), size, replace=False)]
        total += mmd_squared(ours, theirs)
    return total / subsets


@typed
def mmd_squared(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m d"]) -> float:
    """Unbiased estimate of the squared MMD; may be negative.

        E k(x, x') + E k(y, y') - 2 E k(x, y),  k(x, y) = (x . y / d + 1)^3,  x' another row than x

    >>> mmd_squared(np.array([[1.0], [1.0]]), np.array([[0.0], [0.0]]))
    7.0
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    within = _kernel(x, x) + _kernel(y, y)
    pairs = len(x) * (len(x) - 1)
    return float((within.sum() - np.trace(within)) / pairs - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / d + 1)^3 for every pair."""
    return (x @ y.T / x.shape[1] + 1) ** 3
