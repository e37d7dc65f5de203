"""User extensions: losses, families, networks, data sets and others, by name.

    simjax.register("loss", "mine", my_loss)       # then --config.loss.name=mine

Keyword-only arguments of a function become fields of the schema and command-line flags.
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
    """Entries by name, and the dataclass that holds their options."""

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


_REGISTERED: set[tuple[str, str]] = set()  # (kind, name) pairs that may be replaced


def register(kind: str, name: str, thing: Any) -> None:
    """Registers a user extension for this process, e.g. in a config file.

        def cauchy(y, *, width: float = 1.0):
            return jnp.log1p(jnp.sum(y**2) / width**2)

        simjax.register("distance", "cauchy", cauchy)
        config = simjax.Config(loss=c.Loss(distance="cauchy", width=2.0))

    Keyword-only arguments become config fields and flags, here --config.loss.width. Registering the
    same name again replaces the entry, e.g. when a notebook cell is rerun. Complete examples:
    README.md in simjax/losses, diffusion, networks, data and porting.

    Args:
      kind: "loss", "distance", "sigma_law", "weight" (functions as in losses/ and diffusion/),
        "family" (a diffusion.families.Family), "data" ((text after the colon, split) -> Dataset)
        or "network" (a networks.network.Network subclass, registered under its class name).
      name: the name used in configs.
      thing: the function or class.

    Raises:
      ConfigError: a built-in entry has this name, or an option has no default or a conflicting one.
    """
    require_known("kind", kind, REGISTRIES)
    known, record = REGISTRIES[kind]
    if name in known and (kind, name) not in _REGISTERED:
        raise ConfigError(
            f"register({kind!r}, {name!r}): simjax already has a {kind} of this name; "
            "choose another."
        )
    if record is not None:
        before = known.get(name)
        try:
            extend(record, thing, redefined=() if before is None else keywords(before))
        except ValueError as error:
            raise ConfigError(f"register({kind!r}, {name!r}): {error}") from error
    known[name] = thing
    _REGISTERED.add((kind, name))
