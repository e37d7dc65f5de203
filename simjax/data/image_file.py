"""Decoding of untrusted image files, after checking the size in the header.

PNG, and JPEG and WebP, whose decoders agree up to a grey level or so. The suffix determines the
expected format. Called from image_folder.py, edm_zip.py and evaluation/images.py.
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

ORIENTATION, UPRIGHT = 0x112, 1  # EXIF tag, and its value for an upright image
HIDDEN = (".", "__MACOSX")  # prefixes of hidden and system files and folders
MOST_KINDS = 6  # kinds of left-out files in a message; our choice

UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, SyntaxError, struct.error, zlib.error)
UNREADABLE += (zipfile.BadZipFile, Image.DecompressionBombError)


def decoded(
    name: str, content: bytes, shape: tuple[int, int, int] | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """Decodes one image and checks its shape.

    Args:
      name: for messages; its suffix is one of FORMATS.
      shape: that of the other images; None for the first.

    Raises:
      ConfigError: another mode, size or format, or a damaged file.
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
            f"{name} cannot be decoded: {' '.join(str(error).split())}; save it again as {kind}, "
            "the format of its suffix."
        ) from error


def suffix(name: str) -> str:
    """A file's suffix in lower case, with its dot.

    >>> suffix("images/0001.PNG")
    '.png'
    """
    return os.path.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    """Whether a name is hidden or the system's: .DS_Store, ._a.png, __MACOSX."""
    return name.startswith(HIDDEN)


def summary(name: str, images: Iterable[str], left_out: Counter[str]) -> str:
    """A message on image formats and left-out files.

    Empty if all images are PNG and nothing was left out.

    >>> summary("a", ["1.png", "2.jpg"], Counter({".txt": 1}))
    'a: 2 images (1 PNG, 1 JPEG); left out: 1 .txt'
    """
    kinds = Counter(FORMATS[suffix(image)] for image in images)
    if set(kinds) == {"PNG"} and not left_out:
        return ""
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    text = f"{name}: {kinds.total()} images ({found or 'none'})"
    return f"{text}; left out: {listed(left_out)}" if left_out else text


def listed(left_out: Counter[str]) -> str:
    """Counts by kind, most frequent first.

    >>> listed(Counter({".txt": 1, "hidden file(s)": 3}))
    '3 hidden file(s), 1 .txt'
    """
    ranked = sorted(left_out.items(), key=lambda pair: (-pair[1], pair[0]))
    named = [f"{count} {kind}" for kind, count in ranked[:MOST_KINDS]]
    rest = sum(count for _, count in ranked[MOST_KINDS:])
    return ", ".join([*named, f"{rest} others"] if rest else named)


def kind_of(name: str) -> str:
    """The kind under which a non-image file is counted."""
    return suffix(name)[:20].encode("unicode_escape").decode() or "without a suffix"


def _require_side(name: str, size: tuple[int, int], shape: tuple[int, ...] | None) -> None:
    if max(size) > LARGEST_SIDE:
        wanted = f"{shape} like the others" if shape else f"at most {LARGEST_SIDE} x {LARGEST_SIDE}"
        raise ConfigError(f"{name} is {size[1]} x {size[0]}, expected {wanted} pixels.")


def _require_plain(name: str, image: Image.Image) -> None:
    """Rejects animations and EXIF rotations, which decoders would silently drop."""
    if getattr(image, "n_frames", 1) > 1:
        raise ConfigError(f"{name} has {image.n_frames} frames, expected 1; save one per file.")
    if image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT:
        raise ConfigError(f"{name} is rotated by its EXIF orientation; save it upright.")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in a WebP header (RFC 9649), without decoding."""
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
