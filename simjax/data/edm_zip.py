"""EDM's data set zips: PNG files in folders, and dataset.json with their classes.

dataset.json is {"labels": [["00000/img00000000.png", 3], ...]}, or {"labels": null} (NVlabs/edm,
dataset_tool.py). Images are decoded when they are read. The zip may come from anybody: sizes are
checked before memory is taken, and nothing is unpacked to disk.
"""

import json
import pathlib
import zipfile

import numpy as np
from etils import epath
from jaxtyping import UInt8

from simjax.config import ConfigError
from simjax.data.dataset import MOST_CLASSES, Classes, Dataset, Pixels, require_train
from simjax.data.png import LARGEST_PNG, UNREADABLE, decoded

LABELS = "dataset.json"
LARGEST_LABELS = 256 << 20  # bytes; ImageNet's have 50 MB; our choice


def open_zip(where: str, split: str) -> Dataset:
    """The images of an EDM zip, in the order of their names.

    Raises:
      ConfigError: missing, not a zip of equal PNG files, or labels that do not fit.
    """
    name = f"zip:{where}"
    require_train(name, split)
    path = epath.Path(where).expanduser()
    if not path.exists() or path.is_dir():
        raise ConfigError(f"{name}: no such file; put a zip made by EDM's dataset_tool.py there.")
    try:
        archive = zipfile.ZipFile(path.open("rb"))
    except UNREADABLE as error:
        raise ConfigError(f"{name} cannot be opened: {error}.") from error
    files = _image_files(name, archive)
    if not files:
        raise ConfigError(f"{name} has no PNG files.")
    labels = _labels(name, archive, files)
    shape = _image(name, archive, files[0]).shape

    def read(indices: Classes) -> Pixels:
        images = np.empty((len(indices), *shape), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[:] = _image(name, archive, files[index], shape)
        return images

    label_dim = 0 if labels is None else int(labels.max(initial=0)) + 1
    return Dataset(name, len(files), shape, labels, label_dim, read)


def _image_files(name: str, archive: zipfile.ZipFile) -> list[str]:
    """Names of the PNG files, sorted, after a look at every entry of the directory."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in entries:
        _require_harmless(name, entry)
    files = sorted(entry.filename for entry in entries if entry.filename != LABELS)
    if len({entry.filename for entry in entries}) != len(entries):
        raise ConfigError(f"{name} has two files of one name; make it anew.")
    return files


def _require_harmless(name: str, entry: zipfile.ZipInfo) -> None:
    path = pathlib.PurePosixPath(entry.filename)
    is_labels = entry.filename == LABELS
    largest = LARGEST_LABELS if is_labels else LARGEST_PNG
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
        problem = "leaves its folder"
    elif not is_labels and path.suffix.lower() != ".png":
        problem = f"is neither a PNG file nor {LABELS}"
    elif entry.file_size > largest:
        problem = f"has {entry.file_size} bytes, more than the {largest} allowed"
    else:
        return
    raise ConfigError(f"{name}: {entry.filename!r} {problem}; expected a zip made by EDM's tool.")


def _labels(name: str, archive: zipfile.ZipFile, files: list[str]) -> Classes | None:
    """Class numbers in the order of `files`, None if the zip has none."""
    if LABELS not in archive.namelist():
        return None
    try:
        pairs = json.loads(archive.read(LABELS))["labels"]
        if pairs is None:
            return None
        by_file = dict(pairs)
        labels = np.array([by_file.pop(file) for file in files])
    except KeyError as error:
        raise ConfigError(f"{name}: {LABELS} has no entry {error}.") from error
    except (*UNREADABLE, TypeError) as error:
        raise ConfigError(f"{name}: {LABELS} is not EDM's list of labels: {error}.") from error
    if by_file:
        raise ConfigError(f"{name}: {LABELS} labels {min(by_file)!r}, which is not in the zip.")
    if labels.dtype != np.int64 or labels.ndim != 1 or abs(labels).max() >= MOST_CLASSES:
        raise ConfigError(
            f"{name}: {LABELS} has labels that are no class numbers below {MOST_CLASSES}."
        )
    return labels.astype(np.int32)


def _image(
    name: str, archive: zipfile.ZipFile, file: str, shape: tuple[int, int, int] | None = None
) -> UInt8[np.ndarray, "h w c"]:
    try:
        content = archive.read(file)
    except UNREADABLE as error:
        raise ConfigError(f"{name}: {file} cannot be read: {error}; make it anew.") from error
    return decoded(f"{name}: {file}", content, shape)
