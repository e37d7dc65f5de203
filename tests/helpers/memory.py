"""Peak memory of a Python function."""

import tracemalloc
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def peak(function: Callable[..., Result], *arguments: Any) -> tuple[Result, int]:
    """The function's result, and the peak bytes that one call allocates.

    The minimum over three calls, which excludes imports at the first call and threads of other
    tests.
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
