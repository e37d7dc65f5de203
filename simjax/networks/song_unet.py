"""The U-Net of Song et al. in EDM's configuration: DDPM++ and NCSN++.

References: arXiv:2011.13456; EDM, arXiv:2206.00364, appendix F.2 and table 7.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from simjax.networks import layers
from simjax.networks.network import Network
from simjax.networks.unet import SONG, UNet
from simjax.typing import Array, Float, Labels, PerExample

CHANNELS_EMBEDDING = 4  # width of the noise embedding / width of the network (EDM)


class SongUNetModule(UNet):
    """F(x, c_noise, labels) of the preconditioned denoiser.

    Args:
      label_dim: classes, 0 for unconditional.
      augment_dim: length of EDM's augmentation labels, 0 for none.
      channels, channel_mult: base width, and its multiplier per level.
      embedding: "positional" (DDPM++) or "fourier" (NCSN++).
      noise_channels: width of that embedding / `channels`: 1 (DDPM++) or 2 (NCSN++).
      encoder: "standard" (DDPM++) or "residual" (NCSN++).
      filter_taps: resampling filter, (1, 1) (DDPM++) or (1, 3, 3, 1) (NCSN++).
      Other arguments: see UNet.
    """

    def __init__(
        self,
        *,
        resolution: int,
        image_channels: int,
        out_channels: int,
        label_dim: int,
        augment_dim: int,
        channels: int,
        channel_mult: Sequence[int],
        blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float,
        embedding: str,
        noise_channels: int,
        encoder: str,
        filter_taps: Sequence[float],
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.label_dim = label_dim
        self.embedding_channels = channels * noise_channels
        wide = channels * CHANNELS_EMBEDDING
        if embedding == "fourier":
            self.map_noise = layers.FourierEmbedding(self.embedding_channels, rngs=rngs)
        # Embeddings run in float32: they are cheap, and sensitive to the precision of sigma.
        embed = {"init": layers.glorot(), "rngs": rngs, "dtype": jnp.float32}
        if label_dim:
            self.map_label = layers.linear(label_dim, self.embedding_channels, **embed)
        if augment_dim:
            self.map_augment = layers.linear(
                augment_dim, self.embedding_channels, use_bias=False, **embed
            )
        self.map_layer0 = layers.linear(self.embedding_channels, wide, **embed)
        self.map_layer1 = layers.linear(wide, wide, **embed)
        super().__init__(
            style=SONG,
            resolution=resolution,
            image_channels=image_channels,
            out_channels=out_channels,
            stem=channels,
            widths=[channels * mult for mult in channel_mult],
            blocks=blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            embedding_width=wide,
            filter_taps=filter_taps,
            pyramid=encoder == "residual",
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )

    def _embed(
        self, c_noise: PerExample, labels: Labels, augment_labels: Float[Array, "b a"] | None
    ) -> Float[Array, "b e"]:
        if hasattr(self, "map_noise"):
            embedding = self.map_noise(c_noise)
        else:
            steps = self.embedding_channels // 2 - 1  # includes the lowest frequency
            embedding = layers.positional_embedding(c_noise, self.embedding_channels, steps=steps)
        if self.label_dim:
            embedding += self.map_label(labels * math.sqrt(self.label_dim))
        if hasattr(self, "map_augment") and augment_labels is not None:
            embedding += self.map_augment(augment_labels)
        embedding = jax.nn.silu(self.map_layer0(embedding))
        return jax.nn.silu(self.map_layer1(embedding))


@dataclasses.dataclass
class SongUNet(Network):
    """Options of DDPM++ (defaults) and NCSN++ (EDM table 7).

    NCSN++ changes embedding, noise_channels, encoder and filter_taps.
    """

    module: ClassVar = SongUNetModule
    has_logits: ClassVar = True
    choices: ClassVar = {
        "embedding": ("positional", "fourier"),
        "encoder": ("standard", "residual"),
    }
    resolution: int = 32
    image_channels: int = 3
    label_dim: int = 0
    augment_dim: int = 9  # EDM's augmentation pipe
    channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.13
    embedding: str = "positional"
    noise_channels: int = 1
    encoder: str = "standard"
    filter_taps: tuple[int, ...] = (1, 1)
