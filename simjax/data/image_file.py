"""Image files from anywhere: decoded only once their header promises an image of the size wanted.

PNG, and JPEG and WebP, whose decoders give the same bytes up to a level or so. The name says what
the content must be. Called from image_folder.py, edm_zip.py and evaluation/images.py.
"""

import io
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from simjax.errors import ConfigError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # Pillow's names
KNOWN = "PNG, JPEG or WebP"
CHANNELS = {"L": 1, "RGB": 3}  # PIL modes
# Both our choice.
LARGEST_SIDE = 4096  # pixels
LARGEST_FILE = 64 << 20  # bytes; 4096 x 4096 RGB has 48 MiB before compression

ORIENTATION, UPRIGHT = 0x112, 1  # of EXIF
HIDDEN = (".", "__MACOSX")  # what names of files and folders begin with that no one put there
MOST_KINDS = 6  # of files that are left out, in a message; our choice

UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, SyntaxError, struct.error, zlib.error)
UNREADABLE += (zipfile.BadZipFile, Image.DecompressionBombError)


def decoded(
    name: str, content: bytes, shape: tuple[int, int, int] | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """One image, which must have the shape of the others (None: it is the first).

    Args:
      name: for messages; ends as one of FORMATS.

    Raises:
      ConfigError: naming it; for another mode, size or format, and for damage.
    """
    kind = FORMATS[suffix(name)]
    try:
        _require_side(name, _webp_size(content) if kind == "WEBP" else (0, 0), shape)
        with Image.open(io.BytesIO(content), formats=(kind,)) as image:
            found = (image.height, image.width, CHANNELS.get(image.mode))
            is_deep = kind == "PNG" and content[24] > 8  # bits, in IHDR; Pillow would drop some
            if found[2] is None or is_deep:
                depth = "16-bit " if is_deep else ""
                raise ConfigError(
                    f"{name} is a {kind} of mode {depth}{image.mode}; expected 8-bit RGB or grey."
                )
            _require_side(name, image.size, shape)
            if found != (shape or found):
                raise ConfigError(f"{name} is {found}, expected {shape} like the others.")
            _require_plain(name, image)
            return np.asarray(image).reshape(found)
    except ConfigError:
        raise
    except UNREADABLE as error:
        raise ConfigError(
            f"{name} cannot be decoded: {' '.join(str(error).split())}; write it again, as the "
            f"{kind} that its name says."
        ) from error


def suffix(name: str) -> str:
    """The ending that tells a file's kind, in small letters, with its dot."""
    return os.path.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is an editor's or a system's: .DS_Store, ._a.png, __MACOSX."""
    return name.startswith(HIDDEN)


def summary(name: str, images: Iterable[str], left_out: Counter[str]) -> str:
    """What was found: "a: 24 images (12 PNG, 12 JPEG); left out: 3 hidden files, 1 .txt".

    Empty where all are PNG and nothing was left out.
    """
    kinds = Counter(FORMATS[suffix(image)] for image in images)
    if set(kinds) == {"PNG"} and not left_out:
        return ""
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    text = f"{name}: {kinds.total()} images ({found or 'none'})"
    return f"{text}; left out: {listed(left_out)}" if left_out else text


def listed(left_out: Counter[str]) -> str:
    """Counts by kind, the most frequent first: "3 hidden files, 1 .txt"."""
    ranked = sorted(left_out.items(), key=lambda pair: (-pair[1], pair[0]))
    named = [f"{count} {kind}" for kind, count in ranked[:MOST_KINDS]]
    rest = sum(count for _, count in ranked[MOST_KINDS:])
    return ", ".join([*named, f"{rest} others"] if rest else named)


def kind_of(name: str) -> str:
    """What a file that is no image is counted under."""
    return suffix(name)[:20].encode("unicode_escape").decode() or "without a suffix"


def _require_side(name: str, size: tuple[int, int], shape: tuple[int, ...] | None) -> None:
    if max(size) > LARGEST_SIDE:
        wanted = f"{shape} like the others" if shape else f"at most {LARGEST_SIDE} x {LARGEST_SIDE}"
        raise ConfigError(f"{name} is {size[1]} x {size[0]}, expected {wanted} pixels.")


def _require_plain(name: str, image: Image.Image) -> None:
    """Refuses what a decoder would drop without a word: further pictures, and a rotation."""
    if getattr(image, "n_frames", 1) > 1:
        raise ConfigError(f"{name} has {image.n_frames} pictures; write one to a file.")
    if image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT:
        raise ConfigError(f"{name} is turned by its EXIF orientation; write it upright.")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in the header (RFC 9649), before a decoder takes memory for them."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise SyntaxError("not a WebP file")
    chunk = content[12:16]
    if chunk == b"VP8 ":
        return tuple(side & 0x3FFF for side in struct.unpack("<2H", content[26:30]))
    if chunk == b"VP8L":
        (bits,) = struct.unpack("<I", content[21:25])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8X" and len(content) >= 30:
        width, height = (int.from_bytes(content[at : at + 3], "little") for at in (24, 27))
        return 1 + width, 1 + height
    raise SyntaxError("not a WebP file")
