"""Paths of run directories: on a disk, or in a bucket (gs://...); and folders that can be written.

Called by run, monitor and the commands.
"""

import os

from etils import epath

from simjax.config import ConfigError


def in_bucket(path: epath.PathLike) -> bool:
    """Whether files there are objects, replaced whole and only ever so."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path that Orbax takes, whatever directory the program was started in."""
    path = epath.Path(path)  # whose resolve() would make gs:// a directory of this one
    return path if in_bucket(path) else path.expanduser().resolve()


def require_writable(folder: epath.Path, flag: str) -> None:
    """Makes the folder, in which a file is written and deleted.

    Raises:
      ConfigError: that cannot be done, naming the flag that asks for it.
    """
    probe = folder / f"probe.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # a bucket's errors have no common type
        reason = " ".join(str(error).split())
        raise ConfigError(f"{flag} cannot be written: {reason}.") from error
