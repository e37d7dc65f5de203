"""The noise levels of a generator's calls: given one by one, or by the rule for their number."""

import math

from simjax.config import schema
from simjax.diffusion import schedule
from simjax.errors import ConfigError


def generator_levels(options: schema.Generator) -> tuple[float, ...]:
    """Levels of `steps` calls, data units, descending.

    Raises:
      ConfigError: they are not, or not as many as steps.
    """
    given, steps = options.levels, options.steps
    if steps is not None and steps < 1:
        raise ConfigError(f"generator.steps = {steps}: expected a number of calls, 1 or more.")
    if given and steps not in (None, len(given)):
        raise ConfigError(
            f"generator.levels = {given} are {len(given)}, but generator.steps = {steps}: give "
            f"--config.generator.steps={len(given)}, or leave one of the two out."
        )
    if given:
        levels, told = tuple(map(float, given)), "generator.levels"
    else:
        rule = {"sigma_init": options.sigma_init, "shift": options.shift}
        levels, told = schedule.generator_levels(steps or 1, **rule), "the levels of generator.*"
    pairs = zip(levels, [*levels[1:], 0.0], strict=True)
    if not (math.isfinite(levels[0]) and all(this > then for this, then in pairs)):
        raise ConfigError(
            f"{told} = {levels}: expected finite noise levels that decrease and are above 0, as in "
            "--config.generator.levels=2.5,0.8."
        )
    return levels
