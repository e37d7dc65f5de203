"""Package versions, as recorded in stored networks, reports and tables."""

import platform
from importlib import metadata

SIMJAX = "0.1.0"


def of(*packages: str) -> dict[str, str]:
    """Versions of simjax, Python and the given packages.

    >>> sorted(of("jax"))
    ['jax', 'python', 'simjax']
    """
    found = {"simjax": SIMJAX, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in packages}
