"""Checks of sizes and choices in a checkpoint's config.json."""

from typing import Any, NamedTuple

from simjax.errors import ConfigError


class Settings(NamedTuple):
    """Checks for the config.json of one kind of network.

    >>> Settings("T5").size("num_layers", 24, most=64)
    24

    Attributes:
      owner: the network's name in messages.
      hint: a sentence on supported checkpoints; may be empty.
    """

    owner: str
    hint: str = ""

    def size(self, name: str, value: Any, most: int) -> int:
        """Returns the value, which must be an integer in 1..most.

        The limit keeps an untrusted file from costing time or memory.

        Raises:
          ConfigError: it is another value.
        """
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.refusal(name, value, f"a whole number from 1 to {most}")
        return value

    def refusal(self, name: str, value: Any, expected: str) -> ConfigError:
        """The error for one unsupported field."""
        message = f"{self.owner} with {name} = {repr(value)[:60]} is not supported; "
        return ConfigError(f"{message}expected {expected}. {self.hint}".rstrip())
