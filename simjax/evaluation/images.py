"""Image sets as a folder, a zip or an .npz.

Folders have the layout of EDM's generate.py, an .npz that of ADM's samples. Floats become bytes as
in the official evaluations: clamp(127.5 x + 128, 0, 255), truncated. Input files are untrusted:
sizes are checked before memory is allocated, and nothing in them is executed.
Called by evaluation/features.py, evaluation/reference.py and simjax/commands/evaluate.py.
"""

import zipfile
from collections.abc import Callable, Iterable
from typing import IO, Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from simjax.data import edm_zip, image_folder
from simjax.data.dataset import MOST_CLASSES, Classes, Dataset, Pixels
from simjax.data.image_file import (
    CHANNELS,
    KNOWN,
    LARGEST_FILE,
    LARGEST_SIDE,
    UNREADABLE,
    decoded,
    listed,
    summary,
)
from simjax.errors import ConfigError
from simjax.evaluation.statistics import require_finite
from simjax.runtime import storage
from simjax.runtime.monitor import to_uint8, write_png

Bytes = UInt8[np.ndarray, "n h w c"]

IN_A_FOLDER = 1000  # EDM's generate.py --subdirs
MOST_IMAGES = 10**7  # largest count accepted from a file header; our choice
EXPECTED = (
    f"expected a folder or a .zip of {KNOWN} files, or an .npz whose arr_0 is uint8 (n, h, w, 1 or "
    "3)"
)
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")  # stored with arr_0 in ADM's reference batches
HEADERS = {  # readers of .npy headers, by version
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def as_bytes(images: Pixels) -> Bytes:
    """Images as uint8: bytes unchanged, floats in [-1, 1] quantised.

    >>> as_bytes(np.array([[[[-1.0], [0.0], [1.0]]]], np.float32)).tolist()
    [[[[0], [128], [255]]]]

    Raises:
      ConfigError: NaN or infinity.
    """
    if images.dtype == np.uint8:
        return images
    require_finite("images", images)
    return to_uint8(images)


def write(path: Any, batches: Iterable[Bytes], labels: Int[np.ndarray, "n"] | None = None) -> None:
    """Writes batches to an .npz or, without labels, to a folder.

    Raises:
      ConfigError: the images are not uint8, or cannot be written.
    """
    if str(path).endswith(".npz"):
        write_npz(path, np.concatenate(list(batches)), labels)
    else:
        write_folder(path, batches)


def write_folder(directory: Any, batches: Iterable[Bytes], start: int = 0) -> None:
    """Writes DIRECTORY/000000/000000.png, ...: 1000 PNGs per subfolder (EDM's layout).

    Args:
      start: number of the first image; existing files with other numbers are kept.

    Raises:
      ConfigError: the images are not uint8, or one cannot be written; earlier ones are kept.
    """
    number = start
    for images in batches:
        _require_images("images to write", images.dtype, images.shape)
        for image in images:
            try:
                write_image(_numbered(directory, number), image)
            except ConfigError as error:
                raise ConfigError(
                    f"{error} The {number - start} images before it are kept."
                ) from error
            number += 1


def _numbered(directory: Any, number: int) -> epath.Path:
    return epath.Path(directory) / f"{number - number % IN_A_FOLDER:06d}" / f"{number:06d}.png"


def write_image(path: epath.Path, picture: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes a PNG atomically, and creates its folder.

    Raises:
      ConfigError: it cannot be written.
    """
    with storage.whole(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(partial, picture)


def write_npz(path: Any, images: Bytes, labels: Int[np.ndarray, "n"] | None = None) -> None:
    """Writes images (arr_0) and labels (arr_1) in the layout of ADM's samples.

    Raises:
      ConfigError: the images are not uint8, or cannot be written.
    """
    _require_images("images to write", images.dtype, images.shape)
    arrays = {"arr_0": images} | ({} if labels is None else {"arr_1": labels})
    write_arrays(path, **arrays)


def write_arrays(path: Any, **arrays: np.ndarray) -> None:
    """Writes an .npz atomically.

    Raises:
      ConfigError: it cannot be written.
    """
    with storage.whole(epath.Path(path)) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def read(path: Any, *, say: Callable[[str], None] = print) -> Dataset:
    """Opens a folder, zip or .npz of images; pixels are read lazily.

    Folders (recursively) and zips are sorted by name; an .npz has images in arr_0 and labels, if
    any, in arr_1, and is fast only when read in order.

    Args:
      say: callback for log lines about skipped files and images other than PNG.

    Raises:
      ConfigError: missing, of another format, or images of several sizes or another dtype.
    """
    source = epath.Path(path).expanduser()
    if source.is_dir():
        return _folder(source, say)
    if not source.exists():
        raise ConfigError(f"{path} does not exist; {EXPECTED}.")
    if source.suffix.lower() == ".zip":
        return edm_zip.open_zip(str(path), "train", say=say)
    return _npz(source, say)


def _folder(root: epath.Path, say: Callable[[str], None]) -> Dataset:
    files, left_out = image_folder.find(root)
    if not files:
        held = f" (only {listed(left_out)})" if left_out else ""
        raise ConfigError(f"{root} has no images{held}; {EXPECTED}.")
    shape = _decoded(files[0]).shape
    if line := summary(str(root), map(str, files), left_out):
        say(line)

    def read_files(indices: Classes) -> Bytes:
        images = np.empty((len(indices), *shape), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[:] = _decoded(files[index], shape)
        return images

    return Dataset(str(root), len(files), shape, None, 0, read_files)


def _decoded(
    path: epath.Path, shape: tuple[int, int, int] | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """Reads one image; `shape` is the expected shape, None accepts any."""
    try:
        if path.stat().length > LARGEST_FILE:
            raise ConfigError(
                f"{path} is larger than {LARGEST_FILE} bytes; expected a single image."
            )
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    return decoded(str(path), content, shape)


def _npz(path: epath.Path, say: Callable[[str], None]) -> Dataset:
    try:
        archive = zipfile.ZipFile(path.open("rb"))
        member = archive.open("arr_0.npy")
        count, *shape = _header(path, member)
        labels = _labels(path, archive, count) if "arr_1.npy" in archive.namelist() else None
    except (*UNREADABLE, KeyError) as error:
        raise ConfigError(f"{path} is not an .npz of images ({error}); {EXPECTED}.") from error
    start = member.tell()
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    others = [name for name in names if name not in ("arr_0", "arr_1", *STATISTICS)]
    if others:
        text = ", ".join(others)[:200].encode("unicode_escape").decode()
        say(f"{path}: {count} images (arr_0); ignored arrays: {text}")

    def read_members(indices: Classes) -> Bytes:
        images = np.empty((len(indices), *shape), np.uint8)
        try:
            for image, index in zip(images, indices, strict=True):
                member.seek(start + int(index) * image.nbytes)
                image[:] = np.frombuffer(member.read(image.nbytes), np.uint8).reshape(shape)
        except UNREADABLE as error:
            raise ConfigError(f"{path} is damaged: {error}; fetch or write it again.") from error
        return images

    label_dim = 0 if labels is None else int(labels.max(initial=0)) + 1
    return Dataset(str(path), count, tuple(shape), labels, label_dim, read_members)


def _header(path: epath.Path, member: IO[bytes]) -> tuple[int, ...]:
    """Shape of an image array, from its .npy header."""
    shape, in_columns, dtype = HEADERS[np.lib.format.read_magic(member)](member)
    _require_images(f"{path}: arr_0", dtype, shape)
    if in_columns:
        raise ConfigError(f"{path}: arr_0 is in Fortran order; save it in C order.")
    return shape


def _labels(path: epath.Path, archive: zipfile.ZipFile, count: int) -> Classes:
    with archive.open("arr_1.npy") as member:
        shape, _, dtype = HEADERS[np.lib.format.read_magic(member)](member)
        if shape != (count,) or dtype.kind not in "iu":
            raise ConfigError(
                f"{path}: arr_1 is {dtype} {shape}, expected an integer label for each of the "
                f"{count} images, or no arr_1."
            )
        labels = np.frombuffer(member.read(count * dtype.itemsize), dtype)
    if labels.max(initial=0) >= MOST_CLASSES:
        raise ConfigError(f"{path}: arr_1 has label {labels.max()}, expected < {MOST_CLASSES}.")
    return labels.astype(np.int32)


def _require_images(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    right = len(shape) == 4 and shape[3] in CHANNELS.values() and shape[0] <= MOST_IMAGES
    if dtype != np.uint8 or not right or not all(0 < side <= LARGEST_SIDE for side in shape[1:3]):
        raise ConfigError(
            f"{name}: {dtype} of shape {tuple(shape)}, expected uint8 (n, h, w, 1 or 3) with at "
            f"most {MOST_IMAGES} images and {LARGEST_SIDE} pixels per side."
        )
