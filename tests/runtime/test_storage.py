"""Output paths: checked before work, "~" expanded, files written atomically."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.evaluation import images
from simjax.export import formats
from simjax.runtime import storage

FULL = OSError(errno.ENOSPC, "No space left on device")
KINDS = (".png", ".npz")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    return tmp_path / "home"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_output_paths_are_expanded_and_their_folders_created(home):
    assert storage.new_file("~/a/m.json", "--out") == home / "a" / "m.json"
    assert storage.new_folder("~/b/c", "--out") == home / "b" / "c"
    for given in ("~/d/x.npz", "~/d/new", "~/d/x.y/"):
        storage.new_file_or_folder(given, "--out", KINDS)
    assert {path.name for path in (home / "d").iterdir()} == {"new", "x.y"}
    assert (home / "a").is_dir() and (home / "b" / "c").is_dir()
    assert storage.new_file("file", "--out") == Path("file")  # existing files are replaced
    assert left(home.parent) == ["file"]


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (storage.new_file, "", "--out= is empty: expected FILE"),
        (storage.new_file, "folder", "--out=folder is a folder, expected a file: --out=folder/"),
        (storage.new_file, "new/", "--out=new/ is a folder, expected a file"),
        (storage.new_file, "file/m.json", "--out=file/m.json cannot be written: file is a file"),
        (storage.new_file, "/proc/no/m.json", "--out=/proc/no/m.json cannot be written: "),
        (storage.new_file, "/dev/null", "--out=/dev/null is not a regular file"),
        (storage.new_file, "~nobody-like-it/m.json", "that home directory was not found"),
        (storage.new_folder, "", "--out= is empty: expected FOLDER"),
        (storage.new_folder, "file", "--out=file is a file, expected a folder"),
        (storage.new_folder, "/proc/no", "--out=/proc/no cannot be written: "),
    ],
)
def test_unwritable_outputs_are_refused_before_work(make, given, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        make(given, "--out")
    assert message in str(error.value)
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize("given", ["x.jpg", "folder.png", "file", "file/in"])
def test_an_output_has_a_known_suffix_or_is_a_folder(given, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=f"--out={given}"):
        storage.new_file_or_folder(given, "--out", KINDS)
    with pytest.raises(ConfigError, match="expected one of NAME.png, NAME.npz, FOLDER/"):
        storage.new_file_or_folder("x.jpg", "--out", KINDS)


def raising(error):
    def write(*args, **kwargs):
        for given in args:
            if hasattr(given, "write"):
                given.write(b"half")
            elif isinstance(given, Path):
                given.write_bytes(b"half")
        raise error

    return write


def test_a_full_disk_keeps_the_old_file_and_removes_the_partial_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with pytest.raises(ConfigError) as error, storage.whole(path) as partial:
        raising(FULL)(partial)
    assert str(error.value) == f"{path} cannot be written: No space left on device."
    with pytest.raises(KeyboardInterrupt), storage.whole(path) as partial:
        raising(KeyboardInterrupt())(partial)
    assert (left(tmp_path), path.read_text()) == (["file"], "kept")


def test_every_writer_removes_its_partial_file(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", raising(FULL))
    with pytest.raises(ConfigError, match="a.npz cannot be written: No space left"):
        images.write_npz(tmp_path / "a.npz", np.zeros((1, 2, 2, 1), np.uint8))
    monkeypatch.setattr(formats, "save_file", lambda _, path: raising(RuntimeError("full"))(path))
    with pytest.raises(RuntimeError, match="full"):
        formats.save(tmp_path / "model.safetensors", {"a": np.zeros(3)})
    monkeypatch.setattr(json, "dumps", raising(FULL))
    with pytest.raises(ConfigError, match="m.json cannot be written: No space left"):
        storage.write_json(tmp_path / "m.json", {})
    assert left(tmp_path) == ["file"]


def test_images_written_before_a_full_disk_are_kept(tmp_path, monkeypatch):
    write, written = images.write_png, []

    def full_after_three(path, picture):
        if len(written) == 3:
            raising(FULL)(path)
        written.append(path)
        write(path, picture)

    monkeypatch.setattr(images, "write_png", full_after_three)
    pictures = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(ConfigError) as error:
        images.write_folder(tmp_path / "out", [pictures] * 3)
    assert "000003.png cannot be written: No space left" in str(error.value)
    assert "The 3 images before it are kept." in str(error.value)
    assert left(tmp_path / "out") == [f"{n:06d}.png" for n in range(3)]


def test_an_existing_read_only_folder_is_refused(monkeypatch):
    def refuse(*_):  # like a read-only disk with existing folders
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(storage.absolute("folder")), "write_text", refuse)
    for given in ("folder/m.json", "folder/"):
        with pytest.raises(ConfigError, match=f"--out={given} cannot be written: Read-only"):
            storage.new_file_or_folder(given, "--out", [".json"])
