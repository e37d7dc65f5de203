"""Inception Score: how surely samples are of one class, and of how many classes in all. float64.

Reference: Salimans et al., arXiv:1606.03498, section 4; 10 consecutive splits and the population
standard deviation over them, as SiD's metrics. Called from evaluation/evaluator.py.
"""

import numpy as np
from jaxtyping import Float
from scipy import special

from simjax.errors import ConfigError
from simjax.evaluation.statistics import require_finite
from simjax.typing import typed

SUM_TOLERANCE = 1e-3  # of each row's sum about 1, float16's; our choice


@typed
def inception_score(
    probabilities: Float[np.ndarray, "n classes"], *, splits: int = 10
) -> tuple[float, float]:
    """Mean and deviation over splits of exp E_x KL(p(class | x) || E_x p(class | x)).

    Between 1 and the number of classes. The splits are consecutive, so the rows' order matters.

    Raises:
      ConfigError: fewer rows than splits, or rows that are no distributions.
    """
    require_finite("class probabilities", probabilities)
    if not 1 <= splits <= len(probabilities):
        raise ConfigError(
            f"{len(probabilities)} image(s) cannot be cut into {splits} splits; use more images."
        )
    error = np.abs(probabilities.sum(1, dtype=np.float64) - 1).max()
    if probabilities.min() < 0 or error > SUM_TOLERANCE:
        raise ConfigError(
            f"class probabilities: smallest {probabilities.min():.3g}, sums up to {error:.3g} from "
            "1; from logits, use score_of_logits."
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
    """The Inception Score of softmax(logits).

    Raises:
      ConfigError: fewer rows than splits, or not finite.
    """
    require_finite("logits", logits)
    return inception_score(special.softmax(logits.astype(np.float64), axis=1), splits=splits)
