"""Improved precision and recall: how much of each set lies within the other's neighbourhoods.

Reference: Kynkäänniemi et al., arXiv:1904.06991, section 2, k = 3.
"""

import numpy as np
from jaxtyping import Float
from sklearn.neighbors import NearestNeighbors

from simjax.typing import typed

BLOCK = 1000  # rows of distances held at a time; our choice


@typed
def precision_recall(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"], *, k: int = 3
) -> tuple[float, float]:
    """(precision, recall): the shares of generated rows near real ones, and of real near generated.

    A row is near a set when, for some member, it is no farther than that member's k-th neighbour
    within its own set.
    """
    return _coverage(real, generated, k), _coverage(generated, real, k)


def _coverage(members: np.ndarray, queries: np.ndarray, k: int) -> float:
    nearest = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(members)
    radius = nearest.kneighbors()[0][:, -1]  # without the query, a member is not its own neighbour
    inside = 0
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK].astype(np.float64)
        squared = (
            (block**2).sum(1)[:, None]
            + (members.astype(np.float64) ** 2).sum(1)
            - 2 * block @ members.astype(np.float64).T
        )
        inside += (squared <= radius**2).any(1).sum()
    return float(inside / len(queries))
