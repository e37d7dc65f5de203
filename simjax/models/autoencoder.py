"""Latents to images, for pictures and measurements; training never leaves the latents."""

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
    """What makes images of a network's samples: the decoder in a folder, if one is given.

    Args:
      needed: refuse samples that would be no pictures.

    Raises:
      ConfigError: the folder is lacking, or of another network.
    """
    if folder:
        return load_decoder(folder, network)
    if needed and network.image_channels not in (1, 3):
        raise ConfigError(
            f"samples are latents of {network.image_channels} channels: --config.autoencoder= the "
            "folder of diffusers' AutoencoderKL, for pictures."
        )
    return as_they_are


def load_decoder(folder: str | os.PathLike, network: c.Network) -> Decode:
    """The decoder in a folder of diffusers' AutoencoderKL, in float32.

    Each device of this process decodes one image at a time: 512 pixels take gigabytes of memory.

    Raises:
      ConfigError: it is something else, not whole, or of other latents than the network's.
    """
    weights = read_weights.read(zoo.local(folder))
    refuse_nonfinite(weights.tensors, folder)
    try:
        if weights.config is None:
            raise ConfigError("it has no config.json; give the folder of an AutoencoderKL.")
        sizes = vae.describe(weights.config)
        module = nnx.eval_shape(lambda: Autoencoder(**sizes, dtype=jnp.float32, rngs=nnx.Rngs(0)))
        graphdef, like = nnx.split(module)
        params = rules.apply(vae.RULES, weights.tensors, nnx.to_pure_dict(like))
        if sizes["latent_channels"] != network.image_channels:
            raise ConfigError(
                f"its latents have {sizes['latent_channels']} channels, the network's "
                f"{network.image_channels}; give the autoencoder that it was trained with."
            )
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    mesh = sharding.local_mesh()
    params = sharding.place_whole(params, mesh)
    decode = jax.jit(lambda params, z: nnx.merge(graphdef, params).decode(z))

    def in_turn(latents: np.ndarray) -> Images:
        rows = sharding.rounded_up(len(latents), mesh)
        padded = np.resize(latents, (rows, *latents.shape[1:]))  # repeats the first
        parts = (padded[start : start + mesh.size] for start in range(0, rows, mesh.size))
        where = sharding.batch_split(mesh)
        images = [np.asarray(decode(params, jax.device_put(part, where))) for part in parts]
        return np.concatenate(images)[: len(latents)]

    return in_turn


def as_they_are(images: np.ndarray) -> np.ndarray:
    """Of networks whose samples are images."""
    return images
