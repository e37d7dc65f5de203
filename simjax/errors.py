"""What a user did wrong, said in one message."""


class ConfigError(ValueError):
    """A mistake in what the user asked for; the message names the field and the remedy."""
