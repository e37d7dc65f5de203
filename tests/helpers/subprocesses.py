"""Runs Python programs in subprocesses: with many devices, or as several processes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DEVICES = "--xla_force_host_platform_device_count={}"
ROOT = Path(__file__).parent.parent.parent
SEVERAL = """
import contextlib, importlib, io, json, sys
from absl.testing import flagsaver
command = importlib.import_module(f"simjax.commands.{sys.argv[1]}")
done = []
for line in json.loads(sys.argv[2]):
    sys.argv = [command.__name__, *line]
    with flagsaver.flagsaver(), contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            command.main()
        except SystemExit as end:
            done.append([end.code, said.getvalue()])
print(json.dumps(done))
"""


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
    """The environment of this process, with this number of CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES.format(devices)}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": "."} | variables


def on_devices(devices: int, program: str) -> str:
    """Output of a program; asserts exit status 0, with stderr as the message."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(devices))
    assert done.returncode == 0, done.stderr
    return done.stdout


def several(command: str, lines: Sequence[str], folder: Path, **variables: str) -> dict[str, list]:
    """Exit code and output of a command for each line of flags, separated by ",,".

    One process with two devices runs them all in `folder`, because starting one takes longer than
    most lines.
    """
    parts = json.dumps([line.split(",,") for line in lines])
    often = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # lines share programs
    run = subprocess.run(
        [sys.executable, "-c", SEVERAL, command, parts],
        capture_output=True,
        text=True,
        env=environment(2, PYTHONPATH=str(ROOT), **often, **variables),
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr
    return dict(zip(lines, json.loads(run.stdout), strict=True))


def output(result: list) -> str:
    """Output of a line of `several`; asserts success, with its error as the message."""
    code, text = result
    assert code is None, code
    return text


def start(
    command: list[str], processes: int, devices: int, **variables: str
) -> list[subprocess.Popen]:
    """Starts a Python command as `processes` processes of one run, `devices` devices each."""
    together = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"} if processes > 1 else {}
    started = []
    for index in range(processes):
        if processes > 1:
            together |= {"JAX_NUM_PROCESSES": f"{processes}", "JAX_PROCESS_ID": f"{index}"}
        started.append(
            subprocess.Popen(
                [sys.executable, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(devices, **together, **variables),
            )
        )
    return started


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]
