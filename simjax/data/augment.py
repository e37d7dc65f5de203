"""EDM's augmentation pipeline: random transformations, and labels to condition on.

Each transformation is applied to an image with probability multiplier * p, in a fixed order: flips
and moves by whole pixels; then one affine map (simjax/data/warp.py); then one matrix on the
channels. The labels of a transformation that was not applied are zero.

References: EDM, arXiv:2206.00364, appendix F.2; StyleGAN2-ADA, arXiv:2006.06676, appendix B.
For losses that train a denoiser on real images; no gradient with respect to the images.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simjax.data import warp
from simjax.errors import ConfigError
from simjax.typing import Array, Float, Images, Key, Labels, Scalar, typed

# StyleGAN2-ADA, appendix B; EDM, appendix F.2.
SHIFT_MAX = 0.125  # image widths, whole pixels
SHIFT_STD = 0.125  # image widths, fractional
SCALE_STD = 0.2  # octaves
STRETCH_STD = 0.2  # octaves
OBLIQUE_PROBABILITY = 0.5  # of stretching along a random direction instead of along x
BRIGHTNESS_STD = 0.2  # data units
CONTRAST_STD = 0.5  # octaves
SATURATION_STD = 1.0  # octaves
LUMA = np.array([1, 1, 1]) / math.sqrt(3)  # direction of grey in the space of colours

Square = Float[Array, "n n c"]
Affine = Float[Array, "3 3"]  # maps output to input positions, in image widths from the centre
Colour = Float[Array, "4 4"]  # on (red, green, blue, 1)
Draws = dict[str, Float[Array, "_"]]  # per transformation: unit random numbers, uniform gate
Scalars = list[Scalar]


class Transformation(NamedTuple):
    """Laws of unit random numbers and their effect (PIXELS, GEOMETRY, COLOURS)."""

    laws: tuple[Callable[[Scalar], Scalar], ...]
    effect: Callable[..., tuple[Array, Scalars]]


Group = dict[str, Transformation]


@dataclasses.dataclass(frozen=True)
class Pipe:
    """Multiplier of each transformation's probability; 0 removes it and its labels."""

    xflip: float = 0.0
    yflip: float = 0.0
    rotate_int: float = 0.0
    translate_int: float = 0.0
    scale: float = 0.0
    rotate_frac: float = 0.0
    aniso: float = 0.0
    translate_frac: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    lumaflip: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0


# EDM's and SiD's setting: 9 labels, p = 0.12 on CIFAR-10; xflip mirrors half of all images.
EDM = Pipe(xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1)


@typed
def augment(images: Images, keys: Key, *, p: float, pipe: Pipe = EDM) -> tuple[Images, Labels]:
    """Transformed images and their labels (b, k); EDM's k = 9.

    >>> images, keys = jnp.ones((2, 8, 8, 3)), jax.random.split(jax.random.key(0), 2)
    >>> augmented, labels = jax.eval_shape(lambda *args: augment(*args, p=0.12), images, keys)
    >>> augmented.shape, labels.shape
    ((2, 8, 8, 3), (2, 9))

    Args:
      images: square, data units.
      keys: (b,), one per example: results do not depend on batch splits or sharding.
      p: probability of a transformation whose multiplier is 1.
    """
    return jax.vmap(lambda image, key: apply(image, draw(key, pipe), p=p, pipe=pipe))(images, keys)


def draw(key: Key, pipe: Pipe) -> Draws:
    """One image's random numbers per transformation, independent of which are enabled."""
    uniform = jax.random.uniform(key, (len(TRANSFORMATIONS), 4), minval=1e-7)  # 0: -inf in _normal
    return {
        name: jnp.stack([*(law(u) for law, u in zip(laws, row, strict=False)), row[-1]])
        for row, (name, (laws, _)) in zip(uniform, TRANSFORMATIONS.items(), strict=True)
        if getattr(pipe, name)
    }


@typed
def apply(image: Square, draws: Draws, *, p: float, pipe: Pipe) -> tuple[Square, Float[Array, "k"]]:
    """One image transformed with given random numbers, and its labels.

    Raises:
      ConfigError: a colour transformation of images with neither 1 nor 3 channels.
    """
    units = {  # zero, the identity, unless the gate is open
        name: jnp.where(numbers[-1] < getattr(pipe, name) * p, numbers[:-1], 0)
        for name, numbers in draws.items()
    }
    labels = []
    for name, (_, effect) in PIXELS.items():
        if name in units:
            image, added = effect(image, *units[name])
            labels += added
    with jax.default_matmul_precision("highest"):
        maps, map_labels = _matrices(GEOMETRY, units)
        colours, colour_labels = _matrices(COLOURS, units)
        if maps:  # from output to input: the last transformation is inverted first
            image = _resample(image, functools.reduce(jnp.matmul, maps))
        if colours:
            image = _recolour(image, functools.reduce(jnp.matmul, reversed(colours)))
    return image, jnp.array(labels + map_labels + colour_labels)


def _matrices(group: Group, units: Draws) -> tuple[list[Array], Scalars]:
    """The matrices of a group's transformations, in order, and their labels."""
    effects = [group[name].effect(*units[name]) for name in group if name in units]
    return [matrix for matrix, _ in effects], [one for _, labels in effects for one in labels]


def _resample(image: Square, inverse: Affine) -> Square:
    """Resamples an image; bit-exact where the map is the identity."""
    return jnp.where(jnp.all(inverse == jnp.eye(3)), image, warp.affine(image, inverse))


def _recolour(image: Square, matrix: Colour) -> Square:
    """Applies the matrix to (colour, 1); grey is three equal channels."""
    channels = image.shape[-1]
    if channels not in (1, 3):
        raise ConfigError(
            "augmentation: brightness, contrast, lumaflip, hue and saturation need images of 1 or "
            f"3 channels, these have {channels}; set the five multipliers to 0."
        )
    colours = jnp.broadcast_to(image, (*image.shape[:-1], 3))
    return (colours @ matrix[:3, :3].T + matrix[:3, 3])[..., :channels]


# Moves of whole pixels: (image, units) -> (image, labels).


def _xflip(image: Square, flip: Scalar) -> tuple[Square, Scalars]:
    return jnp.where(flip > 0, image[:, ::-1], image), [flip]


def _yflip(image: Square, flip: Scalar) -> tuple[Square, Scalars]:
    return jnp.where(flip > 0, image[::-1], image), [flip]


def _rotate_int(image: Square, turns: Scalar) -> tuple[Square, Scalars]:
    """Rotates by quarter turns; labels are their Gray code's two bits."""
    turned = [jnp.rot90(image, k) for k in range(4)]
    bits = [(turns == 1) | (turns == 2), (turns == 2) | (turns == 3)]
    return jax.lax.select_n(turns.astype(jnp.int32), *turned), [bit.astype(float) for bit in bits]


def _translate_int(image: Square, x: Scalar, y: Scalar) -> tuple[Square, Scalars]:
    """Shifts right and up by whole pixels; reflection fills the gap."""
    size = len(image)
    furthest = size * SHIFT_MAX

    def source(unit):
        index = jnp.abs(jnp.arange(size) - jnp.round(unit * furthest).astype(jnp.int32))
        return jnp.minimum(index, 2 * (size - 1) - index)

    image = image[source(-y)][:, source(x)]
    return image, [jnp.round(unit * furthest) / furthest for unit in (x, y)]


# Affine maps: units -> (matrix from output to input, labels).


def _scale(octaves: Scalar) -> tuple[Affine, Scalars]:
    return _magnify(SCALE_STD * octaves, SCALE_STD * octaves), [octaves]


def _rotate_frac(half_turns: Scalar) -> tuple[Affine, Scalars]:
    return _rotate(math.pi * half_turns), _circle(half_turns)


def _aniso(octaves: Scalar, half_turns: Scalar, axis: Scalar) -> tuple[Affine, Scalars]:
    """Stretches along a direction and shrinks across it by the same factor."""
    oblique = (axis + 1) / 2 < OBLIQUE_PROBABILITY
    angle = jnp.where(oblique, math.pi * half_turns, 0)
    stretch = _magnify(STRETCH_STD * octaves, -STRETCH_STD * octaves)
    labels = [octaves * jnp.cos(angle), octaves * jnp.sin(angle)]
    return _rotate(-angle) @ stretch @ _rotate(angle), labels


def _translate_frac(x: Scalar, y: Scalar) -> tuple[Affine, Scalars]:
    return jnp.array([[1, 0, -SHIFT_STD * x], [0, 1, -SHIFT_STD * y], [0, 0, 1]]), [x, y]


def _magnify(x_octaves: Scalar, y_octaves: Scalar) -> Affine:
    return jnp.diag(jnp.exp2(-jnp.array([x_octaves, y_octaves, 0])))


def _rotate(angle: Scalar) -> Affine:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _circle(half_turns: Scalar) -> Scalars:
    """Labels (cos - 1, sin) of an angle, continuous at full turns."""
    angle = math.pi * half_turns
    return [jnp.cos(angle) - 1, jnp.sin(angle)]


# Changes of colour: units -> (matrix, labels).


def _colour(linear: Float[Array, "3 3"], shift: Scalar | float = 0.0) -> Colour:
    return jnp.eye(4).at[:3, :3].set(linear).at[:3, 3].set(shift)


def _brightness(shift: Scalar) -> tuple[Colour, Scalars]:
    return _colour(jnp.eye(3), BRIGHTNESS_STD * shift), [shift]


def _contrast(octaves: Scalar) -> tuple[Colour, Scalars]:
    return _colour(jnp.eye(3) * jnp.exp2(CONTRAST_STD * octaves)), [octaves]


def _lumaflip(flip: Scalar) -> tuple[Colour, Scalars]:
    return _colour(jnp.eye(3) - 2 * flip * np.outer(LUMA, LUMA)), [flip]


def _hue(half_turns: Scalar) -> tuple[Colour, Scalars]:
    """Rotates colours about the grey axis (Rodrigues' formula)."""
    angle = math.pi * half_turns
    grey, cross = np.outer(LUMA, LUMA), np.cross(np.eye(3), LUMA)
    rotation = grey + jnp.cos(angle) * (np.eye(3) - grey) + jnp.sin(angle) * cross
    return _colour(rotation), _circle(half_turns)


def _saturation(octaves: Scalar) -> tuple[Colour, Scalars]:
    grey = np.outer(LUMA, LUMA)
    return _colour(grey + (np.eye(3) - grey) * jnp.exp2(SATURATION_STD * octaves)), [octaves]


# Laws of unit random numbers, as quantile functions of a uniform number.


def _coin(uniform: Scalar) -> Scalar:
    return jnp.floor(2 * uniform)


def _quarters(uniform: Scalar) -> Scalar:
    return jnp.floor(4 * uniform)


def _symmetric(uniform: Scalar) -> Scalar:
    return 2 * uniform - 1


def _normal(uniform: Scalar) -> Scalar:
    return math.sqrt(2) * jax.scipy.special.erfinv(2 * uniform - 1)


PIXELS = {
    "xflip": Transformation((_coin,), _xflip),
    "yflip": Transformation((_coin,), _yflip),
    "rotate_int": Transformation((_quarters,), _rotate_int),
    "translate_int": Transformation((_symmetric, _symmetric), _translate_int),
}
GEOMETRY = {
    "scale": Transformation((_normal,), _scale),
    "rotate_frac": Transformation((_symmetric,), _rotate_frac),
    "aniso": Transformation((_normal, _symmetric, _symmetric), _aniso),
    "translate_frac": Transformation((_normal, _normal), _translate_frac),
}
COLOURS = {
    "brightness": Transformation((_normal,), _brightness),
    "contrast": Transformation((_normal,), _contrast),
    "lumaflip": Transformation((_coin,), _lumaflip),
    "hue": Transformation((_symmetric,), _hue),
    "saturation": Transformation((_normal,), _saturation),
}
TRANSFORMATIONS = PIXELS | GEOMETRY | COLOURS  # in order of application
