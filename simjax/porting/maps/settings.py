"""Sizes and choices in a foreign config.json: checked, or refused with what was expected."""

from typing import Any, NamedTuple

from simjax.errors import ConfigError


class Settings(NamedTuple):
    """Of one kind of network.

    Attributes:
      owner: its name in messages.
      hint: where such a config.json is found, a sentence; may be empty.
    """

    owner: str
    hint: str = ""

    def size(self, name: str, value: Any, most: int) -> int:
        """The value, a whole number from 1 to `most`: a claim must not cost time or memory.

        Raises:
          ConfigError: it is something else.
        """
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.refusal(name, value, f"a whole number from 1 to {most}")
        return value

    def refusal(self, name: str, value: Any, expected: str) -> ConfigError:
        """The error for one field."""
        message = f"{self.owner} with {name} = {repr(value)[:60]} is not supported; "
        return ConfigError(f"{message}expected {expected}. {self.hint}".rstrip())
