"""PNG files from anywhere: decoded only once their header promises an image of the size wanted."""

import io
import struct
import zipfile
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from simjax.config import ConfigError

CHANNELS = {"L": 1, "RGB": 3}  # PIL modes
# Both our choice.
LARGEST_SIDE = 4096  # pixels
LARGEST_PNG = 64 << 20  # bytes; 4096 x 4096 RGB has 48 MiB before compression

UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, SyntaxError, struct.error, zlib.error)
UNREADABLE += (zipfile.BadZipFile, Image.DecompressionBombError)


def decoded(
    name: str, content: bytes, shape: tuple[int, int, int] | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """One image, which must have the shape of the others (None: it is the first).

    Raises:
      ConfigError: naming it; for another mode, size or format, and for damage.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            found = (image.height, image.width, CHANNELS.get(image.mode))
            if found[2] is None:
                raise ConfigError(
                    f"{name} is a PNG of mode {image.mode}; expected 8-bit RGB or grey."
                )
            if max(image.size) > LARGEST_SIDE or found != (shape or found):
                wanted = shape or f"at most {LARGEST_SIDE} x {LARGEST_SIDE} pixels"
                raise ConfigError(f"{name} is {found}, expected {wanted} like the others.")
            return np.asarray(image).reshape(found)
    except ConfigError:
        raise
    except UNREADABLE as error:
        raise ConfigError(f"{name} cannot be decoded: {error}; write it again.") from error
