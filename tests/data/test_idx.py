"""MNIST-format files: read exactly, or refused if malformed."""

import gzip
import struct

import numpy as np
import pytest

from simjax import data
from simjax.errors import ConfigError
from tests.helpers import memory
from tests.helpers.idx_files import encoded

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
LABELS = np.array([3, 0, 1, 3, 2, 0], np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Training files gzipped, test files (the first two images) plain."""
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(encoded(IMAGES))
    with gzip.open(tmp_path / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(encoded(LABELS))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(encoded(IMAGES[:2]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(encoded(LABELS[:2]))
    return tmp_path


def refused(folder, message: str, split: str = "test") -> None:
    with pytest.raises(ConfigError, match=message):
        data.open(f"idx:{folder}", split=split)


def test_images_and_labels_are_read(folder):
    found = data.open(f"idx:{folder}")
    assert (found.size, found.shape, found.label_dim) == (6, (5, 4, 1), 4)
    assert found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.load(), IMAGES[..., None])
    np.testing.assert_array_equal(found.read(np.array([4, 1])), IMAGES[[4, 1]][..., None])


def test_the_test_split_has_its_own_files(folder):
    np.testing.assert_array_equal(data.open(f"idx:{folder}", split="test").labels, LABELS[:2])
    refused(folder, "has no split 'validation'; known: train, test", "validation")


def test_missing_files_are_refused_with_a_source_for_them(tmp_path):
    refused(tmp_path, "none of t10k-images-idx3-ubyte, .*gz.*; put the four files .* there")


@pytest.mark.parametrize(
    "place",
    [
        "{name}/{name}",  # Kaggle
        "{dotted}",  # Kaggle
        "{dotted}/{dotted}",
        "{name}/{dotted}",
        "{dotted}.gz",
    ],
)
def test_other_spellings_are_read(tmp_path, place):
    for name, array in (("t10k-images-idx3-ubyte", IMAGES), ("t10k-labels-idx1-ubyte", LABELS)):
        path = tmp_path / place.format(name=name, dotted=name.replace("-idx", ".idx"))
        path.parent.mkdir(exist_ok=True)
        content = encoded(array)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    found = data.open(f"idx:{tmp_path}", split="test")
    np.testing.assert_array_equal(found.load(), IMAGES[..., None])
    np.testing.assert_array_equal(found.labels, LABELS)


def test_two_spellings_of_a_file_must_be_equal(folder):
    name = "train-images-idx3-ubyte"
    (folder / name).mkdir()
    (folder / name / name).write_bytes(encoded(IMAGES))  # in addition to NAME.gz
    assert data.open(f"idx:{folder}").size == 6
    (folder / name / name).write_bytes(encoded(IMAGES[::-1]))
    refused(folder, f"{name}.gz and .*{name}/{name} differ; keep only the right one", "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(LABELS), "begins with 00 00 08 01, expected 00 00 08 03"),
        (b"\0\0\x0d\3" + encoded(IMAGES)[4:], "begins with 00 00 0d 03"),
        (b"<html>", "begins with 3c 68 74 6d"),
        (b"", "begins with , expected"),
        (encoded(IMAGES)[:9], "cannot be read: unpack requires"),
        (encoded(IMAGES)[:-1], "has 119 bytes, expected 6 x 5 x 4 = 120 by"),
        (encoded(IMAGES) + b"?", "has more than 120 bytes, expected 6 x 5 x 4 = 120"),
        (encoded(IMAGES[:0]), "has no images"),
        (encoded(IMAGES[:3]), "has 2 labels for 3 images"),
    ],
)
def test_malformed_files_are_refused(folder, content, message):
    (folder / "t10k-images-idx3-ubyte").write_bytes(content)
    refused(folder, message)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"plain" + data])
def test_damaged_gzip_files_are_refused(folder, damage):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    refused(folder, "images-idx3-ubyte.gz cannot be read: .*; download it again", "train")


@pytest.mark.parametrize(
    ("shape", "zeros"),
    [((1 << 31, 1 << 31, 4), 0), ((100_000, 100, 100), 10), ((1, 2, 2), 50 << 20)],
    ids=["overflowing header", "false header", "bomb"],
)
def test_memory_is_bounded_by_content_and_header(folder, shape, zeros):
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb", 1) as file:
        file.write(b"\0\0\x08\3" + struct.pack(">3I", *shape) + bytes(zeros))
    _, peak = memory.peak(refused, folder, "bytes, expected .* by its header", "train")
    assert peak < 10 << 20
