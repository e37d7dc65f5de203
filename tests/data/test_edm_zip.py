"""EDM's data set zips: read exactly, or refused if malformed."""

import json
import zipfile

import numpy as np
import pytest

from simjax import data
from simjax.errors import ConfigError
from tests.helpers import memory
from tests.helpers.image_files import bomb_png, png

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
CLASSES = [3, 0, 1, 3, 0]
NAMES = [f"0000{i % 2}/img{i:08d}.png" for i in range(5)]
ORDER = [0, 2, 4, 1, 3]  # by name: folder 00000 first


GOOD = {name: png(image) for name, image in zip(NAMES, IMAGES, strict=True)}
PAIRS = [[name, label] for name, label in zip(NAMES, CLASSES, strict=True)]


def write(path, files: dict[str, bytes], labels="absent") -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if labels != "absent":
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return f"zip:{path}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "images.zip"


def refused(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data.open(source).load()


def test_images_and_labels_are_sorted_by_name(path):
    found = data.open(write(path, GOOD, PAIRS[::-1]))
    assert (found.size, found.shape, found.label_dim) == (5, (6, 4, 3), 4)
    assert found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.labels, np.array(CLASSES)[ORDER])
    np.testing.assert_array_equal(found.load(), IMAGES[ORDER])
    np.testing.assert_array_equal(found.read(np.array([3, 0])), IMAGES[[1, 0]])
    assert found.read(np.arange(0)).shape == (0, 6, 4, 3)
    np.testing.assert_array_equal(found.prior(), [0.4, 0.2, 0, 0.4])


@pytest.mark.parametrize("labels", [None, "absent"])
def test_images_may_be_unlabelled(path, labels):
    found = data.open(write(path, GOOD, labels))
    assert found.labels is None
    assert found.label_dim == 0


def test_grey_images_have_one_channel(path):
    found = data.open(write(path, {"a.png": png(IMAGES[0, ..., :1])}))
    np.testing.assert_array_equal(found.load(), IMAGES[:1, ..., :1])


def test_the_fingerprint_does_not_depend_on_the_storage(path):
    found = data.open(write(path, GOOD, PAIRS))
    copy = data.dataset.in_memory("copy", IMAGES[ORDER], found.labels, 4)
    assert found.fingerprint() == copy.fingerprint()


def test_missing_files_and_other_splits_are_refused(path):
    refused(f"zip:{path}", "no such file; put a zip made by EDM's dataset_tool.py there")
    with pytest.raises(ConfigError, match="has no split 'test'"):
        data.open(write(path, GOOD), split="test")
    path.write_bytes(b"no zip")
    refused(f"zip:{path}", "cannot be opened: File is not a zip file")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../a.png": GOOD[NAMES[0]]}, "'../a.png' leaves its folder"),
        ({"/a.png": GOOD[NAMES[0]]}, "'/a.png' leaves its folder"),
        ({"b\\..\\a.png": GOOD[NAMES[0]]}, "leaves its folder"),
        ({}, "has no images; expected PNG, JPEG or WebP files"),
        ({"a.npy": b"", "__MACOSX/a.png": b""}, "has no images, but 1 .npy, 1 hidden file"),
        ({"a.jpg": b""}, "a.jpg cannot be decoded"),
        (
            {"a.png": png(IMAGES[0], kind="jpeg")},
            "a.png cannot be decoded: cannot identify image file",
        ),
        ({"a.png": GOOD[NAMES[0]][:60]}, "a.png cannot be decoded"),
        ({"a.png": png(IMAGES[0], "RGBA")}, "a.png is a PNG of mode RGBA; expected 8-bit RGB"),
        ({"a.png": png(IMAGES[0], "P")}, "mode P"),
        ({"a.png": GOOD[NAMES[0]], "b.png": png(IMAGES[0, :5])}, r"b.png is \(5, 4, 3\), expected"),
        ({"a.png": GOOD[NAMES[0]], "b.png": png(IMAGES[0, ..., :1])}, r"b.png is \(6, 4, 1\)"),
        ({"a.png": bomb_png(9000, 10)}, "a.png is .* expected at most 4096 x 4096"),
        ({"a.png": bytes(65 << 20)}, "'a.png' has 68157440 bytes, more than the 67108864 allowed"),
    ],
)
def test_other_contents_are_refused(path, files, message):
    refused(write(path, files), message)


def test_a_header_with_a_large_size_allocates_no_memory(path):
    source = write(path, {"a.png": bomb_png(9000, 9000)})
    _, peak = memory.peak(refused, source, "expected at most 4096 x 4096 pixels")
    assert peak < 10 << 20


@pytest.mark.parametrize("labels", [PAIRS, None])
def test_a_zip_with_an_additional_top_folder_is_read(path, labels, capsys):
    beside = {"__MACOSX/set/._dataset.json": b"", "set/.DS_Store": b"", "set/notes.txt": b""}
    wrapped = {f"set/{name}": content for name, content in GOOD.items()} | beside
    source = write(path, wrapped | {"set/dataset.json": json.dumps({"labels": labels}).encode()})
    found = data.open(source)
    np.testing.assert_array_equal(found.load(), IMAGES[ORDER])
    if labels:
        np.testing.assert_array_equal(found.labels, np.array(CLASSES)[ORDER])
    said = capsys.readouterr().out
    assert said == f"{source}: 5 images (5 PNG); left out: 2 hidden file(s), 1 .txt\n"


@pytest.mark.parametrize("labels", ["dataset.json", "b/dataset.json"])
def test_two_data_sets_in_one_zip_are_refused(path, labels):
    files = {"a/a.png": GOOD[NAMES[0]], "b/b.png": GOOD[NAMES[1]]}
    files |= {"a/dataset.json": b'{"labels": null}', labels: b'{"labels": null}'}
    refused(write(path, files), "expected one dataset.json, above all images. Pack each")


def test_jpegs_are_read_with_a_message(path, capsys):
    jpegs = {f"{n}.jpg": png(image, kind="jpeg") for n, image in enumerate(IMAGES)}
    source = write(path, jpegs)
    assert data.open(source).load().shape == IMAGES.shape
    assert capsys.readouterr().out == f"{source}: 5 images (5 JPEG)\n"


def test_duplicate_file_names_are_refused(path):
    write(path, GOOD)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(NAMES[0], b"")
    refused(f"zip:{path}", "has two files with the same name")


def test_encrypted_files_are_refused(path):
    write(path, {"a.png": GOOD[NAMES[0]]})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1  # general purpose flags of the directory's entry
    path.write_bytes(raw)
    refused(f"zip:{path}", "a.png cannot be read: .* is encrypted")


def test_damaged_files_are_refused(path):
    write(path, {"a.png": GOOD[NAMES[0]]})
    raw = bytearray(path.read_bytes())
    raw[60] ^= 1
    path.write_bytes(raw)
    refused(f"zip:{path}", "a.png cannot be read")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (PAIRS[1:], "has no entry '00000/img00000000.png'"),
        ([*PAIRS, ["c.png", 1]], "labels 'c.png', which is not in the zip"),
        ([[name, [0.0, 1.0]] for name in NAMES], "not class numbers"),
        ([[name, "cat"] for name in NAMES], "not class numbers"),
        ([[name, 2**32] for name in NAMES], "not class numbers below 100000"),
        ([[name, 2**70] for name in NAMES], "not class numbers"),
        ([[name, -1] for name in NAMES], "has labels from -1 to -1"),
        (["a", "b"], "is not EDM's list of labels"),
        (7, "is not EDM's list of labels"),
    ],
)
def test_labels_that_do_not_match_are_refused(path, labels, message):
    refused(write(path, GOOD, labels), message)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"other": 1}', b"[" * 100_000, b"\xff"])
def test_malformed_dataset_json_is_refused(path, content):
    message = "dataset.json (is not EDM's list of labels|has no entry 'labels')"
    refused(write(path, GOOD | {"dataset.json": content}), message)
