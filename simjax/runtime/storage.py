"""Paths of run directories and outputs, on disk or gs:// buckets.

An output path is checked before anything is read or computed, and files are written atomically.
Called by run, monitor and the commands.
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
GCS = ("tensorflow", "google.cloud.storage")  # epath opens gs:// files, Orbax lists them


def cache_directory() -> pathlib.Path:
    """$SIMJAX_CACHE, or ~/.cache/simjax.

    Raises:
      ConfigError: neither the variable nor a home directory is set.
    """
    try:
        return pathlib.Path(os.environ.get("SIMJAX_CACHE") or "~/.cache/simjax").expanduser()
    except RuntimeError as error:  # in a container: no HOME, and a user without a passwd entry
        raise ConfigError(
            "no home directory for downloads and compiled programs; set SIMJAX_CACHE=DIR."
        ) from error


def in_bucket(path: epath.PathLike) -> bool:
    """Whether the path is in a bucket, where files cannot grow.

    >>> in_bucket("gs://bucket/run"), in_bucket("runs/digits")
    (True, False)
    """
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Absolute path, as Orbax needs it; gs:// paths are unchanged.

    Raises:
      ConfigError: gs:// without its packages.

    >>> absolute("runs") == absolute(".") / "runs"
    True
    """
    if os.fspath(path).startswith("gs://") and not all(map(_is_installed, GCS)):
        raise ConfigError(f'{path} is in a bucket, which needs: pip install "simjax[gcs]".')
    path = epath.Path(path)  # resolve() would put gs:// under the current directory
    return path if in_bucket(path) else path.expanduser().resolve()


def new_file(given: str, flag: str) -> epath.Path:
    """Path of an output file, whose folder is created and writable.

    Args:
      given: the flag's value; "~" is expanded.
      flag: for messages, such as "--out".

    Raises:
      ConfigError: it is a folder or another non-regular file, or cannot be written.
    """
    path = _expanded(given, flag, "FILE")
    if given.endswith(("/", os.sep)) or path.is_dir():
        raise ConfigError(f"{flag}={given} is a folder, expected a file: {flag}={path / 'NAME'}.")
    if path.exists() and not (in_bucket(path) or os.path.isfile(path)):  # /dev/null
        raise ConfigError(f"{flag}={given} is not a regular file; give the name of a new file.")
    require_writable(path.parent, f"{flag}={given}")
    return path


def new_folder(given: str, flag: str) -> epath.Path:
    """Path of an output folder, which is created and writable.

    Args:
      given, flag: as in `new_file`.

    Raises:
      ConfigError: it is a file, or cannot be created or written.
    """
    path = _expanded(given, flag, "FOLDER")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{flag}={given} is a file, expected a folder; give another name.")
    require_writable(path, f"{flag}={given}")
    return path


def new_file_or_folder(given: str, flag: str, suffixes: Collection[str]) -> epath.Path:
    """Path of an output file with a known suffix, or a folder.

    Args:
      given, flag: as in `new_file`.

    Raises:
      ConfigError: another suffix, or it cannot be written.
    """
    known = ", ".join([*(f"NAME{suffix}" for suffix in suffixes), "FOLDER/"])
    path = _expanded(given, flag, known)
    is_folder = path.is_dir() or given.endswith(("/", os.sep)) or not path.suffix
    if is_folder == (path.suffix in suffixes):
        raise ConfigError(f"{flag}={given}: expected one of {known}.")
    return new_folder(given, flag) if is_folder else new_file(given, flag)


def require_writable(folder: epath.Path, flag: str) -> None:
    """Creates a folder and checks that files can be written there.

    Args:
      flag: start of the message.

    Raises:
      ConfigError: the folder or a test file cannot be created.
    """
    probe = folder / f"probe.{os.getpid()}.tmp"
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink(missing_ok=True)  # a process of another host may have the same number
    except Exception as error:  # a bucket's errors have no common type
        raise ConfigError(f"{flag} cannot be written: {_reason(error)}.") from error


def unusable(directory: epath.Path, error: Exception) -> ConfigError:
    """The error for a run directory that cannot be read or written."""
    return ConfigError(
        f"workdir {directory} cannot be used: {_reason(error)}; choose another with --workdir=DIR."
    )


@contextlib.contextmanager
def whole(path: AnyPath) -> Iterator[AnyPath]:
    """Context for an atomic write; yields a temporary path.

    The temporary file is renamed to `path` at the end, or removed after an error.

    Raises:
      ConfigError: the file cannot be written, e.g. on a full disk.

    >>> with whole(pathlib.Path("numbers.txt")) as partial:
    ...     _ = partial.write_text("1 2 3")
    >>> pathlib.Path("numbers.txt").read_text()
    '1 2 3'
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
    """Writes a JSON file atomically.

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
            f"{flag}={given}: that home directory was not found; give an absolute path."
        )
    return path


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join((reason or str(error) or type(error).__name__).split())
