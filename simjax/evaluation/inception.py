"""Loads the Inception-v3 weights of FID."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from simjax.errors import ConfigError
from simjax.networks import inception
from simjax.porting import zoo
from simjax.porting.files import read_torch
from simjax.porting.files.foreign_file import refuse_nonfinite
from simjax.porting.files.placeholders import described
from simjax.porting.maps import rules
from simjax.porting.maps.inception import RULES
from simjax.typing import Params

NAME = "inception-fid"


class Weights(NamedTuple):
    """Parameters for inception.extractor (a nested dict), and their origin."""

    params: Params
    sha256: str
    source: str


def load(
    source: str = NAME,
    *,
    sha256: str = zoo.INCEPTION_SHA256,
    say: Callable[[str], None] = print,
) -> Weights:
    """Loads the public weights, or other weights of the same network.

    Args:
      source: NAME (downloaded once), or a URL or path, see zoo.fetch.
      sha256: expected checksum of the file, or a prefix of it; "" accepts any file.
      say: callback for log lines.

    Raises:
      ConfigError: the file cannot be fetched, has another checksum, is damaged, or does not fit
        the network.
    """
    file = zoo.fetch(zoo.INCEPTION if source == NAME else source, say=say)
    if not file.sha256.startswith(sha256.lower()):
        raise ConfigError(
            f"{file.path} has sha256 {file.sha256}, expected {sha256}...: these are not "
            f"the weights that FID is defined with. Fetch {zoo.INCEPTION} again (if the file is in "
            f"simjax's cache, delete it and its .json first), or accept other weights with "
            'sha256="".'
        )
    tensors = _state_dict(read_torch.read(file.path), file.path)
    refuse_nonfinite(tensors, file.path)
    try:
        params = rules.apply(RULES, tensors, inception.weights_like())
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from error
    return Weights(params, file.sha256, source)


def _state_dict(value: Any, path: Any) -> Mapping[str, np.ndarray]:
    members = value.items() if isinstance(value, Mapping) else [("", value)]
    for name, tensor in members:
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise ConfigError(
                f"{path}: contains {described(tensor)}, expected a dict of named tensors and "
                "nothing else; save the state dict alone."
            )
    return value
