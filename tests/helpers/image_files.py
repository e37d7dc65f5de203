"""Image files in memory: valid ones, and decompression bombs."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def png(image: np.ndarray, mode: str | None = None, kind: str = "png", **options: Any) -> bytes:
    """An image encoded by Pillow, optionally in another mode or format."""
    file = io.BytesIO()
    picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    picture.convert(mode or picture.mode).save(file, format=kind, **options)
    return file.getvalue()


def bomb_png(width: int, height: int, depth: int = 8) -> bytes:
    """A valid header of a width x height RGB image, with hardly any data."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ]
    body = b""
    for kind, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        body += struct.pack(">I", len(content)) + kind + content + checksum
    return b"\x89PNG\r\n\x1a\n" + body


def bomb_webp(kind: bytes, width: int, height: int) -> bytes:
    """The same for WebP; kind: VP8X, VP8L or "VP8 "."""
    w, h = width - 1, height - 1
    body = {
        b"VP8X": bytes(4) + w.to_bytes(3, "little") + h.to_bytes(3, "little"),
        b"VP8L": b"/" + struct.pack("<I", w | h << 14) + bytes(9),
        b"VP8 ": b"\x10\0\0\x9d\x01\x2a" + struct.pack("<2H", width, height) + bytes(8),
    }[kind]
    body = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(body)) + body
