"""Runs `python -m simjax.main` and `simjax NAME` in subprocesses; flags for a tiny digits run."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DIGITS = ROOT / "configs" / "digits.py"
TINY = [  # seconds instead of minutes; too short to learn
    "--config.network.channels=4",
    "--config.network.channel_mult=(1,)",
    "--config.steps=24",
    "--config.steps_per_call=1",
    "--config.batch=8",
    "--config.teacher.steps=6",
    "--config.teacher.batch=8",
    "--config.log_every=2",
    "--config.sample_every=8",
    "--config.checkpoint_every=4",
    "--config.evaluation.samples=200",
    "--config.evaluation.teacher_steps=(3,)",
    "--config.evaluation.batch=100",
]


def command(workdir: Path | None, *flags: str, config: Path | str = DIGITS) -> list[str]:
    where = [] if workdir is None else [f"--workdir={workdir}"]
    return [sys.executable, "-m", "simjax.main", f"--config={config}", *where, *flags]


def run(
    workdir: Path | None, *flags: str, devices: int = 1, cwd: Path = ROOT, **kwargs
) -> subprocess.CompletedProcess:
    hosts = f" --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"] + hosts}
    return subprocess.run(
        command(workdir, *flags, **kwargs), capture_output=True, text=True, env=environment, cwd=cwd
    )


def simjax(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Runs simjax NAME --FLAG=VALUE."""
    command = [sys.executable, "-m", "simjax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def refused(result: subprocess.CompletedProcess) -> str:
    """The error message of a failed command; it must not be a traceback."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    return result.stderr
