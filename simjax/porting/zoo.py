"""Published checkpoints by name; `fetch` returns a verified local file.

Sources of names and URLs: the EDM release (arXiv:2206.00364; network sizes: its table 7), DiT,
SiT, PixArt-α. None of them publishes checksums, so none is pinned: a file's sha256 is recorded at
its first use.
"""

import copy
import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from simjax.errors import ConfigError
from simjax.networks.adm_unet import AdmUNet
from simjax.networks.dit import DiT
from simjax.networks.network import Network
from simjax.networks.pixart import PixArt
from simjax.networks.song_unet import SongUNet
from simjax.porting.files import cache
from simjax.porting.files.cache import LocalFile

EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
DIT = "https://dl.fbaipublicfiles.com/DiT/models/"  # facebookresearch/DiT, download.py
SIT = (  # willisma/SiT, README; the host requires the key
    "https://www.dl.dropboxusercontent.com/scl/fi/as9oeomcbub47de5g4be0/SiT-XL-2-256.pt"
    "?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=1"
)
PIXART = "https://huggingface.co/PixArt-alpha/PixArt-alpha/resolve/main/"  # its README
HUB = re.compile(r"(?:https?://huggingface\.co/)?(\w[\w.-]*/\w[\w.-]*)/?")  # a repository name
FILES = (".pkl", ".npz", ".zip", ".pt", ".pth", ".bin", ".ckpt", ".json", ".safetensors")
REMOTE_PATHS = ("gs", "s3")  # URL schemes that etils.epath opens without a download

# Differences from SongUNet's defaults, which are EDM's CIFAR-10 DDPM++.
WITH_64_PIXELS = {"resolution": 64, "channel_mult": (1, 2, 2, 2)}
NETWORKS = {
    "cifar10-32x32-uncond": {},
    "cifar10-32x32-cond": {"label_dim": 10},
    "ffhq-64x64-uncond": WITH_64_PIXELS | {"dropout": 0.05},
    "afhqv2-64x64-uncond": WITH_64_PIXELS | {"dropout": 0.25},
}
NCSNPP = {
    "embedding": "fourier",
    "noise_channels": 2,
    "encoder": "residual",
    "filter_taps": (1, 3, 3, 1),
}


class Entry(NamedTuple):
    """One published file; `network` is None if only the file records it."""

    url: str
    network: Network | None = None
    sha256: str | None = None
    precondition: str = "edm"
    sigma_data: float = 0.5


def _release() -> dict[str, Entry]:
    """Every file of the EDM release; vp is DDPM++ and ve NCSN++."""
    imagenet = "edm-imagenet-64x64-cond-adm"
    entries = {imagenet: Entry(f"{EDM}{imagenet}.pkl", AdmUNet())}
    for name, size in NETWORKS.items():
        for kind, family in (("vp", {}), ("ve", NCSNPP)):
            edm, baseline = f"edm-{name}-{kind}", f"baseline-{name}-{kind}"
            entries[edm] = Entry(f"{EDM}{edm}.pkl", SongUNet(**size, **family))
            entries[baseline] = Entry(f"{EDM}baseline/{baseline}.pkl")
    return entries


def _transformers() -> dict[str, Entry]:
    """DiT-XL/2, SiT-XL/2 and PixArt-alpha; resolution of the latents, pixels / 8."""
    latent = {"precondition": "ddpm_linear", "sigma_data": 1.0}
    networks = {
        f"{DIT}DiT-XL-2-256x256.pt": DiT(resolution=32),
        f"{DIT}DiT-XL-2-512x512.pt": DiT(resolution=64),
        f"{PIXART}PixArt-XL-2-256x256.pth": PixArt(resolution=32),
        f"{PIXART}PixArt-XL-2-512x512.pth": PixArt(resolution=64),
        f"{PIXART}PixArt-XL-2-1024-MS.pth": PixArt(
            resolution=128, interpolation=2.0, size_conditioning=True
        ),
    }
    entries = {
        url.rpartition("/")[2].rpartition(".")[0]: Entry(url, network, **latent)
        for url, network in networks.items()
    }
    sit = Entry(SIT, DiT(resolution=32), precondition="sit", sigma_data=1.0)
    return entries | {"SiT-XL-2-256x256": sit}


ZOO = _release() | _transformers()

# FID's feature extractor. Its file name ends with the first 8 digits of its sha256.
INCEPTION_SHA256 = "6726825d"
INCEPTION = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    f"pt_inception-2015-12-05-{INCEPTION_SHA256}.pth"
)


def find(name: str) -> Entry:
    """The entry of a known name, a copy that may be modified.

    >>> find("edm-cifar10-32x32-cond-vp").network.label_dim
    10

    Raises:
      ConfigError: unknown name; the message suggests similar ones.
    """
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, n=3) or sorted(ZOO)
        raise ConfigError(
            f"{name!r} is neither a known teacher nor an existing file; did you mean "
            f"{', '.join(near)}? A source is one of the {len(ZOO)} names in simjax.porting.zoo, "
            "an http(s):// URL, or a path (gs:// too)."
        )
    return copy.deepcopy(ZOO[name])


def fetch(source: str, *, sha256: str = "", say: Callable[[str], None] = print) -> LocalFile:
    """The verified local file of a known name, URL or path.

    Names and URLs are downloaded once, into the cache; paths are used in place.

    Args:
      source: a known name takes precedence over a file of that name; write ./NAME for the file.
      sha256: expected checksum; "" takes the zoo's, or the one recorded at the first use.
      say: callback for progress messages.

    Raises:
      ConfigError: unknown source, failed download, or another checksum than expected.
    """
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"sha256 = {sha256!r} is not a checksum: expected 64 hexadecimal digits.")
    sha256 = sha256.lower()
    if is_url(source):
        if HUB.fullmatch(source):
            raise missing(source)
        return cache.fetch(source, sha256=sha256, say=say)
    if source not in ZOO and epath.Path(source).expanduser().exists():
        return _in_place(source, sha256)
    if "/" in source:
        raise missing(source)
    entry = find(source)
    found = cache.fetch(entry.url, sha256=sha256 or entry.sha256 or "", say=say)
    return found._replace(source=source)


def is_url(source: str) -> bool:
    """Whether a source must be downloaded; paths in buckets are read directly.

    >>> is_url("https://example.com/teacher.pkl"), is_url("gs://bucket/teacher.pkl")
    (True, False)
    """
    scheme, found, _ = source.partition("://")
    return bool(found) and scheme.lower() not in REMOTE_PATHS


def local(path: str) -> str:
    """The path of an existing file or folder, with "~" expanded.

    Raises:
      ConfigError: it does not exist; for the name of a Hugging Face repository, the message has
        the command that downloads it.
    """
    found = epath.Path(path).expanduser()
    if not found.exists():
        raise missing(path)
    return str(found)


def missing(source: str) -> ConfigError:
    """The error for a missing path, possibly a Hugging Face repository."""
    found = HUB.fullmatch(source)
    remedy = ""
    if found and not source.endswith(FILES):
        repository = found[1]
        remedy = (
            " If it is a repository of the Hugging Face Hub, download the folder first and pass "
            f"its path: hf download {repository} --local-dir {repository.partition('/')[2]}"
        )
    return ConfigError(f"{source} does not exist.{remedy}")


def _in_place(source: str, sha256: str) -> LocalFile:
    path = epath.Path(source).expanduser()
    if path.is_dir():
        raise ConfigError(f"{source} is a directory; expected one file.")
    digest = cache.digest(path)
    if sha256 not in ("", digest):
        raise ConfigError(f"{source} has sha256 {digest}, expected {sha256}.")
    return LocalFile(path, digest, source)
