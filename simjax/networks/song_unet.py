"""The U-Net of Song et al. as EDM trains it: DDPM++, and NCSN++ with three options changed.

Block names ("16x16_block0") are those of the public checkpoints, so that paths can be compared.
References: arXiv:2011.13456; EDM, arXiv:2206.00364, appendix F.2 and table 7.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from simjax.networks import layers
from simjax.typing import Array, Float, Images, Labels, PerExample

EPSILON = 1e-6  # of group norm, EDM appendix F.2
CHANNELS_EMBEDDING = 4  # width of the noise embedding over that of the network, EDM


class UNetBlock(nnx.Module):
    """Residual block with a shift from the noise embedding, optional resampling and attention."""

    def __init__(
        self,
        features_in: int,
        features: int,
        embedding: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        dropout: float,
        filter_taps: Sequence[float],
        resample: str = "none",
        use_attention: bool = False,
    ):
        self.features_in = features_in
        self.dropout = dropout
        self.filter_taps = tuple(filter_taps)
        self.resample = resample
        self.use_attention = use_attention

        def norm(channels: int) -> layers.GroupNorm:
            return layers.GroupNorm(channels, epsilon=EPSILON, dtype=dtype)

        init = {"rngs": rngs, "dtype": dtype}
        self.norm0 = norm(features_in)
        self.conv0 = layers.conv(features_in, features, 3, **init)
        self.affine = layers.linear(embedding, features, **init)
        self.norm1 = norm(features)
        self.conv1 = layers.conv(features, features, 3, init_scale=1e-5, **init)
        if features_in != features or resample != "none":
            self.skip = layers.conv(features_in, features, 1, **init)
        if use_attention:
            self.norm2 = norm(features)
            self.qkv = layers.conv(features, 3 * features, 1, init_scale=math.sqrt(0.2), **init)
            self.proj = layers.conv(features, features, 1, init_scale=1e-5, **init)

    def __call__(
        self, x: Images, embedding: Float[Array, "b e"], dropout_keys: Array | None
    ) -> Images:
        h = self.conv0(self._resampled(jax.nn.silu(self.norm0(x))))
        shift = self.affine(embedding)[:, None, None].astype(h.dtype)
        h = jax.nn.silu(self.norm1(h + shift))
        h = self.conv1(layers.dropout(h, self.dropout, dropout_keys))
        skip = self._resampled(x)
        x = (h + (self.skip(skip) if hasattr(self, "skip") else skip)) * math.sqrt(0.5)
        if not self.use_attention:
            return x
        return (self._attended(x) + x) * math.sqrt(0.5)

    def _resampled(self, x: Images) -> Images:
        return RESAMPLE[self.resample](x, self.filter_taps)

    def _attended(self, x: Images) -> Images:
        b, height, width, c = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(b, height * width, 3, 1, c)  # one head
        mixed = layers.attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return self.proj(mixed.reshape(x.shape))


RESAMPLE = {
    "none": lambda x, taps: x,
    "down": layers.downsample,
    "up": layers.upsample,
}


class ResidualInput(nnx.Module):
    """NCSN++'s input pyramid: a convolution, then the filter at stride 2 (one padding for both)."""

    def __init__(self, features_in, features, *, filter_taps, rngs, dtype):
        self.filter_taps = tuple(filter_taps)
        padding = 1 + (len(filter_taps) - 1) // 2
        self.conv = layers.conv(features_in, features, 3, padding=padding, rngs=rngs, dtype=dtype)

    def __call__(self, x: Images) -> Images:
        return layers.decimate(self.conv(x), self.filter_taps)


class SongUNet(nnx.Module):
    """F(x, c_noise, labels) of the preconditioned denoiser.

    Args:
      resolution: height and width of the images, a multiple of 2^(levels - 1).
      image_channels: of input and output.
      label_dim: classes, 0 for unconditional.
      augment_dim: length of EDM's augmentation labels, 0 for none.
      channels, channel_mult: width, and its multiple at each level.
      blocks: residual blocks a level.
      attention_resolutions: heights at which blocks attend.
      dropout: rate inside each block, active when dropout keys are passed.
      embedding: "positional" (DDPM++) or "fourier" (NCSN++).
      noise_channels: width of that embedding over `channels`: 1 (DDPM++) or 2 (NCSN++).
      encoder: "standard" (DDPM++) or "residual" (NCSN++).
      filter_taps: resampling filter, (1, 1) (DDPM++) or (1, 3, 3, 1) (NCSN++).
    """

    def __init__(
        self,
        *,
        resolution: int,
        image_channels: int,
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
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.label_dim = label_dim
        self.image_channels = image_channels
        self.embedding_channels = channels * noise_channels
        wide = channels * CHANNELS_EMBEDDING
        init = {"rngs": rngs, "dtype": dtype}

        if embedding == "fourier":
            self.map_noise = layers.FourierEmbedding(self.embedding_channels, rngs=rngs)
        # Embeddings run in float32: a few thousand multiplications, and sigma's digits matter.
        embed = {"rngs": rngs, "dtype": jnp.float32}
        if label_dim:
            self.map_label = layers.linear(label_dim, self.embedding_channels, **embed)
        if augment_dim:
            self.map_augment = layers.linear(
                augment_dim, self.embedding_channels, use_bias=False, **embed
            )
        self.map_layer0 = layers.linear(self.embedding_channels, wide, **embed)
        self.map_layer1 = layers.linear(wide, wide, **embed)

        def block(features_in: int, features: int, **options) -> UNetBlock:
            shared = {"dropout": dropout, "filter_taps": filter_taps, **init}
            return UNetBlock(features_in, features, wide, **shared, **options)

        self.enc, self.dec = nnx.Dict(), nnx.Dict()
        width = channels
        pyramid_width = image_channels
        skips = []
        for level, mult in enumerate(channel_mult):
            size = resolution >> level
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = layers.conv(image_channels, width, 3, **init)
            else:
                self.enc[f"{size}x{size}_down"] = block(width, width, resample="down")
                if encoder == "residual":
                    self.enc[f"{size}x{size}_aux_residual"] = ResidualInput(
                        pyramid_width, width, filter_taps=filter_taps, **init
                    )
                    pyramid_width = width
            skips.append(width)
            for index in range(blocks):
                attend = size in attention_resolutions
                features = channels * mult
                self.enc[f"{size}x{size}_block{index}"] = block(
                    width, features, use_attention=attend
                )
                width = features
                skips.append(width)

        for level, mult in reversed(list(enumerate(channel_mult))):
            size = resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{size}x{size}_in0"] = block(width, width, use_attention=True)
                self.dec[f"{size}x{size}_in1"] = block(width, width)
            else:
                self.dec[f"{size}x{size}_up"] = block(width, width, resample="up")
            for index in range(blocks + 1):
                attend = index == blocks and size in attention_resolutions
                features = channels * mult
                self.dec[f"{size}x{size}_block{index}"] = block(
                    width + skips.pop(), features, use_attention=attend
                )
                width = features
        # nnx.Dict sorts its keys when a module is split and merged: keep the running order.
        self.enc_order, self.dec_order = tuple(self.enc), tuple(self.dec)
        self.out_norm = layers.GroupNorm(width, epsilon=EPSILON, dtype=dtype)
        self.out_conv = layers.conv(width, image_channels, 3, init_scale=1e-5, **init)

    def __call__(
        self,
        x: Images,
        c_noise: PerExample,
        labels: Labels,
        *,
        augment_labels: Float[Array, "b a"] | None = None,
        dropout_keys: Array | None = None,
    ) -> Images:
        embedding = self._embed(c_noise, labels, augment_labels)
        block_keys = _numbered(dropout_keys)

        x = x.astype(self.dtype)
        pyramid = x
        skips = []
        for block in (self.enc[name] for name in self.enc_order):
            if isinstance(block, ResidualInput):
                x = skips[-1] = pyramid = (x + block(pyramid)) * math.sqrt(0.5)
                continue
            is_block = isinstance(block, UNetBlock)
            x = block(x, embedding, next(block_keys)) if is_block else block(x)
            skips.append(x)
        for block in (self.dec[name] for name in self.dec_order):
            if x.shape[-1] != block.features_in:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = block(x, embedding, next(block_keys))
        return self.out_conv(jax.nn.silu(self.out_norm(x)))

    def _embed(self, c_noise, labels, augment_labels) -> Float[Array, "b e"]:
        if hasattr(self, "map_noise"):
            embedding = self.map_noise(c_noise)
        else:
            embedding = layers.positional_embedding(c_noise, self.embedding_channels)
        if self.label_dim:
            embedding += self.map_label(labels * math.sqrt(self.label_dim))
        if hasattr(self, "map_augment") and augment_labels is not None:
            embedding += self.map_augment(augment_labels)
        embedding = jax.nn.silu(self.map_layer0(embedding))
        return jax.nn.silu(self.map_layer1(embedding)).astype(self.dtype)


def _numbered(keys: Array | None):
    """One set of per-example dropout keys after another, a set for each block."""
    number = 0
    while True:
        yield None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        number += 1
