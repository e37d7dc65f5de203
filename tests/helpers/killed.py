"""Kills and resumes runs, and compares their final states."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.command import DIGITS, command


def logged(workdir: Path, stage: str = "") -> list[dict]:
    """Lines of metrics.jsonl, optionally of one stage."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["stage"] == stage or not stage]


def checksums(workdir: Path, step: int) -> dict[str, int]:
    """Checksum of every tree of a checkpoint, from its note."""
    note = workdir / "checkpoints" / f"{step}" / "note" / "metadata"
    return json.loads(note.read_text())["checksums"]


def kill_at(workdir: Path, steps: int, flags: Sequence[str], config: Path = DIGITS) -> None:
    """Starts the run and kills it once this distillation step is logged."""
    process = subprocess.Popen(
        command(workdir, *flags, config=config),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    while process.poll() is None and not _has_reached(workdir, steps):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "report.json").exists()


def assert_equal(workdir: Path, uninterrupted: Path, step: int) -> None:
    """Both runs finished with bitwise equal states."""
    assert checksums(workdir, step) == checksums(uninterrupted, step)
    shas = {
        json.loads((path / "report.json").read_text())["generator_sha256"]
        for path in (workdir, uninterrupted)
    }
    assert len(shas) == 1


def _has_reached(workdir: Path, step: int) -> bool:
    try:
        text = (workdir / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return False
    lines = [json.loads(line) for line in text.splitlines()[:-1]]
    return any(line["stage"] == "sim" and line["step"] >= step for line in lines)
