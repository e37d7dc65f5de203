"""The lock of a run directory: refusals, takeovers and races."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.runtime import owner, processes, storage
from simjax.runtime.owner import Lock, Program

HERE = Program(host="here", boot="boot", namespace="pid:[1]", pid=10, started="100")
ELSEWHERE = [  # places whose processes cannot be checked, though host and pid may coincide
    dataclasses.replace(HERE, host="there"),
    dataclasses.replace(HERE, boot="another"),
    dataclasses.replace(HERE, namespace="pid:[2]"),
    dataclasses.replace(HERE, boot="", namespace=""),
]


class World:
    """Fake processes and clock for locks, with their messages."""

    def __init__(self, directory):
        self.directory, self.now, self.said, self.lost = directory, 0.0, [], []
        self.running: dict[int, str] = {}
        self.locks: list[Lock] = []

    def program(self, pid: int, place: Program = HERE, began: str = "100") -> Lock:
        """A lock of a running process."""
        self.running[pid] = began
        lock = Lock(
            self.directory,
            say=self.said.append,
            lost=self.lost.append,
            program=dataclasses.replace(place, pid=pid, started=began),
            started=lambda pid: self.running.get(pid, ""),
            clock=lambda: self.now,
        )
        self.locks.append(lock)
        return lock

    def kill(self, lock: Lock) -> None:
        """Ends the process without a release; its heartbeat stops."""
        lock._closed.set()
        if lock._thread is not None:
            lock._thread.join()
        self.running.pop(lock._program.pid, None)

    def owner(self) -> int:
        return json.loads((self.directory / owner.NAME).read_text())["token"]

    def files(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()}


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    for lock in world.locks:
        world.kill(lock)


def test_a_second_program_is_refused_in_one_message(world):
    assert world.program(10).attempt()
    with pytest.raises(ConfigError) as refused:
        world.program(11).attempt()
    message = str(refused.value)
    for part in (str(world.directory), "process 10 on here", "since 20", "kill 10", "--workdir"):
        assert part in message
    assert world.files() == {owner.NAME}


def test_releasing_removes_all_files_and_lets_the_next_program_in(world):
    first, second = world.program(10), world.program(11)
    assert first.attempt()
    (world.directory / "owner.1.tmp").write_text("")  # from a program killed during an attempt
    first.release()
    assert world.files() == set()
    assert second.attempt()
    first.release()  # no effect: no longer its lock
    assert world.owner() == second.token


def test_the_lock_of_a_killed_owner_is_taken_over_at_once(world):
    first, second = world.program(10), world.program(11)
    first.attempt()
    world.kill(first)
    assert second.attempt() and world.owner() == second.token
    assert "process 10 on here" in world.said[0]


def test_a_reused_process_number_is_another_process(world):
    first = world.program(10)
    first.attempt()
    world.kill(first)
    world.running[10] = "200"
    assert world.program(11).attempt()


def test_a_process_hidden_from_this_user_is_judged_by_its_heartbeat(world):
    first = world.program(10)
    first.attempt()
    world.kill(first)
    world.running[10] = None  # another user's process, hidden in /proc
    second = world.program(11)
    assert not second.attempt()
    world.now += owner.PATIENCE
    assert second.attempt()


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_remote_owner_without_a_heartbeat_loses_the_lock(world, place):
    first = world.program(10)
    first.attempt()
    world.kill(first)
    second = world.program(11, place)
    assert not second.attempt()
    world.now += owner.PATIENCE - 1
    assert not second.attempt()
    world.now += 1
    assert second.attempt() and world.owner() == second.token
    assert len(world.said) == 2  # messages: waiting, taken over


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_remote_owner_with_a_heartbeat_keeps_the_lock(world, place):
    first, second = world.program(10), world.program(10, place)
    first.attempt()
    assert not second.attempt()
    first.renew()
    with pytest.raises(ConfigError, match="process 10 on here"):
        second.attempt()
    assert world.owner() == first.token


def test_a_lock_released_by_a_remote_owner_is_taken_at_once(world):
    first, second = world.program(10), world.program(11, ELSEWHERE[0])
    first.attempt()
    assert not second.attempt()
    first.release()
    assert second.attempt()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_truncated_lock_is_taken_over(world, content):
    (world.directory / owner.NAME).write_text(content)
    second = world.program(11)
    assert not second.attempt()
    world.now += owner.PATIENCE
    assert second.attempt()


def test_a_suspended_owner_that_lost_its_lock_ends_without_writing(world):
    first, second = world.program(10), world.program(11, ELSEWHERE[0])
    first.attempt()
    second.attempt()
    world.now += owner.PATIENCE
    second.attempt()
    first.renew()
    assert len(world.lost) == 1 and "taken over by another program, process 11" in world.lost[0]
    assert world.owner() == second.token
    first.release()
    assert world.owner() == second.token


def test_the_heartbeat_thread_renews_the_lock_and_detects_its_loss(world, monkeypatch):
    monkeypatch.setattr(owner, "LOOK", 0.01)
    monkeypatch.setattr(owner, "RENEW", 0.02)
    first = world.program(10)
    first.attempt()
    wait_until(lambda: json.loads((world.directory / owner.NAME).read_text())["signs"] > 2)
    (world.directory / owner.NAME).unlink()
    wait_until(lambda: (world.directory / owner.NAME).exists())
    (world.directory / owner.NAME).write_text('{"token": 1}')
    wait_until(lambda: world.lost)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("links", [True, False])
def test_exactly_one_of_many_concurrent_programs_gets_the_lock(world, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", refuse_links)
    for turn in range(20):
        gone = world.program(5)
        if turn % 2:
            assert gone.attempt()
        world.kill(gone)
        locks = [world.program(10 + number) for number in range(6)]
        together = threading.Barrier(len(locks))
        results: list[bool] = []
        threads = [threading.Thread(target=come, args=(lock, together, results)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(results) == 1 and len(results) == len(locks)
        for lock in locks:
            lock.release()
        assert world.files() == set()


def refuse_locks(*_):
    raise OSError(errno.ENOLCK, "no locks available")


def refuse_links(*_):
    raise OSError(errno.EPERM, "no links here")


def test_checking_and_taking_over_a_stale_lock_is_atomic(world):
    gone, first, second = (world.program(pid) for pid in (5, 10, 11))
    gone.attempt()
    world.kill(gone)
    look, results = first._has_ended, []
    thread = threading.Thread(target=come, args=(second, threading.Barrier(1), results))

    def look_slowly(found: str) -> bool:
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and world.owner() == gone.token  # it waits
        return look(found)

    first._has_ended = look_slowly
    assert first.attempt()
    thread.join()
    assert results == [False]  # refused
    assert world.owner() == first.token


def come(lock: Lock, together: threading.Barrier, results: list[bool]) -> None:
    together.wait()
    for _ in range(100):
        try:
            if lock.attempt():
                return results.append(True)
        except ConfigError:
            return results.append(False)
        time.sleep(0.001)  # the lock is half-written
    return None


def test_a_lock_taken_over_by_another_program_meanwhile_is_put_back(world, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse_locks)  # a file system without directory locks
    gone, quick, slow = (world.program(pid) for pid in (5, 10, 11))
    gone.attempt()
    world.kill(gone)
    look = slow._has_ended

    def after_a_while(found: str) -> bool:
        ended = look(found)
        assert quick.attempt()
        return ended

    slow._has_ended = after_a_while
    assert not slow.attempt()
    assert world.owner() == quick.token
    slow._has_ended = look
    with pytest.raises(ConfigError, match="process 10"):
        slow.attempt()


def test_in_a_bucket_the_last_of_concurrent_writers_gets_the_lock(world, monkeypatch):
    monkeypatch.setattr(storage, "in_bucket", lambda path: True)
    first, second = world.program(10), world.program(11)
    monkeypatch.setattr(first, "_read", lambda: None)  # both read before either writes
    assert not first.attempt()
    monkeypatch.undo()
    monkeypatch.setattr(second, "_read", lambda: None)
    assert not second.attempt()
    monkeypatch.undo()
    assert not second.attempt()  # a third one may still write
    world.now += owner.SETTLE
    assert second.attempt()
    with pytest.raises(ConfigError, match="process 11"):
        first.attempt()
    second.release()
    assert world.files() == set()


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used: .*--workdir"):
        Lock(tmp_path / "file").attempt()


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt, processes.Preempted])
def test_every_exit_except_a_kill_removes_the_lock(tmp_path, end):
    with pytest.raises(end), owner.only(tmp_path):
        assert (tmp_path / owner.NAME).exists()
        raise end
    assert not list(tmp_path.iterdir())


def test_sigterm_ends_the_wait_for_a_remote_owner(world, monkeypatch):
    world.program(10, ELSEWHERE[0]).attempt()
    monkeypatch.setattr(processes, "_signalled", True)
    with pytest.raises(processes.Preempted), owner.only(world.directory):
        pytest.fail("the lock is another program's")
    assert world.files() == {owner.NAME}


def test_a_workdir_that_is_not_shared_by_all_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "TRIES", 1)
    monkeypatch.setattr(owner, "LOOK", 0.0)
    answers = [1, 1, 7]  # not refused, taken, the token of the first process
    monkeypatch.setattr(processes, "from_first", lambda value: np.int32(answers.pop(0)))
    refused = pytest.raises(ConfigError, match="not every process sees .*--workdir")
    with refused, owner.only(tmp_path):
        pytest.fail("the directory is not shared")


def test_an_error_of_the_first_process_is_raised_on_all(monkeypatch):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "from_first", lambda value: np.int32(0))
    with pytest.raises(ConfigError, match="the first process"):
        processes.decided_by_first(lambda: pytest.fail("the first process decides"))


def test_running_and_killed_processes_are_distinguished():
    assert Program.this() == Program.this()
    assert owner.is_gone(Program.this(), Program.this(), owner.started) in (False, None)
    process = subprocess.Popen(["sleep", "60"])
    other = dataclasses.replace(
        Program.this(), pid=process.pid, started=owner.started(process.pid) or ""
    )
    if not other.boot:
        pytest.skip("no /proc: owners are judged by their heartbeat")
    assert owner.is_gone(other, Program.this(), owner.started) is False
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: owner.started(process.pid) == "")  # a zombie, before process.wait()
    assert owner.is_gone(other, Program.this(), owner.started)
    process.wait()
    assert owner.is_gone(other, Program.this(), owner.started)
