"""The latent diffusion autoencoder: latents with 1/8 of the image side.

NHWC. Block names follow the published weights (porting/maps/vae.py), which number the decoder's
levels in execution order: its level 0 has the lowest resolution.
Reference: Rombach et al., arXiv:2112.10752. Weights come as diffusers' AutoencoderKL.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from simjax.networks import layers
from simjax.typing import Array, Float, Images

Latents = Float[Array, "b h w c"]  # scaled to a standard deviation of about 1

EPSILON = 1e-6  # of group norm
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # clipping range before exp, as in the reference


class ResidualBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 1x1 convolution on x if widths differ."""

    def __init__(
        self, features_in: int, features: int, *, groups: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        norm = {"epsilon": EPSILON, "groups": groups, "dtype": dtype}
        conv = {"init": layers.lecun(), "rngs": rngs, "dtype": dtype}
        self.norm1 = layers.GroupNorm(features_in, **norm)
        self.conv1 = layers.conv(features_in, features, 3, **conv)
        self.norm2 = layers.GroupNorm(features, **norm)
        self.conv2 = layers.conv(features, features, 3, **conv)
        if features_in != features:
            self.skip = layers.conv(features_in, features, 1, **conv)

    def __call__(self, x: Images) -> Images:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (self.skip(x) if hasattr(self, "skip") else x)


class Attention(nnx.Module):
    """x + single-head self-attention over all pixels; softmax in float32."""

    def __init__(self, features: int, *, groups: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = layers.GroupNorm(features, epsilon=EPSILON, groups=groups, dtype=dtype)
        conv = {"init": layers.lecun(), "rngs": rngs, "dtype": dtype}
        self.query, self.key, self.value, self.proj = (
            layers.conv(features, features, 1, **conv) for _ in range(4)
        )

    def __call__(self, x: Images) -> Images:
        b, height, width, c = x.shape
        h = self.norm(x)
        query, key, value = (
            project(h).reshape(b, height * width, 1, c)
            for project in (self.query, self.key, self.value)
        )
        mixed = jax.nn.dot_product_attention(query, key, value)
        return x + self.proj(mixed.reshape(x.shape))


class Downsample(nnx.Module):
    """A stride-2 3x3 convolution, padded only at the bottom and right."""

    def __init__(self, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        conv = {"init": layers.lecun(), "rngs": rngs, "dtype": dtype}
        self.conv = layers.conv(features, features, 3, padding=0, stride=2, **conv)

    def __call__(self, x: Images) -> Images:
        return self.conv(jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]))


class Upsample(nnx.Module):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution."""

    def __init__(self, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = layers.conv(features, features, 3, init=layers.lecun(), rngs=rngs, dtype=dtype)

    def __call__(self, x: Images) -> Images:
        return self.conv(layers.upsample(x, (1, 1)))


RESAMPLE = {"down": Downsample, "up": Upsample}


def _levels(widths: Sequence[int], blocks: int, resample: str, *, groups: int, **init) -> dict:
    """Residual blocks and resampling of all levels, in execution order."""
    made, width = {}, widths[0]
    for level, features in enumerate(widths):
        for index in range(blocks):
            block = ResidualBlock(width, features, groups=groups, **init)
            made[f"level{level}_block{index}"] = block
            width = features
        if level < len(widths) - 1:
            made[f"level{level}_{resample}"] = RESAMPLE[resample](features, **init)
    return made


def _middle(width: int, *, groups: int, **init) -> dict:
    """Blocks at the lowest resolution, in both halves."""
    return {
        "mid_block0": ResidualBlock(width, width, groups=groups, **init),
        "mid_attention": Attention(width, groups=groups, **init),
        "mid_block1": ResidualBlock(width, width, groups=groups, **init),
    }


class Half(nnx.Module):
    """Encoder or decoder: convolution, `blocks` in order, norm, SiLU, convolution.

    Args:
      features_in, stem: widths of the first convolution.
      last, features_out: widths of the last convolution.
    """

    def __init__(
        self,
        blocks: Mapping[str, nnx.Module],
        *,
        features_in: int,
        stem: int,
        last: int,
        features_out: int,
        groups: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        conv = {"init": layers.lecun(), "rngs": rngs, "dtype": dtype}
        self.conv_in = layers.conv(features_in, stem, 3, **conv)
        self.blocks = nnx.Dict(blocks)
        self.order = tuple(blocks)  # nnx.Dict sorts its keys when a module is split and merged
        self.norm_out = layers.GroupNorm(last, epsilon=EPSILON, groups=groups, dtype=dtype)
        self.conv_out = layers.conv(last, features_out, 3, **conv)

    def __call__(self, x: Images) -> Images:
        x = self.conv_in(x)
        for name in self.order:
            x = self.blocks[name](x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Autoencoder(nnx.Module):
    """KL autoencoder: encodes to a Gaussian of latents; float32 in and out.

    Latents are in the diffusion model's units, with a standard deviation of about 1: the encoder's
    output times `scaling`. Attention needs memory quadratic in the latent pixels: 64 MB for a
    512 x 512 image, 16 times that for 1024 x 1024.

    Args:
      image_channels, latent_channels: channels of images and latents.
      channels: width per level, highest resolution first; every level but the last halves the
        image.
      blocks: residual blocks per encoder level; the decoder has one more.
      groups: of group norm.
      scaling: latent scaling factor; 0.18215 for Stable Diffusion 1 and 2.
    """

    def __init__(
        self,
        *,
        image_channels: int = 3,
        latent_channels: int = 4,
        channels: Sequence[int] = (128, 256, 512, 512),
        blocks: int = 2,
        groups: int = 32,
        scaling: float = 0.18215,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.scaling = scaling
        init = {"dtype": dtype, "rngs": rngs}
        grouped = init | {"groups": groups}
        first, last = channels[0], channels[-1]
        moments = 2 * latent_channels  # mean and log variance
        self.encoder = Half(
            _levels(channels, blocks, "down", **grouped) | _middle(last, **grouped),
            features_in=image_channels,
            stem=first,
            last=last,
            features_out=moments,
            **grouped,
        )
        self.decoder = Half(
            _middle(last, **grouped) | _levels(channels[::-1], blocks + 1, "up", **grouped),
            features_in=latent_channels,
            stem=last,
            last=first,
            features_out=image_channels,
            **grouped,
        )
        self.quant_conv = layers.conv(moments, moments, 1, init=layers.lecun(), **init)
        self.post_quant_conv = layers.conv(
            latent_channels, latent_channels, 1, init=layers.lecun(), **init
        )

    def encode(self, images: Images) -> tuple[Latents, Latents]:
        """Mean and standard deviation of the latents' diagonal Gaussian.

        Args:
          images: data units, [-1, 1]; sides must be multiples of 2^(levels - 1).
        """
        with jax.default_matmul_precision(self._precision()):
            moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        std = jnp.exp(jnp.clip(log_variance, *LOG_VARIANCE_RANGE) / 2)
        return self.scaling * mean, self.scaling * std

    def decode(self, latents: Latents) -> Images:
        """Images in data units, not clipped to [-1, 1]."""
        with jax.default_matmul_precision(self._precision()):
            images = self.decoder(self.post_quant_conv(latents / self.scaling))
        return images.astype(jnp.float32)

    def _precision(self) -> str | None:
        """Full-precision matmuls for float32: no TF32, no bf16 passes."""
        return "highest" if self.dtype == jnp.float32 else None
