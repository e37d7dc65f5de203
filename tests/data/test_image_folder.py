"""Folders of images with links, loops and special files: read, or refused by name."""

import os

import pytest
from etils import epath

from simjax.data import image_folder
from simjax.errors import ConfigError


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def names(root):
    files, left_out = image_folder.find(epath.Path(root))
    return [str(file.relative_to(root)) for file in files], dict(left_out)


def refused(root, *parts):
    with pytest.raises(ConfigError) as error:
        image_folder.find(epath.Path(root))
    for part in parts:
        assert str(part) in str(error.value)


def test_links_to_folders_and_files_are_followed(tmp_path):
    write(tmp_path / "store", "1.png", "deep/2.webp")
    write(tmp_path / "a", "0.jpg")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "a" / "3.png").symlink_to(tmp_path / "store" / "1.png")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    expected = ["0.jpg", "3.png", "linked/1.png", "linked/deep/2.webp"]
    assert names(tmp_path / "a") == (expected, {})
    assert names(tmp_path / "b") == (expected, {})


def test_broken_links_are_refused_with_their_targets(tmp_path):
    write(tmp_path, "0.png")
    (tmp_path / "zz.png").symlink_to("/nowhere/x.png")
    (tmp_path / "sub").symlink_to("/nowhere/sub")
    refused(tmp_path, f"{tmp_path}/zz.png -> /nowhere/x.png", "sub -> /nowhere/sub", "Remove")


def test_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    refused(tmp_path, tmp_path / "a.png", "neither files nor folders")


@pytest.mark.parametrize("target", [".", "sub", "sub/.."])
def test_a_folder_reached_twice_through_links_is_refused(tmp_path, target):
    write(tmp_path, "sub/0.png")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path / target)
    refused(tmp_path, tmp_path / "sub" / "loop", "one folder", "Remove one")


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "a.png").symlink_to("a.png")
    refused(tmp_path, tmp_path / "a.png")


def test_hidden_folders_are_not_entered(tmp_path):
    write(tmp_path, "0.png", ".git/1.png", "__MACOSX/._0.png", "a/.b.png", "a/c.TXT", "a/d.e.txt")
    left_out = {"hidden folder(s)": 2, "hidden file(s)": 1, ".txt": 2}
    assert names(tmp_path) == (["0.png"], left_out)
    assert names(tmp_path / ".git") == (["1.png"], {})  # given explicitly


def test_very_deep_folders_are_read(tmp_path):
    deep = tmp_path / "/".join(["d"] * 500)
    deep.mkdir(parents=True)
    write(deep, "0.png")
    assert len(names(tmp_path)[0]) == 1


def test_a_folder_with_too_many_files_is_refused(tmp_path, monkeypatch):
    write(tmp_path, "0.png", "1.png", "2.txt")
    monkeypatch.setattr(image_folder, "MOST_FILES", 2)
    refused(tmp_path, "more than 2 files")
