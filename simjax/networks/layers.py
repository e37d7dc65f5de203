"""Building blocks of networks: convolution, resampling, group norm, dropout, embeddings, stacks.

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
MASK_LEVELS = 2**16  # of a dropout rate; our choice


Carry = TypeVar("Carry")
Gather = Callable[[Params], Params]  # parameters that are split over devices -> whole ones

# What the backward pass recomputes of each block; the rest is held in memory until then.
REMAT = {
    "none": lambda run: run,
    # All but convolutions and matrix products: norms, activations, dropout, softmax.
    "dots": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable),
    "blocks": jax.checkpoint,  # everything, from the block's input: one more forward
}


class Buffer(nnx.Variable):
    """A constant that belongs to a network: ported and checkpointed, never trained."""


def glorot(scale: float = 1.0) -> nnx.Initializer:
    """Glorot uniform with its standard deviation times `scale` (DDPM++, NCSN++)."""
    return uniform(scale**2, fan_average)


def lecun(scale: float = 1.0) -> nnx.Initializer:
    """Uniform within `scale` / sqrt(fan in) (ADM)."""
    return uniform(scale**2 / 3, fan_in)


def fan_in(shape: Sequence[int]) -> float:
    """Inputs of an output, of a kernel (..., features in, features out)."""
    return math.prod(shape[:-1])


def fan_average(shape: Sequence[int]) -> float:
    """Mean of a kernel's fan in and fan out."""
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
    """Draws parameters with NumPy, so that a fresh network compiles no program for each shape.

    The numbers are a function of key and shape alone, traced or not.

    Args:
      law: (uniform numbers in (0, 1), shape) -> parameters of that shape.
    """

    def init(key: Key, shape: Sequence[int], dtype: jnp.dtype = jnp.float32, **_) -> Array:
        def draw(words: np.ndarray) -> np.ndarray:
            raw = np.random.Philox(np.random.SeedSequence(np.asarray(words).tolist()))
            bits = raw.random_raw(math.prod(shape)) >> np.uint64(11)  # a double's precision
            return law((bits + 0.5) * 2.0**-53, shape).reshape(shape).astype(dtype)

        words = jax.random.key_data(key)
        if isinstance(words, jax.core.Tracer):
            like = jax.ShapeDtypeStruct(tuple(shape), dtype)
            return jax.pure_callback(draw, like, words, vmap_method="sequential")
        return jnp.asarray(draw(words))

    return init


class Conv(nnx.Conv):
    """A convolution in `dtype` whose bias is added in float32: its gradient is a sum over pixels.

    In bfloat16 that sum turned gradients by up to 13 degrees (tests/train/test_bfloat16.py).
    """

    def __call__(self, x: Images) -> Images:
        return super().__call__(x).astype(self.dtype)


def promote_all_but_bias(arrays: tuple[Array, Array, Array], *, dtype: jnp.dtype) -> tuple:
    """What a layer in `dtype` makes of (input, kernel, bias)."""
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
    """A convolution that keeps height and width (unless padding or stride do not), zero bias.

    Args:
      doubles: 3 x 3, of the image whose pixels have become 2 x 2 blocks.
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
    """What nnx.Conv calls. The rest is dilation and groups, which `conv` has not, and precision."""
    if strides == (1, 1):
        return convolve(x, kernel, tuple(padding), rest["precision"])
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **rest)


def _of_doubled(x: Images, kernel: Array, strides: tuple[int, int], padding, **rest) -> Images:
    """What nnx.Conv calls where the image is doubled first."""
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
    """Group normalisation over min(32, channels // 4) groups unless told, statistics in float32.

    Sums run over space first, then over each group's channels as a small matrix product on (b, c)
    arrays: XLA then reads the image once, and a small U-Net's step is a quarter faster on the CPU.
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
    """The share of elements that dropout keeps: 1 - rate, to the nearest of its 2^16 levels."""
    return round((1 - rate) * MASK_LEVELS) / MASK_LEVELS


def keep_masks(
    keys: Array | None, rate: float, shapes: Sequence[tuple[int, int, int]]
) -> list[Masks | None]:
    """What dropout keeps: for each (h, w, c) a mask, or None where nothing is drawn.

    One key an example makes the masks independent of how a batch is cut or spread over devices.
    All masks of one c come from one draw: XLA takes seconds over each, and more if it may move the
    draw into the layer that reads the mask.
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
    """Masks of at least `pixels` pixels; half a random word decides one element.

    A key a pixel leaves each draw one axis to count along, which compiles four times faster for a
    TPU than an array's worth of counters.
    """
    pixel_keys = jax.vmap(lambda key: jax.random.split(key, math.ceil(pixels / 2)))(keys)
    words = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, (channels,))))(pixel_keys)
    level = int(kept_share(rate) * MASK_LEVELS)
    halves = (words % MASK_LEVELS < level, words // MASK_LEVELS < level)
    return jnp.concatenate(jax.lax.optimization_barrier(halves), axis=1)


def dropout(x: Images, rate: float, keep: Masks | None) -> Images:
    """Drops what `keep` (from `keep_masks`, at the same rate) leaves out; None drops nothing."""
    if keep is None:
        return x
    return jnp.where(keep, x / kept_share(rate), 0).astype(x.dtype)


def is_box(taps: Sequence[float]) -> bool:
    """Whether a filter takes 2 x 2 blocks, all their pixels alike."""
    return len(taps) == 2 and taps[0] == taps[1]


def downsample(x: Images, taps: Sequence[float]) -> Images:
    """Halves height and width through the separable filter `taps` (normalised here)."""
    if is_box(taps):  # a mean of 2 x 2 blocks
        return halved(x)
    x = jnp.pad(x, [(0, 0), *[((len(taps) - 1) // 2,) * 2] * 2, (0, 0)])
    return decimate(x, taps)


def decimate(x: Images, taps: Sequence[float]) -> Images:
    """Every second output of the separable filter `taps`, without padding."""
    for axis in (1, 2):
        count = (x.shape[axis] - len(taps)) // 2 + 1
        slices = (
            jax.lax.slice_in_dim(x, k, k + 2 * count - 1, stride=2, axis=axis) * (tap / sum(taps))
            for k, tap in enumerate(taps)
        )
        x = sum(slices)
    return x


def upsample(x: Images, taps: Sequence[float]) -> Images:
    """Doubles height and width: zeros in between, then `taps` at twice their normalised weight."""
    if is_box(taps):
        return doubled(x)
    lead = len(taps) // 2  # output 2 i + phase reads the stretched rows 2 i + phase + k - lead
    for axis in (1, 2):
        phases = [
            sum(
                2 * tap / sum(taps) * _shifted(x, (phase + k - lead) // 2, axis)
                for k, tap in enumerate(reversed(taps))
                if (phase + k - lead) % 2 == 0  # the other stretched rows are zeros
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
    """[sin, cos] of c_noise times frequencies 1e-4^(i / steps), i < channels / 2 (DDPM)."""
    phase = c_noise[:, None] * 1e-4 ** (jnp.arange(channels // 2) / steps)
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1)


class FourierEmbedding(nnx.Module):
    """[sin, cos] of 2 pi c_noise times fixed random frequencies (NCSN++; scale 16 published)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, scale: float = 16.0):
        self.frequencies = Buffer(scale * jax.random.normal(rngs.params(), (channels // 2,)))

    def __call__(self, c_noise: PerExample) -> Float[Array, "b channels"]:
        phase = c_noise[:, None] * (2 * math.pi * self.frequencies[...])
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1)


def stacked(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` equal blocks as one module, whose parameters have a leading axis of blocks."""
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
    """x through each block of a stack in turn; the program holds one block, or all of them.

    Args:
      blocks: made by `stacked`.
      call: (block, x) -> x.
      gather: what a block's parameters go through where it uses them, and again where its backward
        pass does if it recomputes.
      remat: a name in REMAT.
      unroll: a loop's body compiles once, but a compiler's analysis counts it once too.
    """
    graphdef, params = nnx.split(blocks)

    def body(x: Carry, layer: Params) -> tuple[Carry, None]:
        def run(x: Carry, layer: Params) -> Carry:
            layer = layer if gather is None else gather(layer)
            return call(nnx.merge(graphdef, layer), x)

        return REMAT[remat](run)(x, layer), None

    x, _ = jax.lax.scan(body, x, nnx.to_pure_dict(params), unroll=unroll or 1)
    return x
