"""Lock of a run directory (owner.json): only one program writes there.

All processes of a run count as one owner; the first one holds the lock and removes it on exit. A
kill leaves a stale lock, which the next program takes over once the owner is dead: at once if the
owner's process number can be checked from here, otherwise when its heartbeat stops for a while. The
owner rewrites its heartbeat every few seconds; only a change is tested, so that clocks need not
agree.

Called from runs/distill.py.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from simjax.errors import ConfigError
from simjax.runtime import processes, storage

NAME = "owner.json"
RENEW = 10.0  # seconds between heartbeats; our choice, like all that follow
PATIENCE = 60.0  # seconds without a heartbeat after which an owner elsewhere counts as dead
LOOK = 1.0  # seconds between reads of the lock
SETTLE = 3.0  # seconds after which concurrent writes of an object have settled: the last one wins
TRIES = 5  # reads within which a file written by another host must become visible


@dataclasses.dataclass(frozen=True)
class Program:
    """Identity of a process, unique over machines, containers and reboots.

    Args:
      boot: boot id of the running kernel; empty without /proc.
      namespace: PID namespace; containers of one machine number their processes separately.
      started: start time in kernel ticks, because process numbers are reused.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> "Program":
        """The identity of the running process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _boot(), _namespace(), pid, started(pid) or "")


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """Start time of a local process, in kernel ticks.

    Returns "" if there is no such process, None if it cannot be determined.

    >>> started(os.getpid()) != ""
    True
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:  # another user's process, hidden in /proc
            return None
        return None
    return "" if fields[0] in "ZX" else fields[19]  # zombies count as ended


def is_gone(owner: Program, here: Program, started: Callable[[int], str | None]) -> bool | None:
    """Whether the owner has ended; None if `here` cannot determine it.

    >>> here = Program("node1", "boot-7", "pid:[1]", pid=12, started="100")
    >>> owner = dataclasses.replace(here, pid=34)
    >>> is_gone(owner, here, lambda pid: ""), is_gone(owner, here, lambda pid: "100")
    (True, False)
    >>> is_gone(dataclasses.replace(owner, host="node2"), here, lambda pid: "") is None
    True
    """
    place = (here.host, here.boot, here.namespace)
    if not here.boot or (owner.host, owner.boot, owner.namespace) != place:
        return None
    found = started(owner.pid)
    return None if found is None else found != owner.started


class Lock:
    """The lock of a run directory, held or awaited by one program.

    Args:
      say: prints what the program is waiting for.
      lost: called in a thread, with the reason, when another program has taken the directory.
      program, started, clock: replaced by tests.
    """

    def __init__(
        self,
        directory: epath.Path,
        *,
        say: Callable[[str], None] = print,
        lost: Callable[[str], Any] = processes.end_at_once,
        program: Program | None = None,
        started: Callable[[int], str | None] = started,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.token = secrets.randbits(32)
        self._path = epath.Path(directory) / NAME
        self._aside = self._path.with_name(f"owner.{self.token}.tmp")
        self._bucket = storage.in_bucket(self._path)
        self._program = program or Program.this()
        self._say, self._lost, self._started, self._clock = say, lost, started, clock
        self._since = _now()
        self._signs = 0
        self._watched: tuple[str, float] | None = None  # content of the lock, time first read
        self._written: float | None = None  # when its object was written; others may replace it
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def attempt(self) -> bool:
        """Tries to take the lock; False: try again in LOOK seconds.

        Raises:
          ConfigError: a running program holds it, or the directory cannot be written.
        """
        try:
            with self._alone():
                return self._attempt()
        except ConfigError:
            raise
        except Exception as error:  # a bucket's errors have no common type
            raise storage.unusable(self._path.parent, error) from error

    def release(self) -> None:
        """Removes the lock if it is this program's."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(RENEW)
        with contextlib.suppress(Exception), self._alone():  # without storage the lock expires
            if _token(self._read()) != self.token:
                return
            self._path.unlink(missing_ok=True)
            for left in [] if self._bucket else self._path.parent.glob("owner.*.tmp"):
                left.unlink(missing_ok=True)  # from programs killed during an attempt

    def sees(self, token: int) -> bool:
        """Whether the lock with that token is visible to this process."""
        for _ in range(TRIES):
            with contextlib.suppress(Exception):  # any error means not visible yet
                if _token(self._read()) == token:
                    return True
            time.sleep(LOOK)
        return False

    def renew(self) -> None:
        """Writes a heartbeat, or calls `lost` if another program holds the lock."""
        with self._alone():
            found = self._renewed()
        if found is not None:
            self._closed.set()
            self._lost(
                f"{self._path.parent} was taken over by another program, {_who(found)}, while "
                "this one was suspended; exiting so that only one of them writes there."
            )

    def _renewed(self) -> str | None:
        """Writes a heartbeat, or returns the lock of another program."""
        found = self._read()
        if found is None:  # it was removed by hand
            self._create(self._record())
        elif _token(found) == self.token:
            self._signs += 1
            self._replace(self._record())
        else:
            return found
        return None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Mutual exclusion by flock, where the file system supports it.

        Elsewhere (a bucket, NFS) two programs that take over at the same time can both succeed for
        LOOK seconds; then one of them detects it and exits.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                if not self._bucket:
                    opened = os.open(self._path.parent, os.O_RDONLY)
                    stack.callback(os.close, opened)
                    fcntl.flock(opened, fcntl.LOCK_EX)  # released by a kill
            yield

    def _attempt(self) -> bool:
        if self._written is not None:
            if self._clock() - self._written < SETTLE:
                return False
            self._written = None
            if _token(self._read()) == self.token:
                return self._taken()
        found = self._read()
        if found is None:
            return self._create_own()
        if not self._has_ended(found):
            return False
        if not self._remove(found):
            return False  # another program was faster
        self._say(f"{NAME}: {_who(found)} ended without removing its lock; taken over.")
        return self._create_own()

    def _has_ended(self, found: str) -> bool:
        """Whether the owner has ended; False: unknown so far.

        Raises:
          ConfigError: it is running.
        """
        owner = _program(found)
        gone = None if owner is None else is_gone(owner, self._program, self._started)
        if gone is not None:
            if not gone:
                raise self._refusal(found)
            return True
        before, since = self._watched or ("", 0.0)
        if self._watched is not None and found == before:
            return self._clock() - since >= PATIENCE
        if self._watched is not None and _token(found) == _token(before):
            raise self._refusal(found)
        self._watched = (found, self._clock())
        self._say(
            f"{NAME} is held by {_who(found)}, which cannot be checked from here: taking over if "
            f"it sends no heartbeat for {PATIENCE:.0f} s."
        )
        return False

    def _refusal(self, found: str) -> ConfigError:
        values = _values(found)
        return ConfigError(
            f"{self._path.parent} belongs to another program, {_who(found)}, which is running. "
            f"Wait for it to end, stop it (kill {values.get('pid')} on {values.get('host')}), "
            "or choose another --workdir=DIR."
        )

    def _create_own(self) -> bool:
        if not self._create(self._record()):
            return False
        if self._bucket:
            self._written = self._clock()  # after concurrent writes the last writer owns it
            return False
        return self._taken()

    def _taken(self) -> bool:
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return True

    def _keep(self) -> None:
        """Heartbeat thread; detects a takeover at once after a suspension."""
        renewed = time.time()  # unlike time.monotonic, advances while the machine sleeps
        while not self._closed.wait(LOOK):
            with contextlib.suppress(Exception):  # storage may be unavailable for a while
                late = abs(time.time() - renewed) >= RENEW
                if late or (not self._bucket and _token(self._read()) != self.token):
                    self.renew()
                    renewed = time.time()

    def _record(self) -> str:
        signs = {"token": self.token, "since": self._since, "alive": _now(), "signs": self._signs}
        return json.dumps(dataclasses.asdict(self._program) | signs, indent=2) + "\n"

    def _read(self) -> str | None:
        try:
            return self._path.read_text()
        except FileNotFoundError:
            return None

    def _create(self, text: str) -> bool:
        """Creates the lock; False if it exists.

        In a bucket concurrent writers all get True.
        """
        if self._bucket:
            self._path.write_text(text)
            return True
        self._aside.write_text(text)
        try:
            os.link(self._aside, self._path)  # atomic: never visible half-written
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            return _create_in_place(self._path, text)
        finally:
            self._aside.unlink(missing_ok=True)
        return True

    def _replace(self, text: str) -> None:
        if self._bucket:
            self._path.write_text(text)
            return
        self._aside.write_text(text)
        self._aside.replace(self._path)

    def _remove(self, found: str) -> bool:
        """Removes a stale lock; False if it has changed meanwhile.

        Args:
          found: content of the stale lock.
        """
        if self._bucket:
            return self._read() == found
        try:
            self._path.rename(self._aside)
        except FileNotFoundError:
            return False
        moved = self._aside.read_text()
        if moved != found:  # another program has taken it over in the meantime: put it back
            self._create(moved)
        self._aside.unlink(missing_ok=True)
        return moved == found


@contextlib.contextmanager
def only(directory: epath.Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Context that holds the lock of a run directory, on all processes.

    Raises:
      ConfigError: another program is running there, or a process cannot see the directory.
      Preempted: SIGTERM came while waiting for the lock.
    """
    lock = Lock(directory, say=say)
    try:
        while not processes.decided_by_first(lock.attempt):
            processes.stop_if_requested("before the run started")
            time.sleep(LOOK)
        token = int(processes.from_first(np.uint32(lock.token)))
        processes.require_shared(lock.sees(token), f"--workdir={directory}")
        yield
    finally:
        if processes.is_first():
            lock.release()


def _create_in_place(path: epath.Path, text: str) -> bool:
    try:
        with open(path, "x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _now() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _values(text: str | None) -> dict[str, Any]:
    """The fields of a lock; empty if it is half-written or truncated."""
    try:
        found = json.loads(text or "")
        return found if isinstance(found, dict) else {}
    except json.JSONDecodeError:
        return {}


def _token(text: str | None) -> int | None:
    return _values(text).get("token")


def _program(text: str) -> Program | None:
    values, names = _values(text), [field.name for field in dataclasses.fields(Program)]
    return Program(**{name: values[name] for name in names}) if values.keys() >= {*names} else None


def _who(text: str) -> str:
    values = _values(text)
    if not values:
        return "an unknown program"
    return f"process {values.get('pid')} on {values.get('host')} since {values.get('since')}"
