"""Inception-v3 for the Frechet Inception distance and the Inception Score.

TensorFlow's 2015-12-05 graph, as in pytorch-fid. It differs from the paper: average pooling
excludes the padding, Mixed_7c uses max pooling, fc has 1008 classes. Layer names follow the
published weights, which porting/maps/inception.py ports.
References: Szegedy et al., arXiv:1512.00567; Heusel et al., arXiv:1706.08500 (the distance).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax.errors import ConfigError
from simjax.networks.layers import Buffer
from simjax.typing import Array, Float, Images, Params

SIZE = 299  # input height and width
CLASSES = 1008
EPSILON = 1e-3  # of batch norm


@dataclasses.dataclass(frozen=True)
class Features:
    """Provenance of features; metrics are comparable only if it is equal."""

    weights_sha256: str
    dtype: str
    network: str = "inception-2015-12-05"
    resize: str = f"bilinear to {SIZE}x{SIZE}, half-pixel centres, no antialiasing, float32"


class Outputs(NamedTuple):
    """Network outputs for n images.

    The Frechet distance uses features, the Inception Score logits_without_bias.
    """

    features: Float[Array, "n 2048"]
    logits: Float[Array, "n 1008"]
    logits_without_bias: Float[Array, "n 1008"]


class Conv(NamedTuple):
    """A convolution, batch norm and ReLU."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Fork(NamedTuple):
    """Parallel branches, concatenated on channels; `prefix` precedes their layer names."""

    prefix: str
    branches: tuple["Chain", ...]


Pool = Callable[[Images], Images]
Chain = tuple[Conv | Fork | Pool, ...]

SQUARE = (3, 3)
HALVING = (SQUARE, 2, "VALID")  # kernel, stride and padding of a Conv
AVERAGE = partial(nnx.avg_pool, window_shape=SQUARE, padding="SAME", count_include_pad=False)
MAXIMUM = partial(nnx.max_pool, window_shape=SQUARE, padding="SAME")
HALVED = partial(nnx.max_pool, window_shape=SQUARE, strides=(2, 2), padding="VALID")


def _tower(name: str, *convs: tuple) -> Chain:
    """Convolutions NAME_1, NAME_2, ..., given by the fields of Conv after name."""
    return tuple(Conv(f"{name}_{number}", *conv) for number, conv in enumerate(convs, 1))


def _mixed_35(pooled: int) -> tuple[Chain, ...]:
    """35x35 in and out: 224 + `pooled` channels."""
    return (
        (Conv("branch1x1", 64),),
        _tower("branch5x5", (48,), (64, (5, 5))),
        _tower("branch3x3dbl", (64,), (96, SQUARE), (96, SQUARE)),
        (AVERAGE, Conv("branch_pool", pooled)),
    )


def _mixed_17(width: int) -> tuple[Chain, ...]:
    """17x17 in and out: 768 channels; factorised 7x7 convolutions of `width`."""
    row, column = (1, 7), (7, 1)
    long = (width,), (width, column), (width, row), (width, column), (192, row)
    return (
        (Conv("branch1x1", 192),),
        _tower("branch7x7", (width,), (width, row), (192, column)),
        _tower("branch7x7dbl", *long),
        (AVERAGE, Conv("branch_pool", 192)),
    )


def _mixed_8(pool: Pool) -> tuple[Chain, ...]:
    """8x8 in and out: 2048 channels."""
    row_and_column = (Conv("a", 384, (1, 3)),), (Conv("b", 384, (3, 1)),)
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), Fork("branch3x3_2", row_and_column)),
        (*_tower("branch3x3dbl", (448,), (384, SQUARE)), Fork("branch3x3dbl_3", row_and_column)),
        (pool, Conv("branch_pool", 192)),
    )


REDUCE_35: tuple[Chain, ...] = (  # 35x35 to 17x17
    (Conv("branch3x3", 384, *HALVING),),
    _tower("branch3x3dbl", (64,), (96, SQUARE), (96, *HALVING)),
    (HALVED,),
)
REDUCE_17: tuple[Chain, ...] = (  # 17x17 to 8x8
    _tower("branch3x3", (192,), (320, *HALVING)),
    _tower("branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, *HALVING)),
    (HALVED,),
)
STAGES: tuple[Chain, ...] = (  # 64, 192, 768 and 2048 output channels
    (
        Conv("Conv2d_1a_3x3", 32, *HALVING),
        Conv("Conv2d_2a_3x3", 32, SQUARE, padding="VALID"),
        Conv("Conv2d_2b_3x3", 64, SQUARE),
        HALVED,
    ),
    (Conv("Conv2d_3b_1x1", 80), Conv("Conv2d_4a_3x3", 192, SQUARE, padding="VALID"), HALVED),
    (
        Fork("Mixed_5b.", _mixed_35(pooled=32)),
        Fork("Mixed_5c.", _mixed_35(pooled=64)),
        Fork("Mixed_5d.", _mixed_35(pooled=64)),
        Fork("Mixed_6a.", REDUCE_35),
        Fork("Mixed_6b.", _mixed_17(width=128)),
        Fork("Mixed_6c.", _mixed_17(width=160)),
        Fork("Mixed_6d.", _mixed_17(width=160)),
        Fork("Mixed_6e.", _mixed_17(width=192)),
    ),
    (
        Fork("Mixed_7a.", REDUCE_17),
        Fork("Mixed_7b.", _mixed_8(pool=AVERAGE)),
        Fork("Mixed_7c.", _mixed_8(pool=MAXIMUM)),
    ),
)


class ConvBatchNorm(nnx.Module):
    """Convolution, batch norm with fixed statistics, ReLU.

    relu(scale (kernel * x - mean) / sqrt(variance + epsilon) + bias)
    """

    def __init__(self, features_in: int, conv: Conv, dtype: jnp.dtype):
        self.stride, self.padding, self.dtype = conv.stride, conv.padding, dtype
        self.kernel = nnx.Param(jnp.zeros((*conv.kernel, features_in, conv.features)))
        self.scale, self.bias = (nnx.Param(jnp.zeros(conv.features)) for _ in range(2))
        self.mean, self.variance = (Buffer(jnp.zeros(conv.features)) for _ in range(2))

    def __call__(self, x: Images) -> Images:
        scale = self.scale[...] * jax.lax.rsqrt(self.variance[...] + EPSILON)
        shift = self.bias[...] - self.mean[...] * scale
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            (self.kernel[...] * scale).astype(self.dtype),
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.relu(x + shift.astype(self.dtype))


class InceptionV3(nnx.Module):
    """Inception-v3 with zero weights, to be filled by porting.

    float32 is exact, bfloat16 a faster approximation.
    """

    def __init__(self, dtype: jnp.dtype = jnp.float32):
        self.dtype = dtype
        self.convs = nnx.Dict()
        width = 3
        for chain in STAGES:
            width = self._add(chain, width)
        self.fc = nnx.Linear(width, CLASSES, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))

    def __call__(self, images: Array) -> Outputs:
        """Features and logits in float32.

        Args:
          images: (n, h, w, 1 or 3), values 0 to 255.
        """
        features = self.stages(images)[-1].astype(jnp.float32).mean((1, 2))
        with jax.default_matmul_precision("highest"):
            logits = self.fc(features)
        return Outputs(features, logits, logits - self.fc.bias[...])

    def stages(self, images: Array) -> list[Images]:
        """Activations after each of STAGES; grey images are repeated to 3 channels."""
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ConfigError(
                f"images of shape {images.shape}; expected (n, h, w, 3), or (n, h, w, 1)."
            )
        exact = "highest" if self.dtype == jnp.float32 else None
        x = 2 * (resized(images.astype(jnp.float32), SIZE) / 255) - 1
        x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
        with jax.default_matmul_precision(exact):
            return [x := self._run(chain, x) for chain in STAGES]

    def _add(self, chain: Chain, width: int, prefix: str = "") -> int:
        """Creates the convolutions of a chain; input width in, output width out."""
        for part in chain:
            if isinstance(part, Conv):
                self.convs[prefix + part.name] = ConvBatchNorm(width, part, self.dtype)
                width = part.features
            elif isinstance(part, Fork):
                inside = prefix + part.prefix
                width = sum(self._add(branch, width, inside) for branch in part.branches)
        return width

    def _run(self, chain: Chain, x: Images, prefix: str = "") -> Images:
        for part in chain:
            if isinstance(part, Conv):
                x = self.convs[prefix + part.name](x)
            elif isinstance(part, Fork):
                inside = prefix + part.prefix
                x = jnp.concatenate([self._run(branch, x, inside) for branch in part.branches], -1)
            else:
                x = part(x)
        return x


def weights_like() -> Params:
    """Shapes and dtypes of the network's weights, a nested dict."""
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(InceptionV3)))


def extractor(dtype: jnp.dtype = jnp.float32) -> Callable[[Params, Array], Outputs]:
    """InceptionV3.__call__ as a pure, jittable function of weights and images."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: InceptionV3(dtype)))
    return lambda weights, images: nnx.merge(graphdef, weights)(images)


def resized(x: Images, size: int) -> Images:
    """Bilinear resize of height and width, as two matmuls."""
    rows, columns = (bilinear_matrix(length, size) for length in x.shape[1:3])
    highest = jax.lax.Precision.HIGHEST  # bf16 matmuls would lose bits of 8-bit images
    x = jnp.einsum("ih,bhwc->biwc", rows, x, precision=highest)
    return jnp.einsum("jw,biwc->bijc", columns, x, precision=highest)


def bilinear_matrix(length: int, size: int) -> Float[np.ndarray, "size length"]:
    """Interpolation matrix with align_corners=False, without antialiasing.

    Row i interpolates at position (i + 1/2) length / size - 1/2; edge pixels repeat. Without
    antialiasing, downsampling skips pixels.

    >>> bilinear_matrix(4, 2).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    position = (np.arange(size) + 0.5) * length / size - 0.5
    position = np.clip(position, 0, length - 1)
    distance = np.abs(position[:, None] - np.arange(length))
    return np.maximum(1 - distance, 0).astype(np.float32)
