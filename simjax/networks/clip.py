"""CLIP: an image and a text as vectors of one space, whose cosine says how well they agree.

Two transformers with norms before attention and MLP: one reads patches behind a class token and
gives that token's vector, the other reads a text causally and gives the vector of its end.
porting/maps/clip.py ports the published weights; evaluation/clip calls it.
References: CLIP, arXiv:2103.00020; ViT, arXiv:2010.11929; quick GELU, arXiv:1606.08415, section 2.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool

from simjax.errors import ConfigError
from simjax.networks import layers, transformer
from simjax.networks.transformer import Tokens
from simjax.typing import Array, Float, Images, Int

EPSILON = 1e-5  # of every norm, in all published configs
NORMAL = layers.normal(0.02)  # of tables and projections (CLIP's code, of its tokens)
LOGIT_SCALE = math.log(1 / 0.07)  # at the start of training, arXiv:2103.00020, section 2.5
CHANNELS = 3


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), which the published networks have in GELU's place."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """x Phi(x), Phi the standard normal distribution function."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a transformer: channels, blocks, attention heads, MLPs' width, a key of ACTIVATIONS."""

    width: int
    depth: int
    heads: int
    hidden: int
    activation: str = "quick_gelu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision(Sizes):
    """Images are square, `resolution` pixels a side, and cut into patches of `patch` a side."""

    resolution: int
    patch: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Sizes):
    """Texts have up to `length` tokens, start and end included.

    Args:
      end: the token that ends a text; None for the largest one in it, which is the end's in the
        published vocabulary.
    """

    vocabulary: int
    length: int
    end: int | None = None


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x stays float32."""

    def __init__(self, sizes: Sizes, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, options = sizes.width, {"dtype": dtype, "rngs": rngs}
        self.heads = sizes.heads
        self.norm1 = _norm(width, **options)
        self.qkv = transformer.linear(width, 3 * width, **options)
        self.proj = transformer.linear(width, width, **options)
        self.norm2 = _norm(width, **options)
        activation = ACTIVATIONS[sizes.activation]
        self.mlp = transformer.Mlp(width, sizes.hidden, width, activation=activation, **options)

    def __call__(self, x: Tokens, readable: Bool[Array, "b 1 l l"] | None = None) -> Tokens:
        """Each token reads the keys (last axis) where `readable`; None is all."""
        parts = jnp.split(self.qkv(self.norm1(x)), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in parts)
        mixed = jax.nn.dot_product_attention(q, k, v, mask=readable).reshape(x.shape)
        x = x + self.proj(mixed).astype(jnp.float32)
        return x + self.mlp(self.norm2(x)).astype(jnp.float32)


class VisionTower(nnx.Module):
    """Images to vectors."""

    def __init__(self, sizes: Vision, projection: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.resolution = sizes.resolution
        patches = (sizes.resolution // sizes.patch) ** 2
        self.class_token = nnx.Param(NORMAL(rngs.params(), (sizes.width,)))
        self.positions = nnx.Param(NORMAL(rngs.params(), (1 + patches, sizes.width)))
        self.patches = nnx.Conv(
            CHANNELS,
            sizes.width,
            (sizes.patch, sizes.patch),
            strides=sizes.patch,
            padding="VALID",
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm_in = _norm(sizes.width, dtype=jnp.float32, rngs=rngs)
        self.blocks = _stack(sizes, dtype=dtype, rngs=rngs)
        self.norm_out = _norm(sizes.width, dtype=jnp.float32, rngs=rngs)
        self.projection = _projection(sizes.width, projection, dtype=dtype, rngs=rngs)

    def __call__(self, pixels: Images) -> Float[Array, "b c"]:
        expected = (self.resolution, self.resolution, CHANNELS)
        if pixels.shape[1:] != expected:
            raise ConfigError(
                f"images of shape {pixels.shape}, expected (b, {', '.join(map(str, expected))}); "
                "resize and crop them as evaluation/clip/score.py does."
            )
        b, width = len(pixels), self.class_token.shape[-1]
        first = jnp.broadcast_to(self.class_token[...], (b, 1, width))
        others = self.patches(pixels).reshape(b, -1, width).astype(jnp.float32)
        x = self.norm_in(jnp.concatenate([first, others], axis=1) + self.positions[...])
        x = layers.scan_stack(self.blocks, lambda block, x: block(x), x)
        return self.projection(self.norm_out(x[:, 0]))


class TextTower(nnx.Module):
    """Texts to vectors."""

    def __init__(self, sizes: Text, projection: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.length, self.end = sizes.length, sizes.end
        self.embedding = nnx.Param(NORMAL(rngs.params(), (sizes.vocabulary, sizes.width)))
        self.positions = nnx.Param(NORMAL(rngs.params(), (sizes.length, sizes.width)))
        self.blocks = _stack(sizes, dtype=dtype, rngs=rngs)
        self.norm_out = _norm(sizes.width, dtype=jnp.float32, rngs=rngs)
        self.projection = _projection(sizes.width, projection, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b c"]:
        length = tokens.shape[1]
        if length > self.length:
            raise ConfigError(
                f"texts of {length} tokens; this network reads {self.length}: cut them, as "
                "evaluation/clip_tokens.py does."
            )
        x = jnp.take(self.embedding[...], tokens, axis=0) + self.positions[:length]
        readable = jnp.tril(jnp.ones((length, length), bool)) & mask[:, None, None]
        x = layers.scan_stack(self.blocks, lambda block, x: block(x, readable), x)
        x = jnp.take_along_axis(x, self._ends(tokens, mask)[:, None, None], axis=1)[:, 0]
        return self.projection(self.norm_out(x))

    def _ends(self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Int[Array, "b"]:
        """Where each text ends: at the first end token, or the first of the largest."""
        rank = tokens if self.end is None else tokens == self.end
        return jnp.where(mask, rank, -1).argmax(axis=1)


class Clip(nnx.Module):
    """Embeddings of images and of texts, (b, projection), float32 and not normalised.

    Products run in `dtype`; norms, softmax and the sums that blocks add to in float32.

    Args:
      projection: numbers of an embedding.
      dtype: float32 is exact; scores are defined by it.
    """

    def __init__(
        self, *, vision: Vision, text: Text, projection: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.dtype = dtype
        self.vision = VisionTower(vision, projection, dtype=dtype, rngs=rngs)
        self.text = TextTower(text, projection, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(LOGIT_SCALE))  # log of what training multiplied by

    def embed_images(self, pixels: Images) -> Float[Array, "b c"]:
        """Of (b, h, w, 3) at the network's resolution, each channel normalised.

        Raises:
          ConfigError: images of another size.
        """
        with self._precision():
            return self.vision(pixels).astype(jnp.float32)

    def embed_texts(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b c"]:
        """Of texts from their start token to their end token, then padding.

        Args:
          tokens: indices below the vocabulary; others give NaN.
          mask: True at a text's tokens, both ends included; what is False is not read.

        Raises:
          ConfigError: more tokens than the network has positions.
        """
        with self._precision():
            return self.text(tokens, mask).astype(jnp.float32)

    def _precision(self):
        return jax.default_matmul_precision("highest" if self.dtype == jnp.float32 else None)


def _stack(sizes: Sizes, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    return layers.stacked(lambda rngs: Block(sizes, dtype=dtype, rngs=rngs), sizes.depth, rngs)


def _norm(width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Over channels, computed in float32, given in `dtype`."""
    return nnx.LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)


def _projection(width: int, projection: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return layers.linear(width, projection, init=NORMAL, use_bias=False, dtype=dtype, rngs=rngs)
