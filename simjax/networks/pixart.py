"""PixArt-alpha: DiT with adaLN-single and cross-attention to a caption.

Reference: PixArt-alpha, arXiv:2310.00426, section 2.3 and figure 4.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from simjax.networks import layers
from simjax.networks.conditions import Prompts
from simjax.networks.dit import MLP_RATIO
from simjax.networks.network import Network
from simjax.networks.transformer import (
    NORMAL,
    ZEROS,
    CrossAttention,
    Mlp,
    Modulation,
    Patches,
    SelfAttention,
    TimeEmbedding,
    Tokens,
    ada_norm,
    as_images,
    gated_sum,
    linear,
)
from simjax.typing import Array, Caption, Float, Images, PerExample

PIXELS = 8  # image side / latent side (Stable Diffusion's autoencoder)


class PixArtBlock(nnx.Module):
    """A DiT block with cross-attention, modulated by shared vectors plus its table."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        init = {"rngs": rngs, "dtype": dtype}
        self.attention = SelfAttention(width, heads, **init)
        self.cross_attention = CrossAttention(width, heads, **init)
        self.mlp = Mlp(width, MLP_RATIO * width, width, **init)
        self.table = nnx.Param(jax.random.normal(rngs.params(), (6, width)) / width**0.5)

    def __call__(self, x: Tokens, modulation: Modulation, caption: Tokens, mask: Array) -> Tokens:
        modulation = modulation + self.table[...]
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=1)
        x = gated_sum(x, gate1, self.attention(ada_norm(x, shift1, scale1)))
        x = x + self.cross_attention(x, caption, mask)
        return gated_sum(x, gate2, self.mlp(ada_norm(x, shift2, scale2)))


class PixArtModule(nnx.Module):
    """F(x, c_noise, caption) of the preconditioned denoiser.

    c_noise is a DDPM time step.

    Args:
      resolution: height and width of the latents x: 32, 64, 128 for images of 256, 512, 1024.
      image_channels, out_channels: of input and output; they differ with learned variances.
      patch: height and width of a patch, one token each.
      width, depth, heads: of the transformer.
      caption_channels: width of the text encoder.
      caption_length: tokens of the learned null-caption embedding; 0: there is none, and captions
        cannot be dropped.
      interpolation: divides positions; 1, or 2 for images of 1024 pixels.
      size_conditioning: also condition on the image size (images of 1024 pixels).
      remat: rematerialisation policy, a key of layers.REMAT.
      unroll: unroll the scan over blocks.
    """

    def __init__(
        self,
        *,
        resolution: int,
        image_channels: int,
        out_channels: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        caption_channels: int,
        caption_length: int,
        interpolation: float,
        size_conditioning: bool,
        remat: str,
        unroll: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.patch, self.remat, self.unroll = dtype, patch, remat, unroll
        self.pixels = float(PIXELS * resolution)
        self.patches = Patches(
            image_channels,
            width,
            resolution=resolution,
            patch=patch,
            interpolation=interpolation,
            rngs=rngs,
            dtype=dtype,
        )
        self.time = TimeEmbedding(width, rngs=rngs)
        if size_conditioning:
            self.size = TimeEmbedding(width // 3, rngs=rngs)
            self.aspect_ratio = TimeEmbedding(width // 3, rngs=rngs)
        init = {"init": NORMAL, "rngs": rngs, "dtype": jnp.float32}
        self.modulation = linear(width, 6 * width, **init)
        self.caption = Mlp(caption_channels, width, width, rngs=rngs, dtype=dtype, init=NORMAL)
        if caption_length:
            no_caption = jax.random.normal(rngs.params(), (caption_length, caption_channels))
            self.no_caption = layers.Buffer(no_caption / caption_channels**0.5)
        self.blocks = layers.stacked(
            lambda rngs: PixArtBlock(width, heads, rngs=rngs, dtype=dtype), depth, rngs
        )
        self.out_table = nnx.Param(jax.random.normal(rngs.params(), (2, width)) / width**0.5)
        self.out = linear(width, patch**2 * out_channels, init=ZEROS, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x: Images,
        c_noise: PerExample,
        caption: Caption,
        *,
        augment_labels: None = None,
        dropout_keys: Array | None = None,
        gather: layers.Gather | None = None,
    ) -> Images:
        """The output F. PixArt has no dropout: dropout_keys are ignored."""
        time = self._of_time(c_noise)
        modulation = self.modulation(jax.nn.silu(time)).reshape(x.shape[0], 6, -1)
        words = self.caption(self._words(caption).astype(self.dtype))
        tokens = layers.scan_stack(
            self.blocks,
            lambda block, tokens: block(tokens, modulation, words, caption.mask),
            self.patches(x),
            gather=gather,
            remat=self.remat,
            unroll=self.unroll,
        )
        shift, scale = jnp.split(time[:, None] + self.out_table[...], 2, axis=1)
        return as_images(self.out(ada_norm(tokens, shift, scale)), patch=self.patch)

    def _of_time(self, c_noise: PerExample) -> Float[Array, "b c"]:
        time = self.time(c_noise)
        if not hasattr(self, "size"):
            return time
        size = self.size(jnp.full_like(c_noise, self.pixels))  # height and width
        ratio = self.aspect_ratio(jnp.ones_like(c_noise))
        return time + jnp.concatenate([size, size, ratio], axis=1)

    def _words(self, caption: Caption) -> Tokens:
        """Caption features; dropped captions become the null-caption embedding."""
        if not hasattr(self, "no_caption"):
            return caption.embedding
        length = caption.embedding.shape[1]
        dropped = caption.dropped[:, None, None]
        return jnp.where(dropped, self.no_caption[...][:length], caption.embedding)


@dataclasses.dataclass
class PixArt(Network):
    """Options of PixArt-alpha; defaults are PixArt-XL-2-512x512's."""

    module: ClassVar = PixArtModule
    is_stack: ClassVar = True
    of_latents: ClassVar = True
    resolution: int = 64  # of latents: 32, 64, 128 for images of 256, 512, 1024
    image_channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    caption_channels: int = 4096  # T5-XXL
    caption_length: int = 120  # tokens of the learned null-caption embedding; 0: none
    interpolation: float = 1.0  # divides positions; 2 for images of 1024
    size_conditioning: bool = False  # True for images of 1024

    @property
    def condition(self) -> Prompts:
        """Captions: T5 features of prompts."""
        return Prompts(self.caption_channels, self.caption_length)
