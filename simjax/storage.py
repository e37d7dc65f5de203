"""Paths of run directories: on a disk, or in a bucket (gs://...). Called by run and monitor."""

import os

from etils import epath


def in_bucket(path: epath.PathLike) -> bool:
    """Whether files there are objects, replaced whole and only ever so."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path that Orbax takes, whatever directory the program was started in."""
    path = epath.Path(path)  # whose resolve() would make gs:// a directory of this one
    return path if in_bucket(path) else path.expanduser().resolve()
