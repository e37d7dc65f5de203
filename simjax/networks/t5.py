"""The T5 v1.1 text encoder, for networks conditioned on prompts.

RMS norms, no biases, unscaled attention logits, gated GELU; relative position biases from one table
shared by all blocks. Layer names follow the published weights, which porting/maps/t5.py ports.
References: T5, arXiv:1910.10683; gated GELU, arXiv:2002.05202.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool

from simjax.networks import layers
from simjax.typing import Array, Float, Int

EPSILON = 1e-6  # of every norm, in all published configs

Features = Float[Array, "b l c"]
Bias = Float[Array, "heads l l"]


class RMSNorm(nnx.Module):
    """RMS norm over channels, computed in float32, output in `dtype`.

    scale x / sqrt(mean(x^2) + epsilon)
    """

    def __init__(self, channels: int, *, dtype: jnp.dtype, param_dtype: jnp.dtype):
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))

    def __call__(self, x: Features) -> Features:
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)
        return (x * self.scale[...].astype(jnp.float32)).astype(self.dtype)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); x stays float32."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        head_width: int,
        hidden: int,
        dtype: jnp.dtype,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.heads = heads

        def linear(features_in: int, features: int, gain: float = 1.0) -> nnx.Linear:
            return nnx.Linear(
                features_in,
                features,
                use_bias=False,
                dtype=dtype,
                param_dtype=param_dtype,
                kernel_init=nnx.initializers.variance_scaling(gain, "fan_in", "normal"),
                rngs=rngs,
            )

        inner = heads * head_width
        self.norm0 = RMSNorm(width, dtype=dtype, param_dtype=param_dtype)
        self.q = linear(
            width, inner, 1 / head_width
        )  # replaces the factor 1 / sqrt(head width) of attention
        self.k = linear(width, inner)
        self.v = linear(width, inner)
        self.o = linear(inner, width)
        self.norm1 = RMSNorm(width, dtype=dtype, param_dtype=param_dtype)
        self.wi_0 = linear(width, hidden)
        self.wi_1 = linear(width, hidden)
        self.wo = linear(hidden, width)

    def __call__(self, x: Features, bias: Bias, mask: Bool[Array, "b l"]) -> Features:
        h = self.norm0(x)
        q, k, v = (f(h).reshape(*h.shape[:2], self.heads, -1) for f in (self.q, self.k, self.v))
        mixed = jax.nn.dot_product_attention(  # logits and softmax in float32
            q, k, v, bias=bias[None], mask=mask[:, None, None, :], scale=1.0
        )
        x = x + self.o(mixed.reshape(*h.shape[:2], -1)).astype(jnp.float32)
        h = self.norm1(x)
        h = jax.nn.gelu(self.wi_0(h), approximate=True) * self.wi_1(h)
        return x + self.wo(h).astype(jnp.float32)


class T5Encoder(nnx.Module):
    """Token features, (b, l) to (b, l, width), in float32.

    The residual stream is float32 for both dtypes: in trained encoders some channels reach tens of
    thousands, where bfloat16's 8 bits lose a block's output. transformers does the same for float16
    (a float32 `wo`) but not for bfloat16, where it is less accurate. Matmuls run in `dtype`;
    float16 overflows and is not supported.

    Args:
      vocabulary: number of tokens.
      width, depth: channels of the residual stream, number of blocks.
      heads, head_width: of attention; their product may differ from `width`.
      hidden: width of the gated layer.
      buckets, max_distance: of relative positions, see `bucket`.
      remat: rematerialisation policy, a key of layers.REMAT.
      unroll: unroll the scan over blocks.
      dtype: of matmuls, float32 or bfloat16.
      param_dtype: of the parameters; bfloat16 halves XXL's 19 GB.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int,
        depth: int,
        heads: int,
        head_width: int,
        hidden: int,
        buckets: int = 32,
        max_distance: int = 128,
        remat: str = "none",
        unroll: bool = False,
        dtype: jnp.dtype,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.remat, self.unroll = remat, unroll
        self.buckets, self.max_distance = buckets, max_distance

        def table(rows: int, columns: int, std: float) -> nnx.Param:
            init = nnx.initializers.normal(std)
            return nnx.Param(init(rngs.params(), (rows, columns), param_dtype))

        def block(rngs: nnx.Rngs) -> Block:
            return Block(
                width=width,
                heads=heads,
                head_width=head_width,
                hidden=hidden,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.embedding = table(vocabulary, width, 1.0)
        self.position_bias = table(buckets, heads, 1 / math.sqrt(width))
        self.blocks = layers.stacked(block, depth, rngs)
        self.norm = RMSNorm(width, dtype=jnp.float32, param_dtype=param_dtype)

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        *,
        gather: layers.Gather | None = None,
    ) -> Features:
        """Features of all tokens; those of padding are meaningless.

        Args:
          tokens: indices below `vocabulary`; others give NaN.
          mask: True for the prompt's tokens including the end token, False for padding.
          gather: gathers a block's parameters, see layers.scan_stack.
        """
        x = jnp.take(self.embedding[...], tokens, axis=0).astype(jnp.float32)
        bias = self._bias(tokens.shape[1])
        exact = "highest" if self.dtype == jnp.float32 else None
        with jax.default_matmul_precision(exact):
            x = layers.scan_stack(
                self.blocks,
                lambda block, x: block(x, bias, mask),
                x,
                gather=gather,
                remat=self.remat,
                unroll=self.unroll,
            )
        return self.norm(x)

    def _bias(self, length: int) -> Bias:
        """Relative position bias of the attention logits, float32."""
        near = np.array([bucket(n, self.buckets, self.max_distance) for n in range(length)])
        offset = np.arange(length)[None, :] - np.arange(length)[:, None]
        rows = near[abs(offset)] + np.where(offset > 0, self.buckets // 2, 0)
        bias = jnp.take(self.position_bias[...], rows, axis=0)
        return bias.astype(jnp.float32).transpose(2, 0, 1)


def bucket(distance: int, buckets: int, max_distance: int) -> int:
    """Row of the position-bias table for a distance (T5, section 2.1).

    Half of the rows are for keys at or before the query (computed here), half for keys after it.
    Within a half, the first e = buckets / 4 rows hold one distance each; the other m rows cover
    geometrically growing ranges from e to max_distance, the last row everything beyond:

        bucket = e + floor(m log(distance / e) / log(max_distance / e)),  at most e + m - 1

    Computed with integers, so that powers of two are not subject to rounding.

    >>> [bucket(distance, 32, 128) for distance in (0, 7, 8, 12, 127, 500)]
    [0, 7, 8, 9, 15, 15]
    """
    exact = buckets // 2 // 2
    rest = buckets // 2 - exact
    if distance < exact:
        return distance
    steps = range(1, rest)
    reached = (distance**rest * exact**k >= max_distance**k * exact**rest for k in steps)
    return exact + sum(reached)


@dataclasses.dataclass
class T5:
    """Sizes of a T5 v1.1 encoder; defaults are T5-XXL, used by PixArt-alpha."""

    vocabulary: int = 32128
    width: int = 4096
    depth: int = 24
    heads: int = 64
    head_width: int = 64
    hidden: int = 10240
    buckets: int = 32
    max_distance: int = 128
