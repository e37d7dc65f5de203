"""Affine resampling of images without aliasing, as in EDM's augmentation.

An image is padded by reflection, upsampled by 2 with the sym6 wavelet's low-pass filter, sampled
bilinearly at transformed positions and downsampled by 2 with the same filter; the identity map
reproduces the image. References: StyleGAN2-ADA, arXiv:2006.06676, appendix B.1; EDM,
arXiv:2206.00364, appendix F.2. Called from simjax/data/augment.py.
"""

import jax
import jax.numpy as jnp
import numpy as np

from simjax.typing import Array, Float, typed

# Orthonormal low-pass filter sym6: Daubechies, Ten Lectures on Wavelets (1992), symlet of order 6.
SYM6 = np.array(
    [
        0.015404109327027373,
        0.0034907120842174702,
        -0.11799011114819057,
        -0.048311742585633,
        0.4910559419267466,
        0.787641141030194,
        0.3379294217276218,
        -0.07263752278646252,
        -0.021060292512300564,
        0.04472490177066578,
        0.0017677118642428036,
        -0.007800708325034148,
    ]
)
LEAD = 5  # taps before the one at the pixel: upsampled position 2 i is pixel i


@typed
def affine(image: Float[Array, "n n c"], inverse: Float[Array, "3 3"]) -> Float[Array, "n n c"]:
    """Resamples an image: output(x, y) = image(inverse @ (x, y, 1)).

    Positions are in image widths from the centre, x to the right, y down. Reflection covers n - 1
    pixels beyond each edge, EDM's largest padding; farther out are zeros.

    The upsampled image is not materialised: every sample is a sum over the image's pixels, weighted
    by row and column, as matmuls. Gathers would take longer on a TPU than the networks.
    """
    size, channels = len(image), image.shape[-1]
    up, down = upsampling(size).astype(image.dtype), downsampling(size).astype(image.dtype)
    position = jnp.arange(-LEAD, 2 * size + LEAD, dtype=image.dtype) - (size - 1)  # from the centre
    x, y = position, position[:, None]
    (a, b, c), (d, e, f), _ = inverse
    x, y = a * x + b * y + 2 * size * c, d * x + e * y + 2 * size * f
    columns = bilinear(x.ravel(), len(up), origin=3 * size - 2)
    rows = bilinear(y.ravel(), len(up), origin=3 * size - 2)
    with jax.default_matmul_precision("highest"):
        of_rows = jnp.einsum("pj,ijc->pci", columns @ up, image)
        samples = (of_rows * (rows @ up)[:, None]).sum(-1).reshape(*x.shape, channels)
        return jnp.einsum("iy,yxc,jx->ijc", down, samples, down)


@typed
def bilinear(position: Float[Array, "p"], size: int, *, origin: int) -> Float[Array, "p n"]:
    """Bilinear weights of `size` pixels at positions relative to pixel `origin`.

    Outside, the border pixel is repeated. The integer origin is added after rounding down, which
    keeps the precision of small positions.
    """
    low = jnp.clip(jnp.floor(position), -origin, size - 2 - origin)
    share = jnp.clip(position - low, 0, 1)[:, None]  # weight of the next pixel
    distance = jnp.arange(size) - (low.astype(jnp.int32) + origin)[:, None]
    return jnp.where(distance == 0, 1 - share, 0) + jnp.where(distance == 1, share, 0)


def upsampling(size: int) -> np.ndarray:
    """Matrix (6 size - 2, size) that reflects, inserts zeros and filters.

    Its first and last row are zero. Row r is at upsampled position r - 2 size + 1, pixel i at 2 i.
    """
    reflected = np.pad(np.eye(size), ((size - 1, size - 1), (0, 0)), mode="reflect")
    stretched = np.zeros((2 * len(reflected), size))
    stretched[::2] = reflected
    filtered = np.apply_along_axis(np.convolve, 0, stretched, np.sqrt(2) * SYM6)
    return np.pad(filtered[LEAD : LEAD - len(SYM6) + 1], ((1, 1), (0, 0)))


def downsampling(size: int) -> np.ndarray:
    """Matrix (size, 2 size + 10) that filters and downsamples.

    It is the transpose of upsampling without reflection, at half the gain.
    """
    rows = [np.pad(SYM6, (2 * i, 2 * (size - 1 - i))) for i in range(size)]
    return np.stack(rows) / np.sqrt(2)
