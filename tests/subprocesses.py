"""Runs Python programs that tests need in processes of their own: on many devices, or several."""

import os
import socket
import subprocess
import sys

DEVICES = "--xla_force_host_platform_device_count={}"


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
    """That of this process, with as many CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES.format(devices)}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": "."} | variables


def on_devices(devices: int, program: str) -> str:
    """What the program prints; a test fails with its errors if it does not end well."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(devices))
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(
    command: list[str], processes: int, devices: int, **variables: str
) -> list[subprocess.Popen]:
    """The same Python command as so many processes of one run, each with as many devices."""
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
