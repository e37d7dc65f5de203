"""Finds the image files below a folder, following links, and counts others.

Called from evaluation/images.py.
"""

import os
from collections import Counter
from collections.abc import Iterator

from etils import epath

from simjax.data.image_file import FORMATS, is_hidden, kind_of, suffix
from simjax.errors import ConfigError

MOST_FILES = 10**7  # of any kind; our choice
MOST_SHOWN = 4  # names in a message; our choice


def find(root: epath.Path) -> tuple[list[epath.Path], Counter[str]]:
    """Sorted image files below a folder, and counts of others by kind.

    Raises:
      ConfigError: a broken link, a folder reached twice through links (its images would count
        twice, or endlessly), or a folder that cannot be read.
    """
    files: list[str] = []
    left_out: Counter[str] = Counter()
    broken: list[str] = []
    try:
        for path, is_file in _entries(str(root), left_out):
            if not is_file:
                broken.append(path)
            elif suffix(path) in FORMATS:
                files.append(path)
            else:
                left_out[kind_of(path)] += 1
            if len(files) + left_out.total() > MOST_FILES:
                raise ConfigError(f"{root} has more than {MOST_FILES} files; give a smaller one.")
    except OSError as error:
        raise ConfigError(
            f"{error.filename or root} cannot be read: {error.strerror or error}; expected a "
            "folder of images."
        ) from error
    if broken:
        raise ConfigError(
            f"{root}: {len(broken)} entries are neither files nor folders: "
            f"{', '.join(map(_described, sorted(broken)[:MOST_SHOWN]))}. Remove or repair them."
        )
    return [epath.Path(path) for path in sorted(files)], left_out


def _entries(root: str, left_out: Counter[str]) -> Iterator[tuple[str, bool]]:
    """Yields (path, is_file) for everything but folders; counts hidden entries."""
    if "://" in root:
        yield from _objects(epath.Path(root), left_out)
        return
    folders, seen = [root], {}
    while folders:
        folder = folders.pop()
        status = os.stat(folder)
        first = seen.setdefault((status.st_dev, status.st_ino), folder)
        if first != folder:
            raise ConfigError(
                f"{first} and {folder} are one folder, through a link: its images would count "
                "twice. Remove one of the two."
            )
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        for entry in inside:
            if is_hidden(entry.name):
                left_out["hidden folder(s)" if entry.is_dir() else "hidden file(s)"] += 1
            elif entry.is_dir():
                folders.append(entry.path)
            else:
                yield entry.path, entry.is_file()


def _objects(root: epath.Path, left_out: Counter[str]) -> Iterator[tuple[str, bool]]:
    """The same for a bucket, which has no links."""
    for inside, _, names in root.walk():
        parts = inside.relative_to(root).parts
        for name in names:
            if is_hidden(name) or any(map(is_hidden, parts)):
                left_out["hidden file(s)"] += 1
            else:
                yield str(inside / name), True


def _described(path: str) -> str:
    return f"{path} -> {os.readlink(path)}" if os.path.islink(path) else path
