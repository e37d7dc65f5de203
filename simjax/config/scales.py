"""Guidance scales of the fake score, by name or by value."""

from collections.abc import Callable

from simjax.config import schema

# Teacher scale -> (kappa 1, kappa 2): scales of the fake score in its own update and in the
# generator's (arXiv:2406.01561). zero_cfg and anti_cfg (2505.12674) assume an unguided teacher.
GUIDANCE: dict[str, Callable[[float], tuple[float, float]]] = {
    "lsg": lambda scale: (scale, scale),
    "zero_cfg": lambda scale: (0.0, 0.0),
    "anti_cfg": lambda scale: (1.0, -1.0),  # -1: our choice among negative scales
}


def fake_score_scales(config: schema.Config) -> tuple[float, float]:
    """Guidance scales (kappa 1, kappa 2) of the fake score.

    >>> options = schema.Config(guidance="lsg")
    >>> options.teacher.guidance = 1.5
    >>> fake_score_scales(options)
    (1.5, 1.5)
    """
    if config.guidance:
        return GUIDANCE[config.guidance](config.teacher.guidance)
    return config.fake_score.learnt_guidance, config.fake_score.guidance
