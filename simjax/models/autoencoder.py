"""Decodes VAE latents to images, for sample grids and metrics.

Training stays in latent space.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax import config as c
from simjax.errors import ConfigError
from simjax.networks.vae import Autoencoder
from simjax.porting import zoo
from simjax.porting.files import read_weights
from simjax.porting.files.foreign_file import refuse_nonfinite
from simjax.porting.maps import rules, vae
from simjax.runtime import sharding
from simjax.typing import Images

Decode = Callable[[np.ndarray], np.ndarray]  # latents (n, h, w, c) -> images, data units


def decoder(folder: str, network: c.Network, *, needed: bool) -> Decode:
    """Maps samples to images: the VAE decoder in `folder`, or identity.

    Args:
      folder: diffusers' AutoencoderKL; empty for networks that sample pixels.
      needed: raise if the samples are latents and no folder is given.

    Raises:
      ConfigError: the folder is missing, or its latents do not match the network.
    """
    if folder:
        return load_decoder(folder, network)
    if needed and network.image_channels not in (1, 3):
        raise ConfigError(
            f"samples are latents of {network.image_channels} channels; to decode them to images, "
            "set --config.autoencoder= to the folder of diffusers' AutoencoderKL."
        )
    return identity


def load_decoder(folder: str | os.PathLike, network: c.Network) -> Decode:
    """Loads the decoder of a diffusers AutoencoderKL folder, in float32.

    Each device of this process decodes one image at a time: 512 pixels take gigabytes of memory.

    Raises:
      ConfigError: not an AutoencoderKL, incomplete, or its latents do not match the network.
    """
    weights = read_weights.read(zoo.local(folder))
    refuse_nonfinite(weights.tensors, folder)
    try:
        if weights.config is None:
            raise ConfigError("no config.json found; expected the folder of an AutoencoderKL.")
        sizes = vae.describe(weights.config)
        module = nnx.eval_shape(lambda: Autoencoder(**sizes, dtype=jnp.float32, rngs=nnx.Rngs(0)))
        graphdef, like = nnx.split(module)
        params = rules.apply(vae.RULES, weights.tensors, nnx.to_pure_dict(like))
        if sizes["latent_channels"] != network.image_channels:
            raise ConfigError(
                f"its latents have {sizes['latent_channels']} channels, but the network samples "
                f"{network.image_channels}; use the autoencoder that the network was trained with."
            )
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    mesh = sharding.local_mesh()
    params = sharding.place_whole(params, mesh)
    decode = jax.jit(lambda params, z: nnx.merge(graphdef, params).decode(z))

    def in_turn(latents: np.ndarray) -> Images:
        rows = sharding.rounded_up(len(latents), mesh)
        padded = np.resize(latents, (rows, *latents.shape[1:]))  # repeats from the first latent
        parts = (padded[start : start + mesh.size] for start in range(0, rows, mesh.size))
        where = sharding.batch_split(mesh)
        images = [np.asarray(decode(params, jax.device_put(part, where))) for part in parts]
        return np.concatenate(images)[: len(latents)]

    return in_turn


def identity(images: np.ndarray) -> np.ndarray:
    """Identity: the decoder of networks that sample pixels."""
    return images
