"""Building blocks of DiT and PixArt: patches, positions, attention, adaLN.

Tokens are (b, n, c). Matmuls run in `dtype`; norms, softmax, biases and modulation in float32.
References: DiT, arXiv:2212.09748; PixArt-alpha, arXiv:2310.00426.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool

from simjax.networks import layers
from simjax.typing import Array, Float, Images, PerExample

Tokens = Float[Array, "b n c"]
Modulation = Float[Array, "b k c"]  # shifts, scales and gates per example, float32

FREQUENCIES = 256  # channels of the sinusoidal time embedding (DiT)
EPSILON = 1e-6  # of every norm (DiT, PixArt-alpha)
XAVIER = layers.glorot()
NORMAL = layers.normal(0.02)  # init of embeddings and modulation (DiT)
ZEROS = nnx.initializers.zeros


def linear(
    features_in: int,
    features: int,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype,
    init: nnx.Initializer = XAVIER,
) -> nnx.Linear:
    """A dense layer in `dtype`, zero bias, added in float32 (see layers.Conv)."""
    return _Linear(
        features_in,
        features,
        dtype=dtype,
        promote_dtype=layers.promote_all_but_bias,
        kernel_init=init,
        rngs=rngs,
    )


class _Linear(nnx.Linear):
    def __call__(self, x: Array) -> Array:
        return super().__call__(x).astype(self.dtype)


class Mlp(nnx.Module):
    """Two dense layers with an activation in between."""

    def __init__(
        self,
        features_in: int,
        hidden: int,
        features: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        init: nnx.Initializer = XAVIER,
        activation=lambda x: jax.nn.gelu(x, approximate=True),
    ):
        self.activation = activation
        self.fc1 = linear(features_in, hidden, rngs=rngs, dtype=dtype, init=init)
        self.fc2 = linear(hidden, features, rngs=rngs, dtype=dtype, init=init)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.activation(self.fc1(x)))


class SelfAttention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.heads = heads
        self.qkv = linear(width, 3 * width, rngs=rngs, dtype=dtype)
        self.proj = linear(width, width, rngs=rngs, dtype=dtype)

    def __call__(self, x: Tokens) -> Tokens:
        q, k, v = (_in_heads(part, self.heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        return self.proj(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class CrossAttention(nnx.Module):
    """Multi-head cross-attention from image tokens to caption tokens."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.heads = heads
        self.query = linear(width, width, rngs=rngs, dtype=dtype)
        self.key_value = linear(width, 2 * width, rngs=rngs, dtype=dtype)
        self.proj = linear(width, width, rngs=rngs, dtype=dtype, init=ZEROS)

    def __call__(self, x: Tokens, caption: Tokens, mask: Bool[Array, "b l"]) -> Tokens:
        q = _in_heads(self.query(x), self.heads)
        k, v = (
            _in_heads(part, self.heads) for part in jnp.split(self.key_value(caption), 2, axis=-1)
        )
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None])
        return self.proj(mixed.reshape(x.shape))


class TimeEmbedding(nnx.Module):
    """Sinusoidal time embedding ([cos, sin]) followed by an MLP, in float32.

    Args:
      steps: frequencies are 1e-4^(i / steps), i < 128.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs, steps: int = FREQUENCIES // 2):
        self.steps = steps
        init = {"rngs": rngs, "dtype": jnp.float32, "init": NORMAL}
        self.mlp = Mlp(FREQUENCIES, width, width, activation=jax.nn.silu, **init)

    def __call__(self, c_noise: PerExample) -> Float[Array, "b c"]:
        waves = layers.positional_embedding(c_noise, FREQUENCIES, steps=self.steps)
        return self.mlp(jnp.roll(waves, FREQUENCIES // 2, axis=1))


class Patches(nnx.Module):
    """Patch embedding plus fixed sine-cosine positions."""

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        resolution: int,
        patch: int,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        interpolation: float = 1.0,
    ):
        self.side, self.interpolation = resolution // patch, interpolation
        self.proj = layers.conv(
            channels, width, patch, stride=patch, padding=0, init=XAVIER, rngs=rngs, dtype=dtype
        )

    def __call__(self, x: Images) -> Tokens:
        tokens = self.proj(x)
        tokens = tokens.reshape(x.shape[0], self.side**2, -1)
        positions = grid_embedding(self.side, tokens.shape[-1], 1 / self.interpolation)
        return (tokens + positions).astype(tokens.dtype)


def grid_embedding(side: int, width: int, spacing: float = 1.0) -> Float[np.ndarray, "n c"]:
    """2-D sine-cosine position embedding of a square grid (MAE, DiT).

    [sin x, cos x, sin y, cos y] of columns x and rows y, row-major, a quarter of the width each, at
    frequencies 1e-4^(i / quarter).

    >>> [round(value, 2) for value in grid_embedding(2, 4)[1].tolist()]  # x = 1, y = 0
    [0.84, 0.54, 0.0, 1.0]
    """
    quarter = width // 4
    phase = np.arange(side)[:, None] * spacing * 1e-4 ** (np.arange(quarter) / quarter)
    line = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)
    columns, rows = np.tile(line, (side, 1)), np.repeat(line, side, axis=0)
    return np.concatenate([columns, rows], axis=1).astype(np.float32)


def as_images(tokens: Tokens, *, patch: int) -> Images:
    """Unpatchify: (b, side^2, patch^2 * channels) to images.

    >>> as_images(jnp.zeros((1, 16, 12)), patch=2).shape
    (1, 8, 8, 3)
    """
    b, n, c = tokens.shape
    side = round(n**0.5)
    grid = tokens.reshape(b, side, side, patch, patch, c // patch**2)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(b, side * patch, side * patch, -1)


def ada_norm(x: Tokens, shift: Modulation, scale: Modulation) -> Tokens:
    """Adaptive layer norm (adaLN): layer_norm(x) * (1 + scale) + shift."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + EPSILON) * (1 + scale) + shift).astype(x.dtype)


def gated_sum(x: Tokens, gate: Modulation, branch: Tokens) -> Tokens:
    """x + gate * branch, in float32."""
    return (x.astype(jnp.float32) + gate * branch.astype(jnp.float32)).astype(x.dtype)


def _in_heads(x: Tokens, heads: int) -> Float[Array, "b n h d"]:
    return x.reshape(*x.shape[:2], heads, -1)
