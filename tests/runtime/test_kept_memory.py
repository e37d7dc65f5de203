"""What a call frees serves the next: it takes no fresh pages from the system."""

import platform
import subprocess
import sys

import pytest

from tests.helpers import subprocesses

PROGRAM = """
import resource, jax, jax.numpy as jnp
from simjax.runtime import cpu
cpu.keep_freed()

@jax.jit
def call(x):
    return jnp.sin(x @ x.T).sum()  # a temporary of 64 MiB

x = jnp.ones((2**12, 8))
assert call.lower(x).compile().memory_analysis().temp_size_in_bytes >= 2**26
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    call(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.whole_runs)])
def test_a_call_takes_the_pages_that_the_last_one_freed(devices):
    faults = int(subprocesses.on_devices(devices, PROGRAM))
    # Afresh, each call has 2^14 of 4 KiB. A few have: what lives on may lie in a freed block.
    assert faults < 60 * 2**14 / 4, faults


@pytest.mark.parametrize("command", ["main", "commands.benchmark"])
def test_commands_that_train_ask_for_it(command):
    program = f"""
import sys
import simjax.{command}
from simjax.runtime import cpu
cpu.keep_freed = lambda: print("asked")
sys.argv = ["{command}", "--config=configs/digits.py", "--config.batch=0"]  # refused, but later
simjax.{command}.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=subprocesses.environment(),
    )
    assert done.stdout == "asked\n", done
    assert "batch" in done.stderr
