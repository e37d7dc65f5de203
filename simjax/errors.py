"""The exception for user errors."""


class ConfigError(ValueError):
    """Invalid config, argument or file; the message contains the remedy."""
