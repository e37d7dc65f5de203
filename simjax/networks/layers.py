"""Layers: convolution, resampling, group norm, dropout, embeddings, scanned blocks.

NHWC. Computation runs in `dtype`; normalisation statistics, softmax and embeddings in float32.
References: EDM, arXiv:2206.00364, appendix F.2; NCSN++, arXiv:2011.13456.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import nnx
from jaxtyping import Bool

from simjax.runtime.cpu import convolve, convolve_doubled, doubled, halved
from simjax.typing import Array, Float, Images, Key, Params, PerExample

Masks = Bool[Array, "b h w c"]
MASK_LEVELS = 2**16  # resolution of the dropout rate; our choice


Carry = TypeVar("Carry")
Gather = Callable[[Params], Params]  # sharded parameters -> gathered parameters

# Rematerialisation: what the backward pass recomputes per block instead of storing it.
REMAT = {
    "none": lambda run: run,
    # All except convolutions and matmuls: norms, activations, dropout, softmax.
    "dots": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable),
    "blocks": jax.checkpoint,  # everything, from the block's input: one additional forward
}


class Buffer(nnx.Variable):
    """A constant of a network: ported and checkpointed, not trained."""


def glorot(scale: float = 1.0) -> nnx.Initializer:
    """Glorot uniform, standard deviation times `scale` (DDPM++, NCSN++)."""
    return uniform(scale**2, fan_average)


def lecun(scale: float = 1.0) -> nnx.Initializer:
    """Uniform within `scale` / sqrt(fan in) (ADM)."""
    return uniform(scale**2 / 3, fan_in)


def fan_in(shape: Sequence[int]) -> float:
    """Fan-in of a kernel (..., features in, features out).

    >>> fan_in((3, 3, 16, 32))
    144
    """
    return math.prod(shape[:-1])


def fan_average(shape: Sequence[int]) -> float:
    """Mean of fan-in and fan-out."""
    return math.prod(shape[:-2]) * (shape[-2] + shape[-1]) / 2


def uniform(variance: float, fan: Callable[[Sequence[int]], float]) -> nnx.Initializer:
    """U(-a, a) with a^2 = 3 `variance` / fan."""
    if variance == 0:
        return nnx.initializers.zeros
    return drawn(lambda u, shape: math.sqrt(3 * variance / fan(shape)) * (2 * u - 1))


def normal(std: float) -> nnx.Initializer:
    """N(0, std^2)."""
    return drawn(lambda u, shape: std * scipy.special.ndtri(u))


def drawn(law: Callable[[np.ndarray, Sequence[int]], np.ndarray]) -> nnx.Initializer:
    """An initializer that draws with NumPy, avoiding one compilation per shape.

    Values depend on key and shape only, inside or outside of jit.

    Args:
      law: (uniform numbers in (0, 1), shape) -> parameters of that shape.
    """

    def init(key: Key, shape: Sequence[int], dtype: jnp.dtype = jnp.float32, **_) -> Array:
        def draw(words: np.ndarray) -> np.ndarray:
            raw = np.random.Philox(np.random.SeedSequence(np.asarray(words).tolist()))
            bits = raw.random_raw(math.prod(shape)) >> np.uint64(11)  # 53 bits, float64 precision
            return law((bits + 0.5) * 2.0**-53, shape).reshape(shape).astype(dtype)

        words = jax.random.key_data(key)
        if isinstance(words, jax.core.Tracer):
            like = jax.ShapeDtypeStruct(tuple(shape), dtype)
            return jax.pure_callback(draw, like, words, vmap_method="sequential")
        return jnp.asarray(draw(words))

    return init


class Conv(nnx.Conv):
    """A convolution in `dtype` whose bias is added in float32.

    The bias gradient is a sum over pixels; in bfloat16 it rotated gradients by up to 13 degrees
    (tests/train/test_bfloat16.py).
    """

    def __call__(self, x: Images) -> Images:
        return super().__call__(x).astype(self.dtype)


def promote_all_but_bias(arrays: tuple[Array, Array, Array], *, dtype: jnp.dtype) -> tuple:
    """Casts input and kernel to `dtype`; returns the bias unchanged."""
    x, kernel, bias = arrays
    return x.astype(dtype), kernel.astype(dtype), bias


def conv(
    features_in: int,
    features: int,
    kernel: int,
    *,
    init: nnx.Initializer,
    rngs: nnx.Rngs,
    dtype: jnp.dtype,
    padding: int | None = None,
    stride: int = 1,
    doubles: bool = False,
) -> Conv:
    """A convolution with "same" padding by default and zero bias.

    Args:
      doubles: 3 x 3 convolution after 2 x nearest-neighbour upsampling, fused.
    """
    return Conv(
        features_in,
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2 if padding is None else padding,
        dtype=dtype,
        promote_dtype=promote_all_but_bias,
        kernel_init=init,
        conv_general_dilated=_of_doubled if doubles else _by_stride,
        rngs=rngs,
    )


def _by_stride(x: Images, kernel: Array, strides: tuple[int, int], padding, **rest) -> Images:
    """nnx.Conv's callback; `rest` holds precision, and unused dilation and groups."""
    if strides == (1, 1):
        return convolve(x, kernel, tuple(padding), rest["precision"])
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **rest)


def _of_doubled(x: Images, kernel: Array, strides: tuple[int, int], padding, **rest) -> Images:
    """nnx.Conv's callback for upsampled inputs."""
    return convolve_doubled(x, kernel, rest["precision"])


def linear(
    features_in: int,
    features: int,
    *,
    init: nnx.Initializer,
    rngs: nnx.Rngs,
    dtype: jnp.dtype,
    use_bias: bool = True,
) -> nnx.Linear:
    """A dense layer, zero bias."""
    return nnx.Linear(
        features_in, features, use_bias=use_bias, dtype=dtype, kernel_init=init, rngs=rngs
    )


class GroupNorm(nnx.Module):
    """Group norm with float32 statistics; by default min(32, channels // 4) groups.

    Sums run over space first, then over the channels of each group as a small matmul on (b, c)
    arrays. XLA then reads the image once: a small U-Net's step is a quarter faster on CPUs.
    """

    def __init__(
        self, channels: int, *, epsilon: float, dtype: jnp.dtype, groups: int | None = None
    ):
        self.groups = groups or min(32, channels // 4)
        self.epsilon = epsilon
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Images) -> Images:
        x = x.astype(jnp.float32)
        member = np.eye(self.groups, dtype=np.float32).repeat(x.shape[-1] // self.groups, axis=0)

        def group_mean(per_channel: Float[Array, "b c"]) -> Float[Array, "b c"]:
            highest = jax.lax.Precision.HIGHEST
            means = jnp.dot(per_channel, member / member.sum(0), precision=highest)
            return jnp.dot(means, member.T, precision=highest)

        mean = group_mean(x.mean((1, 2)))
        variance = group_mean(jnp.square(x).mean((1, 2))) - jnp.square(mean)
        scale = jax.lax.rsqrt(jnp.maximum(variance, 0) + self.epsilon) * self.scale[...]
        shift = self.bias[...] - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).astype(self.dtype)


def kept_share(rate: float) -> float:
    """Dropout keep probability: 1 - rate, rounded to a multiple of 2^-16.

    >>> kept_share(0.25)
    0.75
    """
    return round((1 - rate) * MASK_LEVELS) / MASK_LEVELS


def keep_masks(
    keys: Array | None, rate: float, shapes: Sequence[tuple[int, int, int]]
) -> list[Masks | None]:
    """Dropout keep masks, one per shape (h, w, c); None without dropout.

    One key per example makes the masks independent of micro-batches and sharding. All masks with
    equal c share one draw: XLA takes seconds to compile each draw, and longer if it can fuse the
    draw into the layer that uses the mask.
    """
    if keys is None or rate == 0:
        return [None] * len(shapes)
    rest = {
        channels: _keep_pixels(
            jax.vmap(jax.random.fold_in, (0, None))(keys, channels),
            rate,
            sum(h * w for h, w, c in shapes if c == channels),
            channels,
        )
        for channels in {c for _, _, c in shapes}
    }
    masks = []
    for h, w, c in shapes:
        mask, rest[c] = jnp.split(rest[c], [h * w], axis=1)
        masks.append(mask.reshape(-1, h, w, c))
    return masks


def _keep_pixels(keys: Array, rate: float, pixels: int, channels: int) -> Bool[Array, "b n c"]:
    """Masks of at least `pixels` pixels, 16 random bits per element.

    One key per pixel gives each draw a one-dimensional counter, which compiles four times faster
    for TPUs than counters for the whole array.
    """
    pixel_keys = jax.vmap(lambda key: jax.random.split(key, math.ceil(pixels / 2)))(keys)
    words = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, (channels,))))(pixel_keys)
    level = int(kept_share(rate) * MASK_LEVELS)
    halves = (words % MASK_LEVELS < level, words // MASK_LEVELS < level)
    return jnp.concatenate(jax.lax.optimization_barrier(halves), axis=1)


def dropout(x: Images, rate: float, keep: Masks | None) -> Images:
    """Inverted dropout with a mask from `keep_masks`; None: identity."""
    if keep is None:
        return x
    return jnp.where(keep, x / kept_share(rate), 0).astype(x.dtype)


def is_box(taps: Sequence[float]) -> bool:
    """Whether a filter averages 2 x 2 blocks."""
    return len(taps) == 2 and taps[0] == taps[1]


def downsample(x: Images, taps: Sequence[float]) -> Images:
    """Halves height and width with the separable filter `taps`, normalised here.

    >>> downsample(jnp.arange(4.0).reshape(1, 2, 2, 1), (1, 1)).item()
    1.5
    """
    if is_box(taps):  # a mean of 2 x 2 blocks
        return halved(x)
    x = jnp.pad(x, [(0, 0), *[((len(taps) - 1) // 2,) * 2] * 2, (0, 0)])
    return decimate(x, taps)


def decimate(x: Images, taps: Sequence[float]) -> Images:
    """The separable filter `taps` with stride 2, without padding."""
    for axis in (1, 2):
        count = (x.shape[axis] - len(taps)) // 2 + 1
        slices = (
            jax.lax.slice_in_dim(x, k, k + 2 * count - 1, stride=2, axis=axis) * (tap / sum(taps))
            for k, tap in enumerate(taps)
        )
        x = sum(slices)
    return x


def upsample(x: Images, taps: Sequence[float]) -> Images:
    """Doubles height and width: zero insertion, then the filter `taps`.

    Along each axis the filter is 2 taps / sum(taps).

    >>> upsample(jnp.ones((1, 1, 1, 1)), (1, 1)).shape
    (1, 2, 2, 1)
    """
    if is_box(taps):
        return doubled(x)
    lead = len(taps) // 2  # output 2 i + phase reads zero-inserted rows 2 i + phase + k - lead
    for axis in (1, 2):
        phases = [
            sum(
                2 * tap / sum(taps) * _shifted(x, (phase + k - lead) // 2, axis)
                for k, tap in enumerate(reversed(taps))
                if (phase + k - lead) % 2 == 0  # the other rows are zeros
            )
            for phase in (0, 1)
        ]
        shape = [size * (2 if dim == axis else 1) for dim, size in enumerate(x.shape)]
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x


def _shifted(x: Images, shift: int, axis: int) -> Images:
    """x[i + shift] along axis, zero outside."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (max(-shift, 0), max(shift, 0))
    start = max(shift, 0)
    return jax.lax.slice_in_dim(jnp.pad(x, pad), start, start + x.shape[axis], axis=axis)


def positional_embedding(
    c_noise: PerExample, channels: int, *, steps: int
) -> Float[Array, "b channels"]:
    """Sinusoidal embedding [sin, cos] of c_noise (DDPM).

    Frequencies are 1e-4^(i / steps), i < channels / 2.
    """
    phase = c_noise[:, None] * 1e-4 ** (jnp.arange(channels // 2) / steps)
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1)


class FourierEmbedding(nnx.Module):
    """Random Fourier features [sin, cos] of 2 pi c_noise (NCSN++; scale 16)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, scale: float = 16.0):
        self.frequencies = Buffer(scale * jax.random.normal(rngs.params(), (channels // 2,)))

    def __call__(self, c_noise: PerExample) -> Float[Array, "b channels"]:
        phase = c_noise[:, None] * (2 * math.pi * self.frequencies[...])
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1)


def stacked(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` equal blocks as one module with stacked parameters (leading axis)."""
    keys = jax.random.split(rngs.params(), depth)
    return nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(keys)


def scan_stack(
    blocks: nnx.Module,
    call: Callable[[nnx.Module, Carry], Carry],
    x: Carry,
    *,
    gather: Gather | None = None,
    remat: str = "none",
    unroll: bool = False,
) -> Carry:
    """Applies stacked blocks to x in turn, as a scan.

    Args:
      blocks: made by `stacked`.
      call: (block, x) -> x.
      gather: gathers the sharded parameters of a block before use, and again in the backward pass
        if the block is recomputed.
      remat: a key of REMAT.
      unroll: compile every block. A scan compiles one, but XLA's cost analysis then counts one.
    """
    graphdef, params = nnx.split(blocks)

    def body(x: Carry, layer: Params) -> tuple[Carry, None]:
        def run(x: Carry, layer: Params) -> Carry:
            layer = layer if gather is None else gather(layer)
            return call(nnx.merge(graphdef, layer), x)

        return REMAT[remat](run)(x, layer), None

    x, _ = jax.lax.scan(body, x, nnx.to_pure_dict(params), unroll=unroll or 1)
    return x
