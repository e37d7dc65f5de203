"""Additions from outside: a loss, a family, a data set of your own, under a name that configs take.

    simjax.register("loss", "mine", my_loss)       # then --config.loss.name=mine

Options that a function declares become fields of the schema, and of the command line.
"""

from typing import Any, NamedTuple

from simjax import data
from simjax.config import schema
from simjax.config.options import extend, keywords
from simjax.diffusion.families import FAMILIES
from simjax.diffusion.noise import WEIGHTS
from simjax.diffusion.schedule import SIGMA_LAWS
from simjax.errors import ConfigError
from simjax.losses.distances import DISTANCES
from simjax.losses.registry import LOSSES
from simjax.networks.registry import NETWORKS
from simjax.runtime.values import require_known


class Registry(NamedTuple):
    """What is known by name, and the record of the schema that holds the options of it."""

    known: dict[str, Any]
    record: type | None = None


REGISTRIES = {
    "data": Registry(data.SOURCES),
    "distance": Registry(DISTANCES, schema.Loss),
    "family": Registry(FAMILIES),
    "loss": Registry(LOSSES, schema.Loss),
    "network": Registry(NETWORKS),
    "sigma_law": Registry(SIGMA_LAWS, schema.Sigma),
    "weight": Registry(WEIGHTS),
}


_REGISTERED: set[tuple[str, str]] = set()  # kinds and names: these may be registered again


def register(kind: str, name: str, thing: Any) -> None:
    """Adds something of your own, for every config of this program; a config file may do it.

    What has been registered under a name is replaced, as where a notebook's cell is run again.

    Args:
      kind: "loss", "distance", "sigma_law", "weight" (functions as in losses/ and diffusion/),
        "family" (a diffusion.families.Family), "data" ((what follows the colon, split) -> Dataset)
        or "network" (a networks.network.Network, by the name of its class).
      name: that configs have for it.

    Raises:
      ConfigError: simjax has this name; or an option has another's name, or no default.
    """
    require_known("kind", kind, REGISTRIES)
    known, record = REGISTRIES[kind]
    if name in known and (kind, name) not in _REGISTERED:
        raise ConfigError(f"register({kind!r}, {name!r}): simjax has a {kind} of this name.")
    if record is not None:
        before = known.get(name)
        try:
            extend(record, thing, redefined=() if before is None else keywords(before))
        except ValueError as error:
            raise ConfigError(f"register({kind!r}, {name!r}): {error}") from error
    known[name] = thing
    _REGISTERED.add((kind, name))
