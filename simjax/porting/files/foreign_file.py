"""Untrusted files: read-only mapping, a memory budget, and errors naming the file.

Every reader (read_pickle.py, read_torch.py, read_safetensors.py, read_weights.py) works inside
`reading`, the one place that converts every exception into a ConfigError with the file's path.
"""

import contextlib
import functools
import json
import mmap
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simjax.errors import ConfigError

# Our choices: a reader's memory, mapped file included, is at most twice the file plus 16 MiB.
SMALL_FILE_BYTES = 16 * 2**20
SHARE_OF_FILE = 2

MOST_DIMENSIONS = 64  # NumPy's limit

# Bytes that Python's JSON parser may allocate per byte of text, and per occurrence of a character.
TEXT_COST = 6
OBJECT_COSTS = {b"[": 224, b"{": 224, b":": 400, b",": 48}

NOT_WEIGHTS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
}
DOWNLOAD_AGAIN = "download it again and compare its size with the publisher's"


class Budget:
    """Bytes that may still be allocated for objects built from one file.

    Freed memory is not returned, so the sum is an upper bound on the peak. Arrays are views of the
    mapped file and cost almost nothing; the budget is for the Python objects that describe them.
    """

    def __init__(self, file_bytes: int):
        self.left = SMALL_FILE_BYTES + file_bytes // SHARE_OF_FILE

    def spend(self, amount: int) -> None:
        """Subtracts `amount` bytes, before they are allocated.

        Raises:
          ConfigError: the file's objects exceed the budget of a file of its size.
        """
        self.left -= amount
        if self.left < 0:
            raise ConfigError(
                "holds far more objects than weights of its size need: it is damaged or made to "
                f"exhaust memory; {DOWNLOAD_AGAIN}"
            )


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[tuple[memoryview, Budget]]:
    """Maps a file read-only and yields its bytes and memory budget.

    Raises:
      ConfigError: "PATH: problem; remedy", also in place of any exception inside the block.
    """
    try:
        data = _mapped(path)
        yield data, Budget(len(data))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a weight file") from error
    except Exception as error:  # damaged bytes may fail anywhere
        problem = repr(error)[:200]
        raise ConfigError(
            f"{path}: damaged, or not the kind of file expected ({problem}); {DOWNLOAD_AGAIN}"
        ) from error


def json_object(text: memoryview, what: str, budget: Budget) -> dict[str, Any]:
    """Parses a JSON object, after charging its memory to the budget.

    Raises:
      ConfigError: another JSON value, or a duplicate key; the message starts with `what`. For
        invalid or too deeply nested JSON, `reading` raises.
    """
    budget.spend(TEXT_COST * len(text))
    raw = bytes(text)
    budget.spend(sum(raw.count(sign) * cost for sign, cost in OBJECT_COSTS.items()))
    entries = json.loads(raw.decode(), object_pairs_hook=functools.partial(_without_repeats, what))
    if not isinstance(entries, dict):
        raise ConfigError(f"{what} is a {type(entries).__name__}, not a dict; {DOWNLOAD_AGAIN}")
    return entries


def shown(name: str) -> str:
    r"""A name from an untrusted file, shortened and escaped for a message.

    >>> shown("layer\n")
    'layer\\n'
    """
    return name[:80].encode("unicode_escape").decode()


def are_counts(numbers: Sequence[Any]) -> bool:
    """Whether these are at most 64 nonnegative integers of 63 bits.

    >>> are_counts([2, 3]), are_counts([-1, 3]), are_counts([2.0, 3])
    (True, False, False)
    """
    return len(numbers) <= MOST_DIMENSIONS and all(
        type(number) is int and 0 <= number < 2**63 for number in numbers
    )


def refuse_nonfinite(tensors: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Raises a ConfigError naming every tensor that holds NaN or infinity."""
    bad = [shown(name) for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if bad:
        raise ConfigError(
            f"{path}: {len(bad)} of {len(tensors)} tensors hold NaN or infinity "
            f"({', '.join(bad)}); {DOWNLOAD_AGAIN}, or use other weights"
        )


def _without_repeats(what: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ConfigError(f"{what} has two entries of one name; {DOWNLOAD_AGAIN}")
    return entries


def _mapped(path: str | os.PathLike) -> memoryview:
    """Maps a regular file; rejects empty files, web pages and LFS pointers."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError("not a regular file; give the path of a weight file")
    if not status.st_size:
        raise ConfigError(f"an empty file; {DOWNLOAD_AGAIN}")
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    start = bytes(data[:512]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, kind in NOT_WEIGHTS.items():
        if start.startswith(beginning):
            raise ConfigError(
                f"{kind}, not weights: the download returned it in place of the file; "
                "download it again, signed in if the publisher requires it"
            )
    return data
