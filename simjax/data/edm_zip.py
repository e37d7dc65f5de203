"""EDM's data set zips: image files, and dataset.json with their classes.

dataset.json is {"labels": [["00000/img00000000.png", 3], ...]}, or {"labels": null} (NVlabs/edm,
dataset_tool.py). Images are decoded when they are read. Zips are untrusted: sizes are checked
before memory is allocated, and nothing is extracted to disk.
"""

import json
import pathlib
import zipfile
from collections import Counter
from collections.abc import Callable

import numpy as np
from etils import epath
from jaxtyping import UInt8

from simjax.data.dataset import MOST_CLASSES, Classes, Dataset, Pixels, require_train
from simjax.data.image_file import (
    FORMATS,
    KNOWN,
    LARGEST_FILE,
    UNREADABLE,
    decoded,
    is_hidden,
    kind_of,
    listed,
    suffix,
    summary,
)
from simjax.errors import ConfigError

LABELS = "dataset.json"
LARGEST_LABELS = 256 << 20  # bytes; ImageNet's file has 50 MB; our choice


def open_zip(where: str, split: str, *, say: Callable[[str], None] = print) -> Dataset:
    """The images of an EDM zip, sorted by name.

    Everything may be inside one additional top folder, as some archivers produce.

    Args:
      say: callback for a message if files were left out or not all images are PNG.

    Raises:
      ConfigError: missing file, not a zip of images of one size, or inconsistent labels.
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
    files, left_out = _image_files(name, archive)
    if not files:
        held = f", but {listed(left_out)}" if left_out else ""
        raise ConfigError(f"{name} has no images{held}; expected {KNOWN} files.")
    labels = _labels(name, archive, files)
    shape = _image(name, archive, files[0]).shape
    if line := summary(name, files, left_out):
        say(line)

    def read(indices: Classes) -> Pixels:
        images = np.empty((len(indices), *shape), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[:] = _image(name, archive, files[index], shape)
        return images

    label_dim = 0 if labels is None else int(labels.max(initial=0)) + 1
    return Dataset(name, len(files), shape, labels, label_dim, read)


def _image_files(name: str, archive: zipfile.ZipFile) -> tuple[list[str], Counter[str]]:
    """Sorted names of the image files; counts of other files by kind.

    Raises:
      ConfigError: an entry points outside the archive, is too large, or is duplicated.
    """
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len({entry.filename for entry in entries}) != len(entries):
        raise ConfigError(f"{name} has two files with the same name; create the zip again.")
    files: list[str] = []
    left_out: Counter[str] = Counter()
    for entry in entries:
        path = _harmless(name, entry)
        if any(map(is_hidden, path.parts)):
            left_out["hidden file(s)"] += 1
        elif suffix(path.name) in FORMATS:
            files.append(entry.filename)
        elif path.name != LABELS:
            left_out[kind_of(path.name)] += 1
    return sorted(files), left_out


def _harmless(name: str, entry: zipfile.ZipInfo) -> pathlib.PurePosixPath:
    """The path of an entry, after checking its name and size."""
    path = pathlib.PurePosixPath(entry.filename)
    largest = LARGEST_LABELS if path.name == LABELS else LARGEST_FILE
    is_read = path.name == LABELS or suffix(path.name) in FORMATS
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
        problem = "leaves its folder"
    elif is_read and entry.file_size > largest:
        problem = f"has {entry.file_size} bytes, more than the {largest} allowed"
    else:
        return path
    raise ConfigError(f"{name}: {entry.filename!r} {problem}; expected a zip made by EDM's tool.")


def _label_file(name: str, archive: zipfile.ZipFile, files: list[str]) -> str | None:
    """Path of dataset.json, at the top or in the only top folder.

    None without one."""
    parts = (file.split("/") for file in archive.namelist())
    found = ["/".join(p) for p in parts if p[-1] == LABELS and not any(map(is_hidden, p))]
    if not found:
        return None
    root = found[0].removesuffix(LABELS)
    if len(found) > 1 or not all(file.startswith(root) for file in files):
        raise ConfigError(
            f"{name}: {', '.join(map(repr, found[:2]))} next to images in other folders; expected "
            f"one {LABELS}, above all images. Pack each data set into a separate zip."
        )
    return found[0]


def _labels(name: str, archive: zipfile.ZipFile, files: list[str]) -> Classes | None:
    """Class numbers in the order of `files`; None for an unlabelled zip."""
    found = _label_file(name, archive, files)
    if found is None:
        return None
    inside = [file.removeprefix(found.removesuffix(LABELS)) for file in files]
    try:
        pairs = json.loads(archive.read(found))["labels"]
        if pairs is None:
            return None
        by_file = dict(pairs)
        labels = np.array([by_file.pop(file) for file in inside])
    except KeyError as error:
        raise ConfigError(f"{name}: {LABELS} has no entry {error}.") from error
    except (*UNREADABLE, TypeError) as error:
        raise ConfigError(f"{name}: {LABELS} is not EDM's list of labels: {error}.") from error
    if by_file:
        raise ConfigError(f"{name}: {LABELS} labels {min(by_file)!r}, which is not in the zip.")
    if labels.dtype != np.int64 or labels.ndim != 1 or abs(labels).max() >= MOST_CLASSES:
        raise ConfigError(
            f"{name}: {LABELS} has labels that are not class numbers below {MOST_CLASSES}."
        )
    return labels.astype(np.int32)


def _image(
    name: str, archive: zipfile.ZipFile, file: str, shape: tuple[int, int, int] | None = None
) -> UInt8[np.ndarray, "h w c"]:
    try:
        content = archive.read(file)
    except UNREADABLE as error:
        raise ConfigError(
            f"{name}: {file} cannot be read: {error}; create the zip again."
        ) from error
    return decoded(f"{name}: {file}", content, shape)
