"""From a published checkpoint to a network of ours: fetch, read, name, check.

What the file says about itself (its class and constructor arguments) chooses the network. Nothing
in it is executed (porting/unpickle.py).
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from simjax import build
from simjax import config as c
from simjax.porting import read_pickle, rules, zoo
from simjax.porting.foreign_file import refuse_nonfinite
from simjax.porting.maps import edm
from simjax.typing import Params


@dataclasses.dataclass(frozen=True)
class Ported:
    """A checkpoint in simjax's terms; weights are its parameters and constants, nested dicts."""

    description: edm.Description
    weights: Params
    provenance: dict[str, Any]


def port(source: str, *, sha256: str = "", say: Callable[[str], None] = print) -> Ported:
    """Ports a known name, a URL or a file of the EDM release's format (SiD's too).

    Args:
      source: see porting/zoo.py.
      sha256: what the file must have; empty accepts, and records, what comes.
      say: where progress goes.

    Raises:
      ConfigError: it cannot be fetched, is not such a file, is damaged or does not fit.
    """
    begun = time.monotonic()
    file = zoo.fetch(source, sha256=sha256, say=say)
    found = read_pickle.read_network(file.path)
    refuse_nonfinite(found.tensors, file.path)
    try:
        if found.positional:
            raise c.ConfigError(f"{found.class_name} was built from arguments without names.")
        description = edm.describe(found.class_name, found.arguments)
        completed = c.complete(c.Config(), *description)
        like = build.weights_like(completed)
        weights = rules.apply(edm.rules(description.network), found.tensors, like)
    except c.ConfigError as error:
        raise c.ConfigError(f"{file.path}: {error}") from error
    provenance = {
        "source": source,
        "file_sha256": file.sha256,
        "parameters": build.count(build.denoiser(completed, weights)[1]),
        "seconds": time.monotonic() - begun,
    }
    return Ported(description, weights, provenance)


def report(ported: Ported) -> str:
    """What was ported, for a person to read."""
    network, precondition, sigma_data = ported.description
    lines = {
        "source": ported.provenance["source"],
        "file sha256": ported.provenance["file_sha256"],
        "network": type(network).__name__,
        **{f"  {name}": value for name, value in dataclasses.asdict(network).items()},
        "preconditioning": f"{precondition}, sigma_data {sigma_data}",
        "labels": f"{network.label_dim} classes" if network.label_dim else "unconditional",
        "parameters": f"{ported.provenance['parameters']:,}",
    }
    return "\n".join(f"{name:26}{value}" for name, value in lines.items())
