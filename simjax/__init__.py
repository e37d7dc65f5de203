"""simjax: one-step generators from pretrained diffusion models, by score distillation in JAX.

    import simjax

    generator = simjax.load("runs/digits")
    simjax.show(simjax.draw(generator, 20, labels=[3, 7]))

`load`, `from_function`, `draw`, `show` and `Distillation` are in simjax/api.py, `Config` in
simjax/config; `distill(config, workdir)` is the function behind `python -m simjax.main`. Names are
imported on first access, so that commands can reject wrong flags without importing JAX.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from simjax.runtime import versions

if TYPE_CHECKING:
    from simjax.api import Distillation, draw, from_function, load, show
    from simjax.config import Config
    from simjax.config.registries import register
    from simjax.errors import ConfigError
    from simjax.models.model import Model
    from simjax.runs.distill import distill
    from simjax.runs.probe import probe

if importlib.util.find_spec("fcntl") is None:  # file locks; missing on Windows
    raise ImportError("simjax runs on Linux and macOS; on Windows, use it in WSL 2.")

__version__ = versions.SIMJAX

_HOMES = {
    "Config": "config",
    "ConfigError": "errors",
    "Distillation": "api",
    "Model": "models.model",
    "distill": "runs.distill",
    "draw": "api",
    "from_function": "api",
    "load": "api",
    "probe": "runs.probe",
    "register": "config.registries",
    "show": "api",
}
__all__ = [
    "__version__",
    "Config",
    "ConfigError",
    "Distillation",
    "Model",
    "distill",
    "draw",
    "from_function",
    "load",
    "probe",
    "register",
    "show",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module simjax has no attribute {name!r}")
    return getattr(importlib.import_module(f"simjax.{_HOMES[name]}"), name)
