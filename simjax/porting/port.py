"""From a published checkpoint to a network of ours: fetch, read, name, check.

What the file says about itself (its class and constructor arguments) chooses the network. Nothing
in it is executed (porting/unpickle.py).
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from simjax import build
from simjax import config as c
from simjax.porting import cache, read_pickle, read_weights, rules, transformers, zoo
from simjax.porting.cache import LocalFile
from simjax.porting.foreign_file import refuse_nonfinite
from simjax.porting.maps import edm
from simjax.typing import Params

WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json")  # of transformers; or a folder
LATENT_DEVIATION = 1.0  # what the autoencoder's scale gives latents (arXiv:2112.10752)


@dataclasses.dataclass(frozen=True)
class Ported:
    """A checkpoint in simjax's terms; weights are its parameters and constants, nested dicts."""

    description: edm.Description
    weights: Params
    provenance: dict[str, Any]


def port(source: str, *, sha256: str = "", say: Callable[[str], None] = print) -> Ported:
    """Ports a known name, a URL, a file or a folder.

    Files of the EDM release's format (SiD's too); DiT's, PixArt-alpha's and SIM's state
    dictionaries; folders of diffusers' transformers.

    Args:
      source: see porting/zoo.py.
      sha256: what the file must have; empty accepts, and records, what comes.
      say: where progress goes.

    Raises:
      ConfigError: it cannot be fetched, is not such a file, is damaged or does not fit.
    """
    begun = time.monotonic()
    folder = Path(source).expanduser()
    is_folder = source not in zoo.ZOO and folder.is_dir()
    file = _folder(folder) if is_folder else zoo.fetch(source, sha256=sha256, say=say)
    is_transformer = file.path.is_dir() or file.path.suffix in WEIGHTS
    read = _read_transformer if is_transformer else _read_unet
    description, mapping, tensors, digest = read(file)
    if sha256 not in ("", digest):
        raise c.ConfigError(f"{source} has sha256 {digest}, expected {sha256}.")
    refuse_nonfinite(tensors, file.path)
    try:
        completed = c.complete(c.Config(), *description)
        weights = rules.apply(mapping, tensors, build.weights_like(completed))
    except c.ConfigError as error:
        raise c.ConfigError(f"{file.path}: {error}") from error
    provenance = {
        "source": source,
        "file_sha256": digest,
        "parameters": build.count(build.denoiser(completed, weights)[1]),
        "seconds": time.monotonic() - begun,
    }
    return Ported(description, weights, provenance)


Read = tuple[edm.Description, list[rules.Rule], dict[str, Any], str]  # and the sha256


def _read_unet(file: LocalFile) -> Read:
    """A pickle of the EDM release, which tells its class and arguments."""
    found = read_pickle.read_network(file.path)
    try:
        if found.positional:
            raise c.ConfigError(f"{found.class_name} was built from arguments without names.")
        description = edm.describe(found.class_name, found.arguments)
    except c.ConfigError as error:
        raise c.ConfigError(f"{file.path}: {error}") from error
    return description, edm.rules(description.network), found.tensors, file.sha256


def _read_transformer(file: LocalFile) -> Read:
    """A state dictionary, or a folder of diffusers'."""
    weights = read_weights.read(file.path)
    try:
        network, mapping, tensors = transformers.identify(weights)
    except c.ConfigError as error:
        raise c.ConfigError(f"{file.path}: {error}") from error
    description = edm.Description(network, "ddpm_linear", LATENT_DEVIATION)
    return description, mapping, tensors, file.sha256 or _digest(weights.files)


def _folder(path: Path) -> LocalFile:
    """A folder of weights; of a whole pipeline, its transformer's. Its files are hashed later."""
    inner = path / "transformer"
    is_pipeline = (path / transformers.PIPELINE).exists() and inner.is_dir()
    return LocalFile(epath.Path(inner if is_pipeline else path), "", str(path))


def _digest(files: list[Path]) -> str:
    """sha256 of a text with a line "sha256  name" for each file, in order of their names."""
    lines = [f"{cache.digest(path)}  {path.name}\n" for path in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
