"""A denoiser with its parameters, and what its samples need: complete when it exists."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from simjax import config as c
from simjax.errors import ConfigError
from simjax.models import autoencoder, build
from simjax.models.autoencoder import Decode
from simjax.networks.denoiser import Constants, constants_of
from simjax.runtime import sharding
from simjax.text.captions import Captions
from simjax.typing import Caption, Condition, Denoise, Int, Params

Read = Callable[[Sequence[str]], Caption]  # what makes captions of prompts


@dataclasses.dataclass(frozen=True)
class Model:
    """A denoiser with its parameters, and the run's config completed by what it is."""

    config: c.Config
    mesh: Mesh  # that the parameters are split over
    denoise: Denoise
    params: Params
    constants: Constants  # of the network; never trained
    provenance: dict[str, Any]
    captions: Captions | None = None  # of a text-to-image network
    decode: Decode = autoencoder.as_they_are  # samples to images
    read: Read | None = None  # prompts, of text-to-image networks
    is_generator: bool = False  # its parameters make samples by the calls of its config

    def asked(self, classes: Int[np.ndarray, "n"]) -> Condition:
        """What samples of these classes are conditioned on."""
        if self.captions is not None:
            return self.captions.asked(classes)
        return np.asarray(self.config.network.condition.of(classes))

    def weights(self, params: Params) -> Params:
        """Parameters of its network and the constants, on the host, as files hold them."""
        return build.weights_of(params, self.constants)

    @property
    def classes(self) -> int:
        """How many classes samples can be asked for, 0 if none."""
        if self.captions is None:
            return self.config.network.label_dim
        return len(self.config.text.words)


def model_of(
    config: c.Config,
    weights: Params,
    provenance: dict[str, Any],
    *,
    captions: Captions | None = None,
    read: Read | None = None,
    pictures: bool = False,
) -> Model:
    """The network that a completed config describes, with weights (numpy), on its mesh.

    Args:
      captions: what samples of a text-to-image network are asked for.
      pictures: refuse latents that nothing decodes.

    Raises:
      ConfigError: the autoencoder is lacking, or of another network.
    """
    decode = autoencoder.decoder(config.autoencoder, config.network, needed=pictures)
    mesh = build.mesh(config)
    denoise, params = build.denoiser(config, weights)
    constants, params = constants_of(weights, params), sharding.place(params, mesh)
    return Model(config, mesh, denoise, params, constants, provenance, captions, decode, read)


def require_fit(network: c.Network, prompts: Captions | None) -> None:
    """Refuses prompts that the network does not read, and a network that has none to read.

    Raises:
      ConfigError: with what would do.
    """
    condition = network.condition
    if condition.reads_prompts != (prompts is not None):
        raise ConfigError(
            f"{type(network).__name__} reads captions, but there are none: make a cache by "
            "python -m simjax encode-prompts and set --config.text.cache=FOLDER."
            if prompts is None
            else f"text.cache or text.templates are set, but {type(network).__name__} reads no "
            "captions; leave them out."
        )
    if prompts is not None:
        found = prompts.cache.identity
        most = condition.limit or found["length"]
        if found["channels"] != condition.channels or found["length"] > most:
            raise ConfigError(
                f"captions of up to {found['length']} tokens of {found['channels']} channels; the "
                f"network reads {most} of {condition.channels}. Encode them with the encoder "
                f"that the network was trained with, and --length={most}."
            )
