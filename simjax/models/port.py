"""Ports a published checkpoint: download, read, map tensor names, check.

Architecture and classes are read from the file (its class name and constructor arguments). Nothing
in the file is executed (porting/files/unpickle.py).
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from simjax import config as c
from simjax.errors import ConfigError
from simjax.models import build
from simjax.networks.network import Description
from simjax.porting import identify, zoo
from simjax.porting.files import cache, read_pickle, read_weights
from simjax.porting.files.cache import LocalFile
from simjax.porting.files.foreign_file import refuse_nonfinite
from simjax.porting.maps import edm, rules
from simjax.typing import Params

WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json")  # of transformers; or a folder
NOTED = {  # report line: optional key of the provenance
    "files": "files",
    "state dict": "state_dict",
    "assumed, not in the file": "assumed",
}
MOST_NAMED = 3  # file names in the report; our choice
LATENT_DEVIATION = 1.0  # std of VAE latents after scaling (arXiv:2112.10752)


@dataclasses.dataclass(frozen=True)
class Ported:
    """A ported checkpoint; `weights` holds parameters and constants as nested dicts."""

    description: Description
    weights: Params
    provenance: dict[str, Any]


def port(
    source: str,
    *,
    family: str = "",
    sha256: str = "",
    say: Callable[[str], None] = print,
) -> Ported:
    """Ports a known name, a URL, a file or a folder.

    Supported: pickles in the EDM release's format (SiD's too); state dicts of DiT, SiT,
    PixArt-alpha and SIM; folders of diffusers' transformers.

    Args:
      source: see porting/zoo.py.
      family: a key of identify.FAMILIES, for files that do not identify it; "" otherwise.
      sha256: expected hash of the file; "" accepts any file and records its hash.
      say: prints progress.

    Raises:
      ConfigError: download failed, unknown format, damaged file, or tensors that do not match.
    """
    if family:
        c.require_known("family", family, identify.FAMILIES)
    begun = time.monotonic()
    folder = Path(source).expanduser()
    is_folder = source not in zoo.ZOO and folder.is_dir()
    file = _folder(folder) if is_folder else zoo.fetch(source, sha256=sha256, say=say)
    is_transformer = file.path.is_dir() or file.path.suffix in WEIGHTS
    if is_transformer:
        found = _read_transformer(file, family or _published_family(source))
    else:
        found = _read_unet(file)
    description, mapping, tensors, digest, note = found
    if family and not isinstance(description.network, identify.FAMILIES[family][0]):
        raise ConfigError(
            f"{source}: family = {family!r}, but the file is a "
            f"{type(description.network).__name__}; leave family out."
        )
    if sha256 not in ("", digest):
        raise ConfigError(f"{source} has sha256 {digest}, expected {sha256}.")
    refuse_nonfinite(tensors, file.path)
    try:
        completed = c.complete(c.Config(), *description)
        weights = rules.apply(mapping, tensors, build.weights_like(completed))
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from error
    provenance = {
        "source": source,
        "file_sha256": digest,
        **note,
        "parameters": build.count(build.denoiser(completed, weights)[1]),
        "seconds": time.monotonic() - begun,
    }
    return Ported(description, weights, provenance)


class Read(NamedTuple):
    """Contents of a file: network, tensors, their name mapping and provenance notes."""

    description: Description
    rules: Sequence[rules.Rule]
    tensors: Mapping[str, Any]
    sha256: str
    note: dict[str, str]


def _published_family(source: str) -> str:
    """The family of a known name or its URL, otherwise ""."""
    entries = (entry for name, entry in zoo.ZOO.items() if source in (name, entry.url))
    entry = next(entries, None)
    kinds = {kind: family for family, kind in identify.FAMILIES.items()}
    return "" if entry is None else kinds.get((type(entry.network), entry.precondition), "")


def _read_unet(file: LocalFile) -> Read:
    """Reads a pickle in the EDM release's format."""
    found = read_pickle.read_network(file.path)
    try:
        if found.positional:
            raise ConfigError(f"{found.class_name} was built from arguments without names.")
        description = edm.describe(found.class_name, found.arguments)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from error
    return Read(description, edm.rules(description.network), found.tensors, file.sha256, {})


def _read_transformer(file: LocalFile, family: str) -> Read:
    """Reads a state dict or a diffusers folder."""
    weights = read_weights.read(file.path)
    try:
        network, mapping, tensors, assumed, precondition = identify.identify(weights, family)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from error
    is_noise = precondition == identify.DDPM
    if is_noise and not (file.path.is_dir() and identify.require_schedule(Path(file.path))):
        assumed = (*assumed, f"eps prediction with the noise schedule of {type(network).__name__}")
    names = [path.name for path in weights.files]
    note = {"files": ", ".join(names[:MOST_NAMED]) + ", ..." * (len(names) > MOST_NAMED)}
    note |= {"state_dict": weights.key} if weights.key else {}
    note |= {"assumed": "; ".join(assumed)} if assumed else {}
    description = Description(network, precondition, LATENT_DEVIATION)
    return Read(description, mapping, tensors, file.sha256 or _digest(weights.files), note)


def _folder(path: Path) -> LocalFile:
    """The folder of weights; of a diffusers pipeline, its `transformer` folder.

    Its files are hashed later.
    """
    inner = path / "transformer"
    is_pipeline = (path / identify.PIPELINE).exists() and inner.is_dir()
    return LocalFile(epath.Path(inner if is_pipeline else path), "", str(path))


def _digest(files: list[Path]) -> str:
    """sha256 of the sorted file list, one line "sha256  name" per file."""
    lines = [f"{cache.digest(path)}  {path.name}\n" for path in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def report(ported: Ported) -> str:
    """Human-readable summary of a ported checkpoint."""
    network, precondition, sigma_data = ported.description
    lines = {
        "source": ported.provenance["source"],
        "file sha256": ported.provenance["file_sha256"],
        **{name: ported.provenance[key] for name, key in NOTED.items() if key in ported.provenance},
        "network": type(network).__name__,
        **{f"  {name}": value for name, value in dataclasses.asdict(network).items()},
        "preconditioning": f"{precondition}, sigma_data {sigma_data}",
        "labels": f"{network.label_dim} classes" if network.label_dim else "unconditional",
        "parameters": f"{ported.provenance['parameters']:,}",
    }
    return "\n".join(f"{name:26}{value}" for name, value in lines.items())


def overview(ported: Ported) -> str:
    """Table of the name, shape and size of every array."""
    from clu import parameter_overview

    return parameter_overview.get_parameter_overview(ported.weights, include_stats=False)


def plan(config: c.Config) -> c.Config:
    """Completes the config with its teacher's network, without reading a file.

    Raises:
      ConfigError: the source is not a known name, or its network is known only from the file.

    >>> source = "edm-cifar10-32x32-cond-vp"
    >>> plan(c.Config(teacher=c.Teacher(source=source))).network.label_dim
    10
    """
    if not config.teacher.source:
        made = config.teacher
        return c.complete(config, config.network, made.precondition, made.sigma_data)
    entry = zoo.find(config.teacher.source)
    if entry.network is None:
        raise ConfigError(f"{config.teacher.source}: its network is known only from its file.")
    return c.complete(config, entry.network, entry.precondition, entry.sigma_data)
