"""Kernel distance (KID): the squared maximum mean discrepancy of two sets of features. float64.

Reference: Bińkowski et al., arXiv:1801.01401, section 4; subsets drawn as SiD's metrics draw them.
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
    """Mean over random subsets of mmd_squared; zero in expectation for equal distributions.

    Defaults are SiD's. A set with fewer than subset_size rows makes all subsets as small.

    Raises:
      ConfigError: sets of rows of two lengths, not finite, or of a single row.
    """
    require_comparable("generated features", generated, "real features", real)
    size = min(subset_size, len(generated), len(real))
    if size < 2:
        raise ConfigError(
            f"{len(generated)} generated and {len(real)} real images, subsets of {subset_size}: "
            "the kernel distance needs at least two of each."
        )
    draws = np.random.RandomState(seed)  # the reference's generator, kept stable by NumPy
    total = 0.0
    for _ in range(subsets):
        ours = generated[draws.choice(len(generated), size, replace=False)]
        theirs = real[draws.choice(len(real), size, replace=False)]
        total += mmd_squared(ours, theirs)
    return total / subsets


@typed
def mmd_squared(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m d"]) -> float:
    """Unbiased: E k(x, x') + E k(y, y') - 2 E k(x, y), x' another row than x. May be negative."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    within = _kernel(x, x) + _kernel(y, y)
    pairs = len(x) * (len(x) - 1)
    return float((within.sum() - np.trace(within)) / pairs - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / d + 1)^3 of every pair."""
    return (x @ y.T / x.shape[1] + 1) ** 3
