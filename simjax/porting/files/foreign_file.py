"""A foreign file: its bytes mapped read-only, the memory it may claim, and how it is refused.

Every reader (read_pickle.py, read_torch.py, read_safetensors.py, read_weights.py) works inside
`reading`, the one place where whatever goes wrong becomes a ConfigError that names the file.
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

# Our choices: twice the file's size and 16 MiB bound a reader's memory, the mapped file included.
SMALL_FILE_BYTES = 16 * 2**20
SHARE_OF_FILE = 2

MOST_DIMENSIONS = 64  # NumPy's

# Bytes that Python's JSON reader may take for a byte of text, and for what these signs stand for.
TEXT_COST = 6
OBJECT_COSTS = {b"[": 224, b"{": 224, b":": 400, b",": 48}

NOT_WEIGHTS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS",
}
DOWNLOAD_AGAIN = "download it again and compare its size with the publisher's"


class Budget:
    """The bytes that may still be claimed for objects built from one file.

    What is freed is not given back, so the sum bounds the peak. Arrays are views of the mapped
    file and cost next to nothing; what is spent pays for the objects that describe them.
    """

    def __init__(self, file_bytes: int):
        self.left = SMALL_FILE_BYTES + file_bytes // SHARE_OF_FILE

    def spend(self, amount: int) -> None:
        """Takes `amount` bytes, before they are allocated.

        Raises:
          ConfigError: when the file has claimed more than files of its size need.
        """
        self.left -= amount
        if self.left < 0:
            raise ConfigError(
                "holds far more objects than weights of its size need: it is damaged or made to "
                f"exhaust memory; {DOWNLOAD_AGAIN}"
            )


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[tuple[memoryview, Budget]]:
    """The file's bytes, mapped and read-only, and its budget.

    Raises:
      ConfigError: "PATH: what is wrong; what to do", for every exception of the block too.
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
    """A JSON object, built once what it will take is known to fit the budget.

    Raises:
      ConfigError: naming `what` for another JSON value and for two entries of one name. Text that
        is no JSON, or too deep for its reader, is refused by `reading`.
    """
    budget.spend(TEXT_COST * len(text))
    raw = bytes(text)
    budget.spend(sum(raw.count(sign) * cost for sign, cost in OBJECT_COSTS.items()))
    entries = json.loads(raw.decode(), object_pairs_hook=functools.partial(_without_repeats, what))
    if not isinstance(entries, dict):
        raise ConfigError(f"{what} is a {type(entries).__name__}, not a dict; {DOWNLOAD_AGAIN}")
    return entries


def shown(name: str) -> str:
    """A name from a foreign file, fit for a message: short, without control characters."""
    return name[:80].encode("unicode_escape").decode()


def are_counts(numbers: Sequence[Any]) -> bool:
    """Whether a foreign shape, stride or pair of offsets is one: few whole numbers of 63 bits."""
    return len(numbers) <= MOST_DIMENSIONS and all(
        type(number) is int and 0 <= number < 2**63 for number in numbers
    )


def refuse_nonfinite(tensors: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Raises a ConfigError that names every tensor with a NaN or an infinity."""
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
    """Maps a regular file that is neither empty nor text that stands for the file wanted."""
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
                f"{kind}, not weights: the download gave that instead of the file; "
                "download it again, signed in where the publisher asks for it"
            )
    return data
