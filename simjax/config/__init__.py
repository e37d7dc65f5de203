"""The schema of a run, what is refused of it, and its form as plain values.

Config files write `from simjax import config as c` and return a `c.Config`. Names come when they
are first asked for: the schema knows the options of every network, so it imports JAX.
"""

import importlib
from typing import Any

_HOMES = {
    "checks": (
        *("complete", "pick", "require_null_condition", "require_teacher", "resolved", "validate"),
    ),
    "registries": ("register",),
    "schema": (
        *("AUGMENT_DIM", "Config", "Data", "Ema", "Evaluation", "FakeScore", "Generator", "Loss"),
        *("Optim", "Sampler", "Sigma", "Teacher", "Text"),
    ),
    "serial": (
        *("Change", "changes", "describe", "differences", "from_dict", "get_field"),
        *("known_fields", "network_from", "to_dict"),
    ),
    "values": ("require_known",),
}
_OF_NETWORKS = {
    "network": ("Description", "Network", "Own"),
    "registry": ("AdmUNet", "DiT", "PixArt", "SongUNet"),
    "t5": ("T5",),
}
_FOUND = {name: f"simjax.config.{home}" for home, names in _HOMES.items() for name in names}
_FOUND |= {n: f"simjax.networks.{home}" for home, names in _OF_NETWORKS.items() for n in names}
__all__ = sorted(_FOUND)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _FOUND:
        raise AttributeError(f"module simjax.config has no attribute {name!r}")
    return getattr(importlib.import_module(_FOUND[name]), name)
