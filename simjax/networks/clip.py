"""CLIP: joint image and text embeddings, compared by cosine similarity.

Two pre-norm transformers. The image tower outputs the class token, which precedes the patches; the
text tower is causal and outputs the end token. porting/maps/clip.py ports the published weights;
evaluation/clip computes scores with them.
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
NORMAL = layers.normal(0.02)  # init of embeddings and projections (CLIP's code, for tokens)
LOGIT_SCALE = math.log(1 / 0.07)  # initial value, arXiv:2103.00020, section 2.5
CHANNELS = 3


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), the activation of the published networks."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """x Phi(x), with Phi the standard normal CDF (exact GELU)."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a transformer.

    Args:
      width, depth, heads: channels, blocks, attention heads.
      hidden: width of the MLPs.
      activation: a key of ACTIVATIONS.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    activation: str = "quick_gelu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision(Sizes):
    """Sizes of the image tower, for square images and patches.

    Args:
      resolution, patch: pixels per side of an image and of a patch.
    """

    resolution: int
    patch: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Sizes):
    """Sizes of the text tower.

    Args:
      length: maximum tokens per text, including start and end.
      end: the end token; None: the largest token of the text, the end token in the published
        vocabulary.
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
        """One block; `readable` masks keys (last axis), None attends to all."""
        parts = jnp.split(self.qkv(self.norm1(x)), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in parts)
        mixed = jax.nn.dot_product_attention(q, k, v, mask=readable).reshape(x.shape)
        x = x + self.proj(mixed).astype(jnp.float32)
        return x + self.mlp(self.norm2(x)).astype(jnp.float32)


class VisionTower(nnx.Module):
    """The image encoder: images to embeddings."""

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
    """The text encoder: tokens to embeddings."""

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
                f"texts of {length} tokens, expected at most {self.length}; truncate them as "
                "evaluation/clip/tokens.py does."
            )
        x = jnp.take(self.embedding[...], tokens, axis=0) + self.positions[:length]
        readable = jnp.tril(jnp.ones((length, length), bool)) & mask[:, None, None]
        x = layers.scan_stack(self.blocks, lambda block, x: block(x, readable), x)
        x = jnp.take_along_axis(x, self._ends(tokens, mask)[:, None, None], axis=1)[:, 0]
        return self.projection(self.norm_out(x))

    def _ends(self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Int[Array, "b"]:
        """Position of the first end token, or of the first largest token."""
        rank = tokens if self.end is None else tokens == self.end
        return jnp.where(mask, rank, -1).argmax(axis=1)


class Clip(nnx.Module):
    """Embeddings of images and texts, (b, projection), float32, not normalised.

    Matmuls run in `dtype`; norms, softmax and the residual stream in float32.

    Args:
      projection: dimension of the embeddings.
      dtype: float32 for published scores; bfloat16 is an approximation.
    """

    def __init__(
        self, *, vision: Vision, text: Text, projection: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.dtype = dtype
        self.vision = VisionTower(vision, projection, dtype=dtype, rngs=rngs)
        self.text = TextTower(text, projection, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(
            jnp.asarray(LOGIT_SCALE)
        )  # log of the factor on cosine similarities in training

    def embed_images(self, pixels: Images) -> Float[Array, "b c"]:
        """Embeddings of images (b, h, w, 3) with normalised channels.

        Raises:
          ConfigError: height or width differ from the network's resolution.
        """
        with self._precision():
            return self.vision(pixels).astype(jnp.float32)

    def embed_texts(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b c"]:
        """Embeddings of texts: start token, tokens, end token, padding.

        Args:
          tokens: indices below the vocabulary size; others give NaN.
          mask: True for tokens including start and end, False for padding.

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
    """Layer norm computed in float32, output in `dtype`."""
    return nnx.LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)


def _projection(width: int, projection: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return layers.linear(width, projection, init=NORMAL, use_bias=False, dtype=dtype, rngs=rngs)
