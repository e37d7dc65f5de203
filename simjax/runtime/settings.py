"""JAX's settings on which the samples of a seed would depend, at the values that simjax takes.

A shell or a notebook may have set others, by JAX_ENABLE_X64=1 and the like. Commands hold ours for
the whole process (command_line.start), functions of the API while they run. What is not here either
changes no numbers (debugging) or is decided where it matters (matmul precision: networks/).
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
SEED_OFFSET = "jax_random_seed_offset"  # added to every seed; has no context of its own


def hold() -> None:
    """Sets them for the process, and for what it starts; JAX need not be imported yet."""
    for name, value in (HELD | {SEED_OFFSET: 0}).items():
        os.environ[name.upper()] = str(value)
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, value)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Sets them for a while; the caller's come back."""
    import jax

    with contextlib.ExitStack() as stack:
        for name, value in HELD.items():
            if getattr(jax.config, name) != value:  # or JAX would compile anew for the context
                stack.enter_context(getattr(jax, name.removeprefix("jax_"))(value))
        if offset := getattr(jax.config, SEED_OFFSET):
            stack.callback(jax.config.update, SEED_OFFSET, offset)
            jax.config.update(SEED_OFFSET, 0)
        yield


def independent(function: Function) -> Function:
    """Has a function run with simjax's settings, whatever its caller's are."""

    @functools.wraps(function)
    def with_ours(*args: Any, **kwargs: Any) -> Any:
        with held():
            return function(*args, **kwargs)

    return with_ours
