"""Memory that a call has freed stays with the process for the next one.

Called from main.py and benchmark.py.
"""

import ctypes
import platform

import jax

# Parameters of mallopt(3), from malloc.h of the GNU C library.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER = -1


def keep_freed() -> None:
    """Has malloc keep it, on CPUs and with the GNU C library; called before JAX has devices.

    XLA asks malloc for a call's temporaries as one block, which malloc maps from the system and
    returns to it when the call is over. Every call then begins with pages that the system has yet
    to find and clear: 420 000 in a cifar10 step of four images. malloc can be told to keep what the
    main thread frees, large as it may be, but not what others do: calls are therefore not handed to
    a thread of JAX's, and return when they are done. The process holds on to the most that it has
    needed, and to a few blocks more: one in which something lives on is not whole again. On GPUs
    and TPUs, and with another C library, malloc stays as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # of CPUs alone, on any machine
    if jax.default_backend() == "cpu":
        malloc = ctypes.CDLL(None)
        malloc.mallopt(M_TRIM_THRESHOLD, NEVER)
        malloc.mallopt(M_MMAP_MAX, 0)
