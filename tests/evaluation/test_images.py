"""Image files: EDM's and ADM's layouts, exact round trips, refusal of broken files."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from simjax import data
from simjax.errors import ConfigError
from simjax.evaluation import images
from tests.helpers import memory
from tests.helpers.image_files import bomb_png, png


@pytest.fixture(autouse=True)
def cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMJAX_CACHE", str(tmp_path / "cache"))


def some(count: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 4, channels), np.uint8)


def test_floats_are_quantised_as_in_the_official_evaluations():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(images.as_bytes(data.to_unit(levels)), levels)
    x = np.float32([-1.5, -1, -0.5, 0, 0.999, 1, 1.5]).reshape(1, 1, 7, 1)
    # 127.5 x + 128 is -63.25, 0.5, 64.25, 128, 255.3725, 255.5, 319.25
    np.testing.assert_array_equal(images.as_bytes(x).ravel(), [0, 0, 64, 128, 255, 255, 255])
    assert images.as_bytes(levels) is levels


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(bad):
    x = np.zeros((2, 3, 3, 1), np.float32)
    x[1, 2, 0] = bad
    with pytest.raises(ConfigError, match="images: not all numbers are finite"):
        images.as_bytes(x)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_has_edms_layout_and_is_read_back_exactly(tmp_path, channels):
    made, root = some(5, channels), tmp_path / "samples"
    images.write_folder(root, iter([made[:2], made[2:]]), start=998)
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*.png")) == [
        "000000/000998.png",
        "000000/000999.png",
        "001000/001000.png",
        "001000/001001.png",
        "001000/001002.png",
    ]
    found = images.read(root)
    assert (found.size, found.shape, found.labels) == (5, (6, 4, channels), None)
    np.testing.assert_array_equal(found.load(), made, strict=True)
    np.testing.assert_array_equal(found.read(np.array([4, 0])), made[[4, 0]])
    images.write_folder(root, [made[:1]], start=1003)  # adds to the existing images
    assert images.read(str(root)).size == 6


def test_other_files_in_a_folder_are_skipped_and_counted(tmp_path, capsys):
    for name in ("metrics.json", ".a.json", "._c.png", "Thumbs.db", "more.npz", "a", "d.png/e.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a.png").write_bytes(GOOD)
    (tmp_path / "b.PNG").write_bytes(png(some()[1]))
    (tmp_path / "a.png").write_bytes(png(some()[0]))
    np.testing.assert_array_equal(images.read(tmp_path).load(), some()[[0, 1]])
    said = capsys.readouterr().out
    assert said == (
        f"{tmp_path}: 2 images (2 PNG); left out: 2 .npz, 2 hidden file(s), 1 .db, "
        "1 .json, 1 hidden folder(s), 1 without a suffix\n"
    )


def test_a_folder_of_pngs_alone_is_read_silently(tmp_path, capsys):
    images.write_folder(tmp_path, [some()])
    images.read(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_mix_of_formats_is_read_and_logged(tmp_path):
    kinds, said = {"a.png": "png", "b.jpg": "jpeg", "c.JPEG": "jpeg", "d.webp": "webp"}, []
    for name, kind in kinds.items():
        options = {"lossless": True} if kind == "webp" else {}
        (tmp_path / name).write_bytes(png(some()[0], kind=kind, **options))
    found = images.read(tmp_path, say=said.append).load()
    assert said == [f"{tmp_path}: 4 images (2 JPEG, 1 PNG, 1 WEBP)"]
    np.testing.assert_array_equal(found[[0, 3]], some()[[0, 0]])
    np.testing.assert_array_equal(found[1], found[2])


def test_a_zip_needs_no_prefix(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", GOOD)
    np.testing.assert_array_equal(images.read(tmp_path / "a.zip").load(), some()[:1])


def test_unknown_arrays_of_an_npz_are_logged(tmp_path, capsys):
    known = dict.fromkeys(("mu", "sigma", "arr_1"), np.zeros(5, int))
    np.savez(tmp_path / "a.npz", arr_0=some(), **known)
    images.read(tmp_path / "a.npz")
    assert capsys.readouterr().out == ""
    np.savez(tmp_path / "a.npz", arr_0=some(), more=some(), arr_2=some())
    images.read(tmp_path / "a.npz")
    assert "a.npz: 5 images (arr_0); ignored arrays: more, arr_2" in capsys.readouterr().out


@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_has_adms_layout_and_is_read_back_exactly(tmp_path, channels):
    made, labels, path = some(5, channels), np.array([2, 0, 1, 2, 0]), tmp_path / "samples.npz"
    images.write_npz(path, made, labels)
    with np.load(path) as file:
        assert file.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(file["arr_0"], made, strict=True)
    found = images.read(path)
    assert (found.size, found.shape, found.label_dim) == (5, (6, 4, channels), 3)
    np.testing.assert_array_equal(found.load(), made, strict=True)
    np.testing.assert_array_equal(found.read(np.array([4, 0, 3])), made[[4, 0, 3]])
    np.testing.assert_array_equal(found.labels, np.int32(labels), strict=True)
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]


def test_an_npz_may_be_compressed_and_without_labels(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", arr_0=some(), mu=np.zeros(3))
    found = images.read(tmp_path / "a.npz")
    assert (found.labels, found.label_dim) == (None, 0)
    batches = [batch for batch, _ in data.batches(found, 2)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), some())
    copy = data.dataset.in_memory("copy", some(), None, 0)
    assert found.fingerprint() == copy.fingerprint()


def test_a_large_npz_is_read_in_batches_with_little_memory(tmp_path):
    images.write_npz(tmp_path / "large.npz", np.zeros((20_000, 32, 32, 3), np.uint8))  # 59 MiB

    def read() -> int:
        found = images.read(tmp_path / "large.npz")
        return sum(len(batch) for batch, _ in data.batches(found, 500))

    count, peak = memory.peak(read)
    assert count == 20_000
    assert peak < 10 << 20


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def killed(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", killed)
    with pytest.raises(KeyboardInterrupt):
        images.write_npz(tmp_path / "a.npz", some())
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), some(2, 2)]
)
def test_only_uint8_images_are_written(tmp_path, wrong):
    message = r"images to write: .* expected uint8 \(n, h"
    with pytest.raises(ConfigError, match=message):
        images.write_npz(tmp_path / "a.npz", wrong)
    with pytest.raises(ConfigError, match=message):
        images.write_folder(tmp_path / "a", [wrong])
    assert not list(tmp_path.iterdir())


def refused(path, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        images.read(path).load()
    assert path.name in str(error.value)


def test_a_missing_path_is_refused(tmp_path):
    refused(tmp_path / "none", "does not exist; expected a folder or a .zip of PNG, .*, or an .npz")


GOOD = png(some()[0])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no images; expected a folder"),
        ({"a.gif": b"", ".a.png": b""}, "has no images .only 1 .gif, 1 hidden file.s..; expec"),
        ({"a.jpg": b""}, "a.jpg cannot be decoded"),
        ({"a.png": GOOD, "b.png": png(some()[0, :5])}, r"b.png is \(5, 4, 3\), expected \(6, 4, 3"),
        ({"a.png": GOOD, "b.png": png(some(1, 1)[0])}, r"b.png is \(6, 4, 1\), expected"),
        ({"a.png": GOOD[:60]}, "a.png cannot be decoded"),
        ({"a.png": png(some()[0], kind="jpeg")}, "a.png cannot be decoded: cannot identify"),
        ({"a.png": png(some()[0], "RGBA")}, "is a PNG of mode RGBA; expected 8-bit RGB or grey"),
        ({"a.png": bomb_png(9000, 9000)}, "expected at most 4096 x 4096 pixels"),
        ({"a.png": bytes(65 << 20)}, "is larger than 67108864 bytes"),
    ],
)
def test_invalid_folders_are_refused(tmp_path, files, message):
    folder = tmp_path / "samples"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    refused(folder, message)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle in the file was executed",))


def archive(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def inconsistent(shape: tuple[int, ...], held: int) -> bytes:
    """An .npz whose arr_0 has `shape` in its header and `held` bytes of data."""
    header, file = io.BytesIO(), io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("arr_0.npy", header.getvalue() + bytes(held))
    return file.getvalue()


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


BAD = {
    "text": (
        b"arr_0",
        "is not an .npz of images .*; expected a folder or a .zip of PNG, .* .npz",
    ),
    "a pickle": (pickle.dumps(Bomb()), "is not an .npz of images"),
    "objects": (archive(arr_0=np.array([Bomb()], object)), "arr_0: object of shape"),
    "no arr_0": (archive(mu=np.zeros(2)), "There is no item named 'arr_0.npy'"),
    "floats": (archive(arr_0=np.zeros((2, 4, 4, 3), np.float32)), "arr_0: float32 of shape"),
    "one image": (archive(arr_0=some()[0]), r"arr_0: uint8 of shape \(6, 4, 3\), expected uint8"),
    "two channels": (archive(arr_0=some(5, 2)), r"shape \(5, 6, 4, 2\), expected"),
    "no images": (archive(arr_0=some(0)), "has no images"),
    "columns": (archive(arr_0=np.asfortranarray(some())), "arr_0 is in Fortran order"),
    "truncated": (archive(arr_0=some())[:-30], "is not an .npz of images"),
    "damaged": (flipped(archive(arr_0=some(200)), 9999), "is damaged: Bad CRC-32"),
    "too short": (inconsistent((1000, 6, 4, 3), 7200), "is damaged: cannot reshape"),
    "many": (inconsistent((10**12, 6, 4, 3), 72), "expected .* with at most 10000000 images"),
    "wide": (inconsistent((1, 5000, 4, 3), 72), "and 4096 pixels per side"),
    "flat": (inconsistent((1, 0, 4, 3), 0), r"uint8 of shape \(1, 0, 4, 3\), expected"),
    "few labels": (archive(arr_0=some(), arr_1=np.zeros(4, int)), r"arr_1 is int64 \(4,\), expec"),
    "float labels": (archive(arr_0=some(), arr_1=np.zeros(5)), r"arr_1 is float64 \(5,\), expec"),
    "large labels": (archive(arr_0=some(), arr_1=np.full(5, 2**32)), "arr_1 has label 4294967"),
    "negative labels": (archive(arr_0=some(), arr_1=np.full(5, -1)), "has labels from -1 to -1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_npz_files_are_refused(tmp_path, kind):
    content, message = BAD[kind]
    (tmp_path / "samples.npz").write_bytes(content)
    refused(tmp_path / "samples.npz", message)


def test_written_files_are_valid_pngs(tmp_path):
    images.write_folder(tmp_path, [some(1)])
    with Image.open(tmp_path / "000000" / "000000.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (4, 6))
