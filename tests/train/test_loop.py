"""The training loop with a counting step: overhead, SIGTERM, implicit copies, resuming."""

import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from simjax.runtime import checkpoint, processes, sharding
from simjax.runtime.monitor import Monitor
from simjax.train import loop
from simjax.train.compile import Training, compile_steps


@struct.dataclass
class Count:
    step: jax.Array
    tree: dict[str, jax.Array]

    def trees(self) -> dict[str, dict[str, jax.Array]]:
        return {"tree": self.tree}

    def of_trees(self, step, trees) -> "Count":
        return Count(step, **trees)


def count(state: Count, constants, key) -> tuple[Count, dict]:
    total = state.tree["total"] + constants
    return Count(state.step + 1, {"total": total}), {"count/loss": total}


def run(directory, steps=6, constants=None, hooks=(), steps_per_call=1, log_every=2) -> Count:
    mesh = sharding.make_mesh()
    start = Count(np.int32(0), {"total": np.float32(0)})
    training = Training(
        call=compile_steps(count, mesh=mesh, steps_per_call=steps_per_call),
        init=Count,
        mesh=mesh,
        steps=steps,
        steps_per_call=steps_per_call,
        batch=1,
    )
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints", keep=2, say=print)
    try:
        return loop.run(
            training,
            sharding.place(start, mesh),
            lambda step: jnp.float32(1) if constants is None else constants,
            key=jax.random.key(0),
            stage="counting",
            checkpoints=checkpoints,
            monitor=Monitor(directory),
            log_every=log_every,
            checkpoint_every=5,
            hooks=hooks,
        )
    finally:
        checkpoints.close()


def test_an_implicit_copy_to_the_device_raises(tmp_path):
    with pytest.raises(Exception, match="[Dd]isallowed host-to-device transfer"):
        run(tmp_path, constants=np.float32(1))


def test_the_loop_adds_little_to_a_call(tmp_path):
    times = []
    run(tmp_path, steps=100, hooks=[loop.Hook(1, lambda *_: times.append(time.perf_counter()))])
    between = np.median(np.diff(times))
    assert between < 0.05 * 0.5, between  # a call of ten digits steps takes 0.5 s or more


@pytest.fixture
def listening():
    before = signal.getsignal(signal.SIGTERM)
    processes.listen()
    yield
    signal.signal(signal.SIGTERM, before)
    processes._signalled = False


def test_sigterm_saves_immediately_and_exits_with_0(listening, tmp_path, capsys):
    def terminate(state, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, hooks=[loop.Hook(1, terminate)])
    assert stopped.value.code == 0
    assert (
        "stopped by SIGTERM at step 3 of 6 (counting), checkpoint saved" in capsys.readouterr().out
    )
    processes._signalled = False
    finished = run(tmp_path)
    assert "continuing from step 3" in capsys.readouterr().out
    assert (int(finished.step), float(finished.tree["total"])) == (6, 6.0)


def test_a_run_resumed_with_longer_calls_logs_every_step_once(listening, tmp_path):
    def terminate(state, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        run(tmp_path, steps=8, hooks=[loop.Hook(1, terminate)], log_every=3)
    processes._signalled = False
    finished = run(tmp_path, steps=12, steps_per_call=4, log_every=8)
    assert (int(finished.step), float(finished.tree["total"])) == (12, 12.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    found = [(line["step"], line["count/loss"]) for line in lines]
    assert found == [(3, 2.0), (4, 4.0), (8, 6.5), (12, 10.5)]  # means of 1-3, 4, 5-8, 9-12


def test_a_second_sigterm_ends_the_program(listening):
    os.kill(os.getpid(), signal.SIGTERM)
    assert processes.stop_requested()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
