"""Memory freed by a call is reused by the next one, without page faults."""

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.whole_runs)])
def test_a_call_reuses_the_memory_freed_by_the_previous_one(devices):
    faults = int(subprocesses.on_devices(devices, PROGRAM))
    # Without reuse every call has 2^14 faults of 4 KiB. A few calls have, due to fragmentation.
    assert faults < 60 * 2**14 / 4, faults


@pytest.mark.parametrize("command", ["main", "commands.benchmark"])
def test_commands_that_train_call_keep_freed(command):
    program = f"""
import sys
import simjax.{command}
from simjax.runtime import cpu
cpu.keep_freed = lambda: print("called")
sys.argv = ["{command}", "--config=configs/digits.py", "--config.batch=0"]  # refused afterwards
simjax.{command}.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=subprocesses.environment(),
    )
    assert done.stdout == "called\n", done
    assert "batch" in done.stderr
