"""Noise levels of a multistep generator, listed or by rule."""

import math

from simjax.config import schema
from simjax.diffusion import schedule
from simjax.errors import ConfigError


def generator_levels(options: schema.Generator) -> tuple[float, ...]:
    """Descending noise levels of the generator's calls, data units.

    Raises:
      ConfigError: levels that do not descend, or whose number differs from `steps`.

    >>> generator_levels(schema.Generator(levels=(2.5, 0.8)))
    (2.5, 0.8)
    >>> generator_levels(schema.Generator())
    (2.5,)
    """
    given, steps = options.levels, options.steps
    if steps is not None and steps < 1:
        raise ConfigError(f"generator.steps = {steps}: expected 1 or more calls per sample.")
    if given and steps not in (None, len(given)):
        raise ConfigError(
            f"generator.levels = {given} has {len(given)} levels, but generator.steps = {steps}: "
            f"set --config.generator.steps={len(given)}, or leave one of the two out."
        )
    if given:
        levels, name = tuple(map(float, given)), "generator.levels"
    else:
        rule = {"sigma_init": options.sigma_init, "shift": options.shift}
        levels, name = schedule.generator_levels(steps or 1, **rule), "the levels of generator.*"
    pairs = zip(levels, [*levels[1:], 0.0], strict=True)
    if not (math.isfinite(levels[0]) and all(this > then for this, then in pairs)):
        raise ConfigError(
            f"{name} = {levels}: expected finite, strictly decreasing noise levels above 0, e.g. "
            "--config.generator.levels=2.5,0.8."
        )
    return levels
