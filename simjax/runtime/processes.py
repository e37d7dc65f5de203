"""Multi-process runs: initialization, collectives, and stopping on SIGTERM.

Every process runs the same program in the same order; only the first writes files other than
checkpoints. Called from main.py, and wherever processes must agree.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from simjax.errors import ConfigError
from simjax.runtime import storage

NO_CLUSTER = "coordinator_address should be defined"  # JAX's message if it detects no cluster

_calls = itertools.count()
_signalled = False


class Preempted(SystemExit):
    """Ends the program with exit status 0 after SIGTERM, everything saved."""


def listen() -> None:
    """Makes SIGTERM a request to stop (see `stop_requested`).

    A second SIGTERM ends the process at once.
    """
    global _signalled
    _signalled = False
    signal.signal(signal.SIGTERM, _note_signal)


def join() -> None:
    """Initializes jax.distributed on TPU pods, SLURM steps and GKE JobSets.

    JAX detects these. Elsewhere set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID; without them the process runs alone. jax.distributed handles SIGTERM itself.

    Raises:
      ConfigError: some of the variables are missing, or not numbers.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    if any(given[1:]):
        try:
            address, (count, index) = given[0], map(int, given[1:])
            jax.distributed.initialize(address, count, index)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{', '.join(f'{n}={v}' for n, v in zip(names, given, strict=True))}: set all "
                f"three, as host:port and two numbers, or none of them ({error})."
            ) from error
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if NO_CLUSTER not in str(error):
            raise


def leave() -> None:
    """Shuts jax.distributed down and ignores SIGTERM from here on."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def require_shared(sees: bool, what: str) -> None:
    """Refuses storage that is not shared by all processes.

    Args:
      sees: whether this process sees the file that the first one has written.
      what: flag and value for the message, such as "--workdir=DIR".

    Raises:
      ConfigError: on every process, if any of them does not see it.
    """
    if not all_true(sees):
        raise ConfigError(
            f"not every process sees {what}: several hosts need a bucket (gs://...) or a shared "
            "file system; choose a path there."
        )


def reuse_compiled() -> None:
    """Turns on JAX's compilation cache, by default in simjax's cache directory.

    A directory already set in JAX (JAX_COMPILATION_CACHE_DIR) is kept.
    """
    if jax.config.jax_compilation_cache_dir is None:
        directory = storage.cache_directory() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(directory))


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """Context whose errors and Ctrl-C end the process immediately.

    Exit status 1 after an error, 130 after Ctrl-C. A regular exit would wait for the other
    processes, which wait for this one, and for threads that still write.
    """
    try:
        yield
    except KeyboardInterrupt:
        end_at_once("interrupted.", status=128 + signal.SIGINT)
    except Exception as error:
        if not isinstance(error, ConfigError):
            traceback.print_exc()
        end_at_once(str(error) or type(error).__name__)


def end_at_once(reason: str, *, status: int = 1) -> NoReturn:
    """Ends this process from any thread; JAX then ends the others."""
    which = f", process {jax.process_index()}" if jax.process_count() > 1 else ""
    print(f"simjax{which}: {reason}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def interrupted_later() -> Iterator[None]:
    """Context that defers Ctrl-C to its end; a second one acts immediately."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came = []

    def note(number: int, frame: Any) -> None:
        came.append((number, frame))
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])


def is_first() -> bool:
    """Whether this is process 0, which writes the run's files.

    >>> is_first()  # always True in a single-process run
    True
    """
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """Broadcasts numbers from the first process to all.

    Args:
      value: a tree of arrays, of the same shapes on every process.
    """
    if jax.process_count() == 1:
        return value
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(value))


def all_true(flag: bool) -> bool:
    """Whether `flag` is true on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).all())


def decided_by_first(decide: Callable[[], bool]) -> bool:
    """Runs `decide` on the first process and broadcasts its result.

    Raises:
      ConfigError: on every process, if `decide` raises one on the first.
    """
    refused, answer = None, False
    if is_first():
        try:
            answer = decide()
        except ConfigError as error:
            refused = error
    if not from_first(np.int32(refused is None)):
        raise refused or ConfigError("refused by the first process; see its message.")
    return bool(from_first(np.int32(answer)))


def largest(value: int) -> int:
    """The maximum of `value` over all processes."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def wait(name: str) -> None:
    """Barrier: returns once every process has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def by_first(action: Callable[[], Any], name: str) -> None:
    """Runs `action` on the first process while the others wait."""
    if is_first():
        action()
    wait(name)


def stop_requested() -> bool:
    """Whether any process has received SIGTERM.

    A collective: every process must call it equally often. The n-th calls of all processes return
    the same value, although the signal reaches them at different times.
    """
    if not jax.distributed.is_initialized():
        return _signalled
    return multihost_utils.reached_preemption_sync_point(next(_calls))


def stop_if_requested(state: str) -> None:
    """Ends the program if SIGTERM has come, where nothing needs saving.

    Args:
      state: continues the message "stopped by SIGTERM".

    Raises:
      Preempted: SIGTERM has come.
    """
    if stop_requested():
        stop(state)


def stop(state: str) -> None:
    """Ends the program after SIGTERM.

    Raises:
      Preempted: always.
    """
    if is_first():
        print(f"stopped by SIGTERM {state}; run the same command again to resume.", flush=True)
    raise Preempted(0)


def _note_signal(number: int, frame: Any) -> None:
    global _signalled
    _signalled = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
