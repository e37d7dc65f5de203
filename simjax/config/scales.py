"""How strongly the fake score is guided: by the numbers of a config, or by a name for them."""

from collections.abc import Callable

from simjax.config import schema

# The fake score's scales by name, from the teacher's: kappa 1, while it learns, and kappa 2, in the
# generator's update (arXiv:2406.01561); zero and anti (2505.12674) are of an unguided teacher.
GUIDANCE: dict[str, Callable[[float], tuple[float, float]]] = {
    "lsg": lambda scale: (scale, scale),
    "zero_cfg": lambda scale: (0.0, 0.0),
    "anti_cfg": lambda scale: (1.0, -1.0),  # -1: our choice, of negative scales
}


def fake_score_scales(config: schema.Config) -> tuple[float, float]:
    """Scales of the fake score's guidance while it learns, and in the generator's update."""
    if config.guidance:
        return GUIDANCE[config.guidance](config.teacher.guidance)
    return config.fake_score.learnt_guidance, config.fake_score.guidance
