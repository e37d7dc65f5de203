"""Several processes that act as one, and the request to stop that a scheduler sends.

Every process runs the same program in the same order; only the first writes files that are not
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

NO_CLUSTER = "coordinator_address should be defined"  # what JAX says where it detects none

_calls = itertools.count()
_signalled = False


class Preempted(SystemExit):
    """SIGTERM came and all is saved: ends the program with exit status 0."""


def listen() -> None:
    """From here on SIGTERM is a request to stop, see `asked_to_stop`; a second one ends it."""
    global _signalled
    _signalled = False
    signal.signal(signal.SIGTERM, _note_signal)


def join() -> None:
    """Joins the other processes of a TPU pod, a SLURM step or a JobSet; alone anywhere else.

    JAX detects these. Elsewhere JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say it. JAX then listens to SIGTERM itself.

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
    """Parts from the other processes; what ends now need not be stopped any more."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def require_shared(sees: bool, what: str) -> None:
    """Refuses a place where a process does not see what the first one has written.

    Args:
      sees: whether this process does.

    Raises:
      ConfigError: on every process, if it is none of all that they share.
    """
    if not all_true(sees):
        raise ConfigError(
            f"not every process sees {what}: several hosts need a bucket (gs://...) or a shared "
            "file system; choose a place there."
        )


def reuse_compiled() -> None:
    """Compiled programs are kept in simjax's cache, unless JAX has been told of another place."""
    if jax.config.jax_compilation_cache_dir is None:
        directory = storage.cache_directory() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(directory))


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """An error or Ctrl-C ends this process there and then, with exit status 1 or 130.

    An orderly exit would wait for the other processes, which wait for this one, and for threads
    that still write.
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
    """Ends this process, from any thread; the others notice that it is gone."""
    which = f", process {jax.process_index()}" if jax.process_count() > 1 else ""
    print(f"simjax{which}: {reason}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def interrupted_later() -> Iterator[None]:
    """Ctrl-C inside the block takes effect at its end; a second one at once."""
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
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """The first process's numbers (arrays of one shape, or a tree of them) on every process."""
    if jax.process_count() == 1:
        return value
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(value))


def all_true(flag: bool) -> bool:
    """Whether it is true of every process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).all())


def decided_by_first(decide: Callable[[], bool]) -> bool:
    """What the first process decides, on every process; one that it refuses ends all of them.

    Raises:
      ConfigError: of the first process; the others point to its message.
    """
    refused, answer = None, False
    if is_first():
        try:
            answer = decide()
        except ConfigError as error:
            refused = error
    if not from_first(np.int32(refused is None)):
        raise refused or ConfigError("refused by the first process, whose message says why.")
    return bool(from_first(np.int32(answer)))


def largest(value: int) -> int:
    """The largest of every process's values."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def wait(name: str) -> None:
    """Until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def by_first(action: Callable[[], Any], name: str) -> None:
    """The first process does it, and the others wait until it is done."""
    if is_first():
        action()
    wait(name)


def asked_to_stop() -> bool:
    """Whether SIGTERM has come to any process.

    Every process must ask equally often; all get the same answer to the same question, though the
    signal reaches them at different moments.
    """
    if not jax.distributed.is_initialized():
        return _signalled
    return multihost_utils.reached_preemption_sync_point(next(_calls))


def stop_if_asked(state: str) -> None:
    """Ends the program where nothing needs to be saved.

    Args:
      state: what a person reads after "stopped by SIGTERM".

    Raises:
      Preempted: SIGTERM has come.
    """
    if asked_to_stop():
        stop(state)


def stop(state: str) -> None:
    """Ends the program after SIGTERM.

    Raises:
      Preempted: always.
    """
    if is_first():
        print(f"stopped by SIGTERM {state}; the same command continues.", flush=True)
    raise Preempted(0)


def _note_signal(number: int, frame: Any) -> None:
    global _signalled
    _signalled = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
