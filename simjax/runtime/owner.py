"""One program at a time writes a run directory: its owner, whom owner.json names.

All processes of a run are one owner; the first one holds the lock. It is removed when the program
ends. A kill leaves it behind, and the next program takes it over once the owner is gone: at once
where the process can be seen, else when it gives no sign of life for a while. The owner renews its
sign every few seconds; what counts is that it changes, so that clocks need not agree.

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
RENEW = 10.0  # seconds between signs of life; our choice, as all that follow
PATIENCE = 60.0  # seconds without a sign after which an owner elsewhere is gone
LOOK = 1.0  # seconds between looks at the lock
SETTLE = 3.0  # seconds until the last of several who write an object at once is known
TRIES = 5  # looks until a file that another host has written must be visible


@dataclasses.dataclass(frozen=True)
class Program:
    """A process, distinct from every other one on any machine, before and after reboots.

    Args:
      boot: identifies a running kernel; empty where there is no /proc.
      namespace: of process numbers: containers of one machine count their own.
      started: when, in ticks of the kernel; process numbers are used again.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> "Program":
        """The running one."""
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
    """When a process of this machine started; "" if there is none, None if it cannot be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:  # another user's, whom /proc hides
            return None
        return None
    return "" if fields[0] in "ZX" else fields[19]  # killed, and only not waited for yet


def is_gone(owner: Program, here: Program, started: Callable[[int], str | None]) -> bool | None:
    """Whether a program has ended; None where it cannot be seen from here."""
    place = (here.host, here.boot, here.namespace)
    if not here.boot or (owner.host, owner.boot, owner.namespace) != place:
        return None
    found = started(owner.pid)
    return None if found is None else found != owner.started


class Lock:
    """A run directory's owner.json, for one program.

    Args:
      say: where it is told what is waited for.
      lost: called, in a thread, with the reason when another program has taken the directory.
      program, started, clock: what a test replaces.
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
        self._watched: tuple[str, float] | None = None  # what it read, and when first
        self._written: float | None = None  # when an object was, that others may have replaced
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def attempt(self) -> bool:
        """Takes the directory if it can be had; False: try again in LOOK seconds.

        Raises:
          ConfigError: it belongs to a program that is running, or cannot be written.
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
        with contextlib.suppress(Exception), self._alone():  # storage may be away: it expires
            if _token(self._read()) != self.token:
                return
            self._path.unlink(missing_ok=True)
            for left in [] if self._bucket else self._path.parent.glob("owner.*.tmp"):
                left.unlink(missing_ok=True)  # of programs killed while they looked

    def sees(self, token: int) -> bool:
        """Whether this process finds the lock of that token."""
        for _ in range(TRIES):
            with contextlib.suppress(Exception):  # whatever the reason
                if _token(self._read()) == token:
                    return True
            time.sleep(LOOK)
        return False

    def renew(self) -> None:
        """Gives a sign of life; calls `lost` if the directory is another program's now."""
        with self._alone():
            found = self._renewed()
        if found is not None:
            self._closed.set()
            self._lost(
                f"{self._path.parent} was taken over by another program, {_who(found)}, while "
                "this one stood still; it ends so as not to write there too."
            )

    def _renewed(self) -> str | None:
        """Writes a sign of life; returns another program's lock instead, if that is there."""
        found = self._read()
        if found is None:  # somebody has removed it
            self._create(self._record())
        elif _token(found) == self.token:
            self._signs += 1
            self._replace(self._record())
        else:
            return found
        return None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One program at a time, as far as the file system locks directories.

        Where it does not (a bucket, NFS), two that take over at once can both succeed for LOOK
        seconds; then one of them notices and ends.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                if not self._bucket:
                    opened = os.open(self._path.parent, os.O_RDONLY)
                    stack.callback(os.close, opened)
                    fcntl.flock(opened, fcntl.LOCK_EX)  # gone with a kill
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
            return False  # another program was quicker
        self._say(f"{NAME}: {_who(found)} has ended without removing it; taken over.")
        return self._create_own()

    def _has_ended(self, found: str) -> bool:
        """Whether the owner is gone; False: not known yet."""
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
            f"{NAME} names {_who(found)}, which cannot be seen from here: taken over if it gives "
            f"no sign of life for {PATIENCE:.0f} s."
        )
        return False

    def _refusal(self, found: str) -> ConfigError:
        values = _values(found)
        return ConfigError(
            f"{self._path.parent} belongs to another program, {_who(found)}, which is running. "
            f"Wait until it has ended, stop it (kill {values.get('pid')} on {values.get('host')}), "
            "or choose another --workdir=DIR."
        )

    def _create_own(self) -> bool:
        if not self._create(self._record()):
            return False
        if self._bucket:
            self._written = self._clock()  # of several who write at once the last one owns it
            return False
        return self._taken()

    def _taken(self) -> bool:
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return True

    def _keep(self) -> None:
        """Signs of life; a program that stood still notices at once."""
        renewed = time.time()  # goes on while the machine sleeps
        while not self._closed.wait(LOOK):
            with contextlib.suppress(Exception):  # storage may be away for a while
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
        """False if it is there; in a bucket two may both have written it."""
        if self._bucket:
            self._path.write_text(text)
            return True
        self._aside.write_text(text)
        try:
            os.link(self._aside, self._path)  # whole from the first moment
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
        """Takes the lock of an owner that is gone away; False if that is not the lock any more."""
        if self._bucket:
            return self._read() == found
        try:
            self._path.rename(self._aside)
        except FileNotFoundError:
            return False
        moved = self._aside.read_text()
        if moved != found:  # of one who has taken it over meanwhile: back to its place
            self._create(moved)
        self._aside.unlink(missing_ok=True)
        return moved == found


@contextlib.contextmanager
def only(directory: epath.Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """The block runs as the owner of the run directory, on every process.

    Raises:
      ConfigError: another program is running there, or not every process sees the directory.
      Preempted: SIGTERM came before it was known whether the owner is gone.
    """
    lock = Lock(directory, say=say)
    try:
        while not processes.decided_by_first(lock.attempt):
            processes.stop_if_asked("before it began")
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
    """Of a lock; none of one that is just being written, or was cut short by a kill."""
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
        return "a program that is not known"
    return f"process {values.get('pid')} on {values.get('host')} since {values.get('since')}"
