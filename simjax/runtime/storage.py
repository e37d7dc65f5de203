"""Paths of run directories, on a disk or in a bucket (gs://...), and where commands write.

A destination is checked before anything is read or measured, and a file there is either absent or
whole. Called by run, monitor and the commands.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from etils import epath

from simjax.errors import ConfigError

AnyPath = TypeVar("AnyPath")  # pathlib.Path or epath.Path
GCS = ("tensorflow", "google.cloud.storage")  # epath's files of gs://, and Orbax's listings


def cache_directory() -> pathlib.Path:
    """$SIMJAX_CACHE, or ~/.cache/simjax.

    Raises:
      ConfigError: neither is known.
    """
    try:
        return pathlib.Path(os.environ.get("SIMJAX_CACHE") or "~/.cache/simjax").expanduser()
    except RuntimeError as error:  # in a container: no HOME, and a user without a passwd entry
        raise ConfigError(
            "there is no home directory to keep downloads and compiled programs in; set "
            "SIMJAX_CACHE=DIR."
        ) from error


def in_bucket(path: epath.PathLike) -> bool:
    """Whether files there are objects, replaced whole and only ever so."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path that Orbax takes, whatever directory the program was started in.

    Raises:
      ConfigError: in a bucket, whose packages are not installed.
    """
    if os.fspath(path).startswith("gs://") and not all(map(_is_installed, GCS)):
        raise ConfigError(f'{path} is in a bucket, which needs: pip install "simjax[gcs]".')
    path = epath.Path(path)  # whose resolve() would make gs:// a directory of this one
    return path if in_bucket(path) else path.expanduser().resolve()


def new_file(given: str, flag: str) -> epath.Path:
    """A file to be written: "~" is the home directory, its folder is made and writable.

    Args:
      flag: what a person gave it by, as "--out", for messages.

    Raises:
      ConfigError: a folder, no regular file, or it cannot be written.
    """
    path = _expanded(given, flag, "FILE")
    if given.endswith(("/", os.sep)) or path.is_dir():
        raise ConfigError(f"{flag}={given} is a folder, expected a file: {flag}={path / 'NAME'}.")
    if path.exists() and not (in_bucket(path) or os.path.isfile(path)):  # /dev/null
        raise ConfigError(f"{flag}={given} is no regular file; give the name of a new file.")
    require_writable(path.parent, f"{flag}={given}")
    return path


def new_folder(given: str, flag: str) -> epath.Path:
    """A folder to be written to: "~" is the home directory, it is made and writable.

    Raises:
      ConfigError: a file, or it cannot be made or written.
    """
    path = _expanded(given, flag, "FOLDER")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{flag}={given} is a file, expected a folder; give another name.")
    require_writable(path, f"{flag}={given}")
    return path


def new_file_or_folder(given: str, flag: str, suffixes: Collection[str]) -> epath.Path:
    """A file of one of these kinds, or else a folder: see `new_file` and `new_folder`.

    Raises:
      ConfigError: neither, or it cannot be written.
    """
    known = ", ".join([*(f"NAME{suffix}" for suffix in suffixes), "FOLDER/"])
    path = _expanded(given, flag, known)
    is_folder = path.is_dir() or given.endswith(("/", os.sep)) or not path.suffix
    if is_folder == (path.suffix in suffixes):
        raise ConfigError(f"{flag}={given}: expected one of {known}.")
    return new_folder(given, flag) if is_folder else new_file(given, flag)


def require_writable(folder: epath.Path, flag: str) -> None:
    """Makes the folder, in which a file is written and deleted.

    Raises:
      ConfigError: that cannot be done, naming the flag that asks for it.
    """
    probe = folder / f"probe.{os.getpid()}.tmp"
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink(missing_ok=True)  # another host's process may have this number too
    except Exception as error:  # a bucket's errors have no common type
        raise ConfigError(f"{flag} cannot be written: {_reason(error)}.") from error


def unusable(directory: epath.Path, error: Exception) -> ConfigError:
    """What a person reads of a run directory that cannot be read or written."""
    return ConfigError(
        f"workdir {directory} cannot be used: {_reason(error)}; choose another with --workdir=DIR."
    )


@contextlib.contextmanager
def whole(path: AnyPath) -> Iterator[AnyPath]:
    """A file beside `path` to write to, which takes its place at the end or is removed.

    Raises:
      ConfigError: it cannot be written, as on a full disk.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConfigError(f"{path} cannot be written: {_reason(error)}.") from error
        raise


def write_json(path: AnyPath, value: Any, indent: int = 2) -> None:
    """Writes a file that is either absent or whole.

    Raises:
      ConfigError: it cannot be written.
    """
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=indent) + "\n")


def _expanded(given: str, flag: str, expected: str) -> epath.Path:
    if not given:
        raise ConfigError(f"{flag}= is empty: expected {expected}.")
    path = epath.Path(given).expanduser()
    if os.fspath(path).startswith("~"):
        raise ConfigError(
            f"{flag}={given}: that home directory is not known; write the whole path."
        )
    return path


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # nor is its parent
        return False


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join((reason or str(error) or type(error).__name__).split())
