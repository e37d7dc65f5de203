"""Inception Score: confidence and diversity of class predictions. float64.

Reference: Salimans et al., arXiv:1606.03498, section 4; 10 consecutive splits and their population
standard deviation, as in SiD's metrics. Called from evaluation/evaluator.py.
"""

import numpy as np
from jaxtyping import Float
from scipy import special

from simjax.errors import ConfigError
from simjax.evaluation.statistics import require_finite
from simjax.typing import typed

SUM_TOLERANCE = 1e-3  # of |sum of a row - 1|, enough for float16; our choice


@typed
def inception_score(
    probabilities: Float[np.ndarray, "n classes"], *, splits: int = 10
) -> tuple[float, float]:
    """Inception Score of class probabilities: mean and std over splits.

        exp E_x KL(p(class | x) || E_x p(class | x)),

    between 1 and the number of classes. Splits are consecutive, so the order of the rows matters.

    >>> inception_score(np.eye(4), splits=1)  # four images, surely of four classes
    (4.0, 0.0)

    Raises:
      ConfigError: fewer rows than splits, or rows that are not probability distributions.
    """
    require_finite("class probabilities", probabilities)
    if not 1 <= splits <= len(probabilities):
        raise ConfigError(
            f"{len(probabilities)} image(s) cannot be split into {splits}; use more images."
        )
    error = np.abs(probabilities.sum(1, dtype=np.float64) - 1).max()
    if probabilities.min() < 0 or error > SUM_TOLERANCE:
        raise ConfigError(
            f"class probabilities: the minimum is {probabilities.min():.3g} and row sums differ "
            f"from 1 by up to {error:.3g}; expected >= 0 and 1. For logits, use score_of_logits."
        )
    bounds = np.arange(splits + 1) * len(probabilities) // splits
    parts = (
        probabilities[a:b].astype(np.float64) for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    )
    scores = [np.exp(special.rel_entr(p, p.mean(0)).sum(1).mean()) for p in parts]
    return float(np.mean(scores)), float(np.std(scores))


@typed
def score_of_logits(
    logits: Float[np.ndarray, "n classes"], *, splits: int = 10
) -> tuple[float, float]:
    """Inception Score of softmax(logits): mean and std over splits.

    >>> mean, std = score_of_logits(np.zeros((10, 3)))  # uniform predictions: the minimum, 1
    >>> round(mean, 6), round(std, 6)
    (1.0, 0.0)

    Raises:
      ConfigError: fewer rows than splits, or logits are not finite.
    """
    require_finite("logits", logits)
    return inception_score(special.softmax(logits.astype(np.float64), axis=1), splits=splits)
