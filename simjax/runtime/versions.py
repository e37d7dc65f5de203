"""What runs here: the versions that stored networks, reports and tables name."""

import platform
from importlib import metadata

SIMJAX = "0.1.0"


def of(*packages: str) -> dict[str, str]:
    """simjax's version and Python's, and those of other packages."""
    found = {"simjax": SIMJAX, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in packages}
