"""The memory that Python takes."""

import tracemalloc
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def peak(function: Callable[..., Result], *arguments: Any) -> tuple[Result, int]:
    """The function's last result, and the bytes that a call allocates at its highest.

    Of three calls the least: threads that other tests have left, and what is imported at a first
    call, are not what it takes.
    """
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        try:
            result = function(*arguments)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return result, min(peaks)
