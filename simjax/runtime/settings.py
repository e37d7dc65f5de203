"""JAX settings that change the samples of a seed, fixed by simjax.

A shell or notebook may have set other values, e.g. JAX_ENABLE_X64=1. Commands fix ours for the
whole process (command_line.start), API functions while they run. Settings not listed here either
change no numbers (debugging) or are set where they are used (matmul precision: networks/).
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

HELD = {  # JAX's own defaults
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}
SEED_OFFSET = "jax_random_seed_offset"  # added to every seed; JAX has no context manager for it


def hold() -> None:
    """Fixes the settings for this process and its child processes.

    JAX need not be imported yet.
    """
    for name, value in (HELD | {SEED_OFFSET: 0}).items():
        os.environ[name.upper()] = str(value)
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, value)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Context with simjax's settings; restores the caller's on exit."""
    import jax

    with contextlib.ExitStack() as stack:
        for name, value in HELD.items():
            if getattr(jax.config, name) != value:  # JAX would recompile for a redundant context
                stack.enter_context(getattr(jax, name.removeprefix("jax_"))(value))
        if offset := getattr(jax.config, SEED_OFFSET):
            stack.callback(jax.config.update, SEED_OFFSET, offset)
            jax.config.update(SEED_OFFSET, 0)
        yield


def independent(function: Function) -> Function:
    """Decorator: runs a function with simjax's JAX settings.

    >>> @independent
    ... def x64():
    ...     import jax
    ...
    ...     return jax.config.jax_enable_x64
    >>> x64()  # also under JAX_ENABLE_X64=1
    False
    """

    @functools.wraps(function)
    def with_ours(*args: Any, **kwargs: Any) -> Any:
        with held():
            return function(*args, **kwargs)

    return with_ours
