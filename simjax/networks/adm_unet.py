"""ADM, the U-Net of Dhariwal and Nichol, in EDM's ImageNet configuration.

References: arXiv:2105.05233; EDM, arXiv:2206.00364, appendix F.2 and table 7.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from simjax.networks import layers
from simjax.networks.network import Network
from simjax.networks.unet import ADM, UNet
from simjax.typing import Array, Float, Labels, PerExample

CHANNELS_EMBEDDING = 4  # width of the noise embedding / width of the network (EDM)


class AdmUNetModule(UNet):
    """F(x, c_noise, labels) of the preconditioned denoiser; arguments as in SongUNetModule."""

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
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.channels = channels
        wide = channels * CHANNELS_EMBEDDING
        # Embeddings run in float32: they are cheap, and sensitive to the precision of sigma.
        embed = {"rngs": rngs, "dtype": jnp.float32}
        if augment_dim:
            silent = layers.lecun(0)
            self.map_augment = layers.linear(
                augment_dim, channels, init=silent, use_bias=False, **embed
            )
        self.map_layer0 = layers.linear(channels, wide, init=layers.lecun(), **embed)
        self.map_layer1 = layers.linear(wide, wide, init=layers.lecun(), **embed)
        if label_dim:
            one_hot = layers.normal(1.0)
            self.map_label = layers.linear(label_dim, wide, init=one_hot, use_bias=False, **embed)
        super().__init__(
            style=ADM,
            resolution=resolution,
            image_channels=image_channels,
            out_channels=out_channels,
            stem=channels * channel_mult[0],
            widths=[channels * mult for mult in channel_mult],
            blocks=blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            embedding_width=wide,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )

    def _embed(
        self, c_noise: PerExample, labels: Labels, augment_labels: Float[Array, "b a"] | None
    ) -> Float[Array, "b e"]:
        steps = self.channels // 2  # excludes the lowest frequency
        embedding = layers.positional_embedding(c_noise, self.channels, steps=steps)
        if hasattr(self, "map_augment") and augment_labels is not None:
            embedding += self.map_augment(augment_labels)
        embedding = self.map_layer1(jax.nn.silu(self.map_layer0(embedding)))
        if hasattr(self, "map_label"):
            embedding += self.map_label(labels)
        return jax.nn.silu(embedding)


@dataclasses.dataclass
class AdmUNet(Network):
    """Options of ADM; defaults are EDM's ImageNet 64 network (table 7).

    >>> AdmUNet(label_dim=10).shape  # height, width, channels
    (64, 64, 3)
    """

    module: ClassVar = AdmUNetModule
    has_logits: ClassVar = True
    resolution: int = 64
    image_channels: int = 3
    label_dim: int = 1000
    augment_dim: int = 0
    channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.10
