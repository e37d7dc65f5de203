"""Download cache with one file per URL, verified at every use.

A file in the cache is complete or absent.
A download is stored as HASH-NAME (HASH of its URL), a file placed by hand as NAME. A .json next to
it records its URL, size and sha256 at the first use. Called from porting/zoo.py.
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from etils import epath

from simjax.errors import ConfigError
from simjax.porting.files import download
from simjax.porting.files.download import Say
from simjax.runtime import storage

CHUNK = 1 << 20  # bytes hashed at a time; our choice


class LocalFile(NamedTuple):
    """A local file, its checksum, and the source that the user gave."""

    path: epath.Path
    sha256: str
    source: str


def fetch(url: str, *, sha256: str = "", say: Say = print) -> LocalFile:
    """The cached file of an http(s) URL, downloaded at its first use.

    A cache hit needs no network.

    Args:
      sha256: expected checksum; "" takes the one recorded at the first use.

    Raises:
      ConfigError: not reachable, not a file, damaged, or another checksum than expected.
    """
    download.require_http(url)
    path, by_hand = _paths(url)
    try:
        found = _find(url, path, by_hand)
        if found is not None and _record(found):
            return LocalFile(epath.Path(found), _verified(found, sha256), url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, say):
            return _first_use(url, path, by_hand, sha256, say)
    except OSError as error:
        raise ConfigError(
            f"the cache {storage.cache_directory()} cannot be used: {error}; set SIMJAX_CACHE to "
            "another one."
        ) from error


def digest(path: epath.Path | pathlib.Path) -> str:
    """sha256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()


def _paths(url: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Paths of a URL's download and of a file placed by hand."""
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path.rpartition("/")[2]))
    by_hand = storage.cache_directory() / (name.strip(".")[-100:] or "file")
    url_hash = hashlib.sha256(url.encode()).hexdigest()[:8]
    return by_hand.with_name(f"{url_hash}-{by_hand.name}"), by_hand


def _first_use(
    url: str, path: pathlib.Path, by_hand: pathlib.Path, sha256: str, say: Say
) -> LocalFile:
    """Downloads a file unless it exists; records its size and checksum."""
    found = _find(url, path, by_hand)
    if found is None:
        found = _downloaded(url, path, by_hand, sha256, say)
    elif not _record(found):
        say(f"using {found}, which was put there by hand, for {url}")
    checksum = _verified(found, sha256)
    if not _record(found):
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        size = found.stat().st_size
        record = {"url": url, "size": size, "sha256": checksum, "date": date}
        storage.write_json(_record_file(found), record)
    return LocalFile(epath.Path(found), checksum, url)


def _downloaded(
    url: str, path: pathlib.Path, by_hand: pathlib.Path, sha256: str, say: Say
) -> pathlib.Path:
    part = pathlib.Path(f"{path}.part")
    download.complete(url, part, by_hand=by_hand, say=say)
    actual, expected = digest(part), sha256 or _record(path).get("sha256", "")
    if expected not in ("", actual):
        download.forget(part)
        raise ConfigError(
            f"{url}: the download has sha256 {actual}, expected {expected}, and was deleted. Fix "
            f"the expected sha256, or delete {_record_file(path)} if an earlier download set it."
        )
    _record_file(path).unlink(missing_ok=True)  # record of a file since deleted
    part.replace(path)
    download.forget(part)
    say(f"downloaded {path}")
    return path


def _find(url: str, *candidates: pathlib.Path) -> pathlib.Path | None:
    """The first candidate that exists and is not recorded for another URL."""
    fits = (path for path in candidates if _record(path).get("url", url) == url)
    return next((path for path in fits if path.is_file()), None)


def _verified(path: pathlib.Path, sha256: str) -> str:
    """The checksum of a cached file, compared with its record and `sha256`."""
    actual, record = digest(path), _record(path)
    if actual != record.get("sha256", actual):
        raise ConfigError(
            f"{path} is damaged: sha256 {actual}, but {record['sha256']} at its first use on "
            f"{record['date']}; delete the file to download it again."
        )
    if sha256 not in ("", actual):
        raise ConfigError(
            f"{path} has sha256 {actual}, expected {sha256}; fix the expected sha256, or delete "
            "the file to download it again."
        )
    return actual


def _record_file(path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(f"{path}.json")


def _record(path: pathlib.Path) -> dict[str, Any]:
    """The record of a file's first use, {} if there is none."""
    try:
        return dict(json.loads(_record_file(path).read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{_record_file(path)} is damaged ({error}); delete it.") from error


@contextlib.contextmanager
def _locked(path: pathlib.Path, say: Say) -> Iterator[None]:
    """Lock between processes and threads; the kernel releases it after a kill."""
    with pathlib.Path(f"{path}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is downloading {path.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
