"""`Model`: a denoiser with parameters, config, conditions and VAE decoder."""

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

Read = Callable[[Sequence[str]], Caption]  # prompts -> their embeddings


@dataclasses.dataclass(frozen=True)
class Model:
    """A denoiser with its parameters and its completed config.

    Made by `simjax.load` and `simjax.from_function`, used by `simjax.draw`, `simjax.probe` and
    `simjax.Distillation`.

    Attributes:
      config: settings of sampling and distillation; config.network describes the architecture.
      denoise: (params, xt, sigma, cond) -> E[x0 | xt].
      params: pytree of float arrays on `mesh`.
      classes: number of classes; 0 for an unconditional or prompt-conditioned network.
      provenance: origin of the weights, e.g. source and sha256.

    >>> import simjax
    >>> identity = simjax.from_function(lambda params, xt, sigma, cond: xt, {}, shape=(8, 8, 3))
    >>> identity.config.network.resolution, identity.classes, identity.is_generator
    (8, 0, False)
    """

    config: c.Config
    mesh: Mesh  # the parameters are sharded over it
    denoise: Denoise
    params: Params
    constants: Constants  # fixed buffers of the network, never trained
    provenance: dict[str, Any]
    captions: Captions | None = None  # text-to-image only: cached prompts
    decode: Decode = autoencoder.identity  # samples -> images
    read: Read | None = None  # text-to-image only: the prompt encoder
    is_generator: bool = False  # sample with config.generator, not with the teacher's sampler

    def conditions(self, classes: Int[np.ndarray, "n"]) -> Condition:
        """Network conditions (label vectors or captions) of these classes."""
        if self.captions is not None:
            return self.captions.conditions(classes)
        return np.asarray(self.config.network.condition.of(classes))

    def weights(self, params: Params) -> Params:
        """Parameters and constants on the host, as stored in files."""
        return build.weights_of(params, self.constants)

    @property
    def classes(self) -> int:
        """Number of classes that samples can be conditioned on; 0 if unconditional."""
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
    """Builds a `Model` from a completed config and weights (numpy).

    Args:
      captions: cached prompts of a text-to-image network.
      read: the prompt encoder of a text-to-image network.
      pictures: raise if samples are latents and config.autoencoder is not set.

    Raises:
      ConfigError: the autoencoder is missing or does not match the network.
    """
    decode = autoencoder.decoder(config.autoencoder, config.network, needed=pictures)
    mesh = build.mesh(config)
    denoise, params = build.denoiser(config, weights)
    constants, params = constants_of(weights, params), sharding.place(params, mesh)
    return Model(config, mesh, denoise, params, constants, provenance, captions, decode, read)


def require_fit(network: c.Network, prompts: Captions | None) -> None:
    """Checks that network and prompt cache match, or that neither uses captions.

    Raises:
      ConfigError: with the remedy.
    """
    condition = network.condition
    if condition.reads_prompts != (prompts is not None):
        raise ConfigError(
            f"{type(network).__name__} reads captions, but there are none: make a cache with "
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
                f"captions have up to {found['length']} tokens of {found['channels']} channels; "
                f"the network reads {most} tokens of {condition.channels}. Encode them with the "
                f"text encoder that the network was trained with, and --length={most}."
            )
