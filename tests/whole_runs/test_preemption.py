"""A run of two processes, stopped at random moments, equals an uninterrupted one.

SIGTERM to one or both: all save the same step and exit with 0. SIGKILL of one or both: the survivor
exits by itself with another status, and nothing before the last checkpoint is lost.
"""

import json
import random
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.helpers import subprocesses
from tests.helpers.command import DIGITS, TINY

pytestmark = pytest.mark.whole_runs

MOMENTS = 10
STEPS = 200
EVERY = 20  # steps between checkpoints
FLAGS = [
    *TINY,
    f"--config.steps={STEPS}",
    f"--config.checkpoint_every={EVERY}",
    "--config.sample_every=100",
    "--config.teacher.steps=40",
    "--config.evaluation.features=('pixels',)",
]
GRACE = 60  # seconds for a process to exit; 30 on a pod, but two cores compile more slowly


class Run:
    """One start of the two processes."""

    def __init__(self, workdir: Path):
        command = ["-m", "simjax.main", f"--config={DIGITS}", f"--workdir={workdir}", *FLAGS]
        self.processes = subprocesses.start(command, processes=2, devices=1)
        self.outputs: list[list[str]] = [[], []]
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in zip(self.processes, self.outputs, strict=True)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, process: subprocess.Popen, lines: list[str]) -> None:
        lines.extend(iter(process.stdout.readline, ""))

    def wait_for(self, pattern: str) -> None:
        """Waits until the first process prints the pattern, or has ended."""
        while self.processes[0].poll() is None and not re.search(pattern, self.said()):
            time.sleep(0.02)

    def said(self) -> str:
        return "".join(self.outputs[0])

    def codes(self, seconds: float = GRACE) -> list[int]:
        """Exit statuses; raises TimeoutExpired if a process does not end."""
        deadline = time.monotonic() + seconds
        codes = [p.wait(max(deadline - time.monotonic(), 1)) for p in self.processes]
        for reader in self._readers:
            reader.join()
        return codes

    def end(self) -> None:
        for process in self.processes:
            process.kill()


def to_the_end(workdir: Path) -> None:
    run = Run(workdir)
    assert run.codes(600) == [0, 0], run.outputs


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    to_the_end(workdir)
    return workdir


def last_checkpoint(workdir: Path) -> int:
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=0)


def last_logged(workdir: Path) -> int:
    if not (workdir / "metrics.jsonl").exists():
        return 0
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return max((e["step"] for e in map(json.loads, lines) if e["stage"] == "sim"), default=0)


def stop(run: Run, workdir: Path, number: int, whom: list[subprocess.Popen]) -> None:
    """Sends the signal and checks how the run ends."""
    for process in whom:
        process.send_signal(number)
    try:
        codes = run.codes()
    except subprocess.TimeoutExpired:
        run.end()
        pytest.fail(f"hangs after signal {number} to {len(whom)}: {run.outputs}")
    finished = (workdir / "report.json").exists()
    if number == signal.SIGTERM:
        assert codes == [0, 0], run.outputs
        found = re.search(r"stopped by SIGTERM at step (\d+) of \d+ \(sim\)", run.said())
        assert found or finished or "stopped by SIGTERM" in run.said(), run.said()
        if found:  # no step is lost
            assert int(found[1]) == last_checkpoint(workdir) >= last_logged(workdir)
    elif not finished:
        assert all(code != 0 for code in codes), (codes, run.outputs)
    # Saves run in the background: one that the kill interrupted does not count.
    cut_off = any((workdir / "checkpoints").glob("*tmp*"))
    assert last_checkpoint(workdir) >= last_logged(workdir) - EVERY * (2 if cut_off else 1)


def both_end_well(program: str) -> None:
    """Runs the program as two processes, which must exit with 0."""
    started = subprocesses.start(["-c", program], processes=2, devices=1)
    try:
        said = [process.communicate(timeout=60)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], said
    finally:
        for process in started:
            process.kill()


def test_a_run_at_a_late_step_stops_as_soon(tmp_path):
    """Orbax's and the loop's use of JAX's preemption counter do not conflict."""
    program = f"""
import itertools, os, signal, time
from tests.whole_runs import test_checkpoint_meshes as t
from simjax.runtime import checkpoint, processes, sharding
processes.join()
checkpoints = checkpoint.Checkpoints(t.epath.Path({str(tmp_path)!r}), keep=1, say=print)
mesh = sharding.make_mesh(2)
far = t.known(mesh).replace(step=sharding.place(t.np.int32(100_000), mesh))
for count in itertools.count():
    if processes.stop_requested():
        break
    if count == 5:
        checkpoints.save(far)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)  # JAX agrees on the stop after Orbax's query
    assert count < 200, "it does not stop"
    time.sleep(0.05)
checkpoints.close()
processes.leave()
"""
    both_end_well(program)


def test_a_save_by_one_process_keeps_all_processes_in_sync(tmp_path):
    program = f"""
from tests.whole_runs import test_checkpoint_meshes as t
from simjax.runtime import checkpoint, processes, sharding
processes.join()
where = t.epath.Path({str(tmp_path)!r})
checkpoints = checkpoint.Checkpoints(where / "checkpoints", keep=2, say=print)
def alone():
    checkpoint.save_teacher(where / "teacher", {{"kernel": t.np.ones((3, 4))}}, {{}})
processes.by_first(alone, "stored")
checkpoints.save(t.known(sharding.make_mesh(2)))
number = int(checkpoint.Operations.get_current_operation_id())
assert processes.largest(number) == number == -processes.largest(-number), number
checkpoints.close()
processes.leave()
"""
    both_end_well(program)


def test_a_save_that_hangs_ends_the_run(tmp_path):
    program = f"""
import os, signal, tensorstore, time
from tests.whole_runs import test_checkpoint_meshes as t
from simjax.runtime import checkpoint, processes, sharding
processes.join()
where = t.epath.Path({str(tmp_path)!r})
checkpoints = checkpoint.Checkpoints(where, keep=2, say=print, limit=5)
mesh = sharding.make_mesh(2)
checkpoints.save(t.known(mesh).replace(step=sharding.place(t.np.int32(1), mesh)))
checkpoints.wait()
time.sleep(8)  # longer than the limit: a finished save does not count as late
later = t.known(mesh).replace(step=sharding.place(t.np.int32(2), mesh))
if not processes.is_first():  # stop this process before it writes its shards
    tensorstore.open = lambda *_, **__: os.kill(os.getpid(), signal.SIGSTOP)
checkpoints.save(later)
checkpoints.close()
"""
    first, second = subprocesses.start(["-c", program], processes=2, devices=1)
    said, _ = first.communicate(timeout=120)
    second.kill()
    assert first.returncode == 1 and "was not written within 5 s" in said, said
    assert "run the same command again" in said
    assert (tmp_path / "1").exists() and not (tmp_path / "2").exists()


def test_a_run_killed_at_random_moments_equals_an_uninterrupted_one(uninterrupted, tmp_path):
    draw = random.Random(0)
    workdir = tmp_path / "run"
    stages = ["simjax .* processes", "teacher 2/", "sim, pseudo_huber"]
    stages += [f"sim {step}/" for step in (10, 20, 50, 90, 130, 170)] + ["evaluating"]
    seen = []
    for moment in range(MOMENTS):
        run = Run(workdir)
        run.wait_for(stages[moment])
        time.sleep(draw.uniform(0, 0.5))
        number = signal.SIGTERM if moment % 2 == 0 else signal.SIGKILL
        whom = draw.choice([run.processes, run.processes[:1], run.processes[1:]])
        before = last_checkpoint(workdir)
        stop(run, workdir, number, whom)
        assert last_checkpoint(workdir) >= before
        resumed = re.search(r"sim: continuing from step (\d+)", run.said())
        assert not resumed or int(resumed[1]) == before
        seen.append((number.name, len(whom), last_checkpoint(workdir)))
    to_the_end(workdir)
    ours, theirs = (
        json.loads((path / "report.json").read_text()) for path in (workdir, uninterrupted)
    )
    assert ours["generator_sha256"] == theirs["generator_sha256"], seen
    assert [r["metrics"] for r in ours["rows"]] == [r["metrics"] for r in theirs["rows"]]
