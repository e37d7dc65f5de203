"""Resumable HTTP downloads with retries that never mix versions of a file.

PART is the unfinished file; PART.version holds its ETag or Last-Modified, which must still match
when the download resumes. Called from cache.py, which verifies the complete file.
"""

import pathlib
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from http.client import HTTPException, HTTPResponse
from urllib.parse import urlsplit

from tqdm import tqdm

from simjax.errors import ConfigError

# All are our choice.
ATTEMPTS = 4
BACKOFF = 1.0  # seconds before the second attempt, doubled for each further one
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 18  # bytes
TRANSIENT = (408, 429, 500, 502, 503, 504)  # HTTP: timeout, too many requests, server errors
HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)", re.IGNORECASE)

Say = Callable[[str], None]


class TransferError(Exception):
    """A failed transfer that a retry may fix."""


def require_http(url: str) -> None:
    """Raises ConfigError for file://, ftp:// and other schemes."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"{url} cannot be downloaded: only http:// and https:// URLs can.")


def complete(url: str, part: pathlib.Path, *, by_hand: pathlib.Path, say: Say) -> None:
    """Downloads the rest of `part`; the caller holds a lock on it.

    Args:
      by_hand: path that error messages give for placing the file by hand.

    Raises:
      ConfigError: the download failed; received bytes are kept for the next attempt.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, part, by_hand, say)
            return
        except TransferError as error:
            if attempt == ATTEMPTS:
                raise ConfigError(
                    f"{url} cannot be downloaded: {error}. Run again to continue, or get the file "
                    f"another way and put it at {by_hand}."
                ) from error
            wait = BACKOFF * 2 ** (attempt - 1)
            say(f"{url}: {error}; trying again in {wait:g} s")
            time.sleep(wait)


def forget(part: pathlib.Path) -> None:
    """Deletes an unfinished file, then the record of its version."""
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _transfer(url: str, part: pathlib.Path, by_hand: pathlib.Path, say: Say) -> None:
    """Makes one request; appends the missing bytes or restarts from byte 0."""
    version = _version_file(part).read_text() if _version_file(part).exists() else ""
    have = part.stat().st_size if version and part.exists() else 0
    wanted = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    with _respond(url, wanted, part, by_hand) as response:
        start, total = _extent(response)
        unchanged = start == have and _version(response.headers) in ("", version)
        if start != 0 and not unchanged:
            forget(part)
            raise TransferError("the server's file has changed since the download began")
        if response.headers.get_content_type() == "text/html":
            _refuse_html(url, by_hand)
        _require_space(part, (total or 0) - start)
        _announce(url, start, total, say)
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None)
        with part.open("ab" if start else "wb") as file, bar:
            if not start:  # the old content is discarded: record the new version
                _version_file(part).write_text(_version(response.headers))
            for chunk in _chunks(response):
                if file.tell() == 0 and HTML.match(chunk):
                    _refuse_html(url, by_hand)
                file.write(chunk)
                bar.update(len(chunk))
    arrived = part.stat().st_size
    if total is not None and arrived != total:
        raise TransferError(f"the connection ended after {arrived} of {total} bytes")


def _respond(
    url: str, wanted: dict[str, str], part: pathlib.Path, by_hand: pathlib.Path
) -> HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "simjax"} | wanted)
    try:
        return urllib.request.build_opener(_HttpRedirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server returned {error.code} {error.reason}"
        if error.code == 416:  # range not satisfiable: the local part is at least as long
            forget(part)
        if error.code in (416, *TRANSIENT):
            raise TransferError(answer) from error
        raise ConfigError(
            f"{url}: {answer}; check the URL, or put the file at {by_hand}."
        ) from error
    except urllib.error.URLError as error:
        raise TransferError(str(error.reason)) from error
    except (OSError, HTTPException) as error:
        raise TransferError(str(error)) from error


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, HTTPException) as error:
            raise TransferError(f"the connection broke: {error}") from error
        if not chunk:
            return
        yield chunk


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """The first byte sent (-1 if unknown) and any given file size."""
    if response.status != 206:
        length = response.headers["Content-Length"] or ""
        return 0, int(length) if length.isdigit() else None
    given = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
    return (int(given[1]), int(given[2])) if given else (-1, None)


def _version(headers: Message) -> str:
    """A validator of the version for If-Range (RFC 9110, section 13.1.5)."""
    etag = headers["ETag"] or ""
    strong = etag and not etag.startswith("W/")
    return etag if strong else headers["Last-Modified"] or ""


def _version_file(part: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(f"{part}.version")


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        require_http(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_html(url: str, by_hand: pathlib.Path) -> None:
    raise ConfigError(
        f"{url} is a web page, not a file (perhaps a log-in page or a notice); download the file "
        f"with a browser and put it at {by_hand}."
    )


def _require_space(part: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise ConfigError(
            f"{part.parent} has {free / 1e6:.1f} MB free, the download needs {needed / 1e6:.1f} MB "
            "more; free some space, or set SIMJAX_CACHE to another directory."
        )


def _announce(url: str, start: int, total: int | None, say: Say) -> None:
    size = "" if total is None else f", {total / 1e6:.1f} MB"
    say(f"downloading {url}{size}{f', from byte {start}' if start else ''}")
