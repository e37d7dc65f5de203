"""The exception for user errors."""


class ConfigError(ValueError):
    """Invalid config, argument or file; the message contains the remedy.

    Commands print it as one line, `simjax: MESSAGE`, with exit status 1.

    >>> import numpy as np
    >>> import simjax
    >>> simjax.show(np.zeros((2, 8, 8, 1), int))
    Traceback (most recent call last):
    simjax.errors.ConfigError: images are int64, expected floats in [-1, 1], or uint8.
    """
