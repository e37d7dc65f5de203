"""Image files: the suffix determines the format, and nothing in them is dropped silently."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from simjax.data import image_file
from simjax.errors import ConfigError
from tests.helpers import memory
from tests.helpers.image_files import bomb_png, bomb_webp, png

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
EXACT = {"png": {}, "webp": {"lossless": True}}


def refused(name: str, content: bytes, message: str, shape=None) -> None:
    with pytest.raises(ConfigError, match=f"^{name} .*{message}"):
        image_file.decoded(name, content, shape)


@pytest.mark.parametrize("kind", EXACT)
def test_lossless_formats_are_decoded_exactly(kind):
    content = png(IMAGE, kind=kind, **EXACT[kind])
    np.testing.assert_array_equal(image_file.decoded(f"a.{kind}", content), IMAGE, strict=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_decoded_up_to_its_loss(channels):
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8)[..., None] * 4
    smooth = np.repeat(smooth, channels, axis=2)
    found = image_file.decoded("a.JPG", png(smooth, kind="jpeg", quality=95))
    assert found.shape == smooth.shape
    assert np.abs(found.astype(int) - smooth).max() <= 4


with io.BytesIO() as file:
    Image.fromarray(np.dstack([IMAGE, IMAGE[..., 0]])).save(file, "webp")
    TRANSPARENT = file.getvalue()
ANIMATED = {"save_all": True, "append_images": [Image.fromarray(IMAGE[::-1])]}
TURNED = Image.Exif()
TURNED[0x112] = 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jpg", png(IMAGE), "cannot be decoded: .*; save it again as JPEG, the format"),
        ("a.webp", png(IMAGE), "not a WebP file"),
        ("a.png", png(IMAGE, kind="webp"), "as PNG, the format of its suffix"),
        ("a.png", png(IMAGE, kind="png", **ANIMATED), "has 2 frames, expected 1"),
        ("a.webp", png(IMAGE, kind="webp", **ANIMATED), "has 2 frames, expected 1"),
        ("a.jpg", png(IMAGE, kind="mpo", **ANIMATED), "has 2 frames, expected 1"),
        ("a.jpg", png(IMAGE, kind="jpeg", exif=TURNED), "rotated by its EXIF orientation"),
        ("a.webp", png(IMAGE, kind="webp", exif=TURNED), "rotated by its EXIF orientation"),
        ("a.png", png(IMAGE, exif=TURNED), "rotated by its EXIF orientation"),
        ("a.jpg", png(IMAGE, "CMYK", kind="jpeg"), "is a JPEG of mode CMYK; expected 8-bit RGB"),
        ("a.webp", TRANSPARENT, "is a WEBP of mode RGBA; expected 8-bit RGB"),
        ("a.png", bomb_png(4, 6, depth=16), "is a PNG of mode 16-bit RGB; expected 8-bit RGB"),
        ("a.webp", b"RIFF\x04\0\0\0WEBP", "not a WebP file"),
        ("a.webp", bomb_webp(b"VP8X", 4, 6)[:-3], "not a WebP file"),
        ("a.webp", bomb_webp(b"VP8L", 4, 6)[:24], "cannot be decoded"),
    ],
)
def test_content_that_a_decoder_would_drop_or_convert_is_refused(name, content, message):
    refused(name, content, message)


@pytest.mark.parametrize("kind", [b"VP8X", b"VP8L", b"VP8 "])
def test_the_webp_header_is_checked_before_decoding(kind, monkeypatch):
    monkeypatch.setattr(image_file.Image, "open", lambda *_, **__: pytest.fail("decoded"))
    refused("a.webp", bomb_webp(kind, 9000, 16383), "expected at most 4096 x 4096 pixels")


def test_sizes_of_real_webps_are_read():
    for options in ({"lossless": True}, {"quality": 50}, {"exif": TURNED}):
        assert image_file._webp_size(png(IMAGE, kind="webp", **options)) == (4, 6)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, for damaged EXIF
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_flipped_byte_is_decoded_or_refused(kind):
    content, rng = png(IMAGE, kind=kind, exif=TURNED), random.Random(0)
    upright = Image.Exif()
    upright[0x10E] = "a description"
    for good in (content, png(IMAGE, kind=kind, exif=upright)):
        for _ in range(300):
            position, damaged = rng.randrange(len(good)), bytearray(good)
            damaged[position] ^= rng.randrange(1, 256)
            try:
                found = image_file.decoded(f"a.{kind}", bytes(damaged), IMAGE.shape)
                assert found.shape == IMAGE.shape
            except ConfigError as error:
                assert str(error).startswith(f"a.{kind} ") and str(error).isprintable()


def test_a_jpeg_header_with_a_large_size_allocates_no_memory():
    content = png(np.zeros((8, 8, 3), np.uint8), kind="jpeg")
    content = content.replace(b"\x08\x00\x08\x00\x08\x03", b"\x08\xea\x60\xea\x60\x03")
    message = "is 60000 x 60000, expected at most 4096|exceeds limit"
    _, peak = memory.peak(refused, "a.jpg", content, message)
    assert peak < 1 << 20
