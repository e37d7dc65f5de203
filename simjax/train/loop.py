"""The training loop of both stages: step, log, callbacks, checkpoint, resume.

On SIGTERM all processes save a checkpoint at the same step and exit with status 0.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from simjax.runtime import processes
from simjax.runtime.checkpoint import Checkpoints
from simjax.runtime.monitor import Monitor
from simjax.train import health
from simjax.train.compile import Training
from simjax.typing import Key


@dataclasses.dataclass(frozen=True)
class Hook:
    """A callback on (state, step).

    Args:
      every: runs every so many steps, and at the first and last step; 0: never.

    >>> hook = Hook(every=100, act=lambda state, step: print(step))
    >>> hook.due(200, last=False), hook.due(250, last=False), hook.due(250, last=True)
    (True, False, True)
    """

    every: int
    act: Callable[[Any, int], None]

    def due(self, step: int, last: bool) -> bool:
        """Whether the callback runs at this step."""
        return self.every > 0 and (last or step % self.every == 0)


def run(
    training: Training,
    state: Any,
    constants_at: Callable[[int], Any],
    *,
    key: Key,
    stage: str,
    checkpoints: Checkpoints,
    monitor: Monitor,
    log_every: int,
    checkpoint_every: int,
    hooks: Sequence[Hook] = (),
    annotate: Callable[[dict[str, float]], dict[str, float]] = dict,
) -> Any:
    """Trains from the newest checkpoint, or from `state`; returns the final state.

    Args:
      training: the compiled call (compile.py).
      state: initial state, training.init(...); donated.
      constants_at: step -> the second argument of the call that starts there: the teacher and
        captions, or the images.
      key: root key of the run; step n draws from fold_in(key, n).
      stage: name in the logs.
      hooks: callbacks, for pictures and measurements during training.
      annotate: adds scalars to those of a log window.
    """

    def log(step: int, window: list[dict[str, jax.Array]]) -> None:
        monitor.scalars(step, annotate(health.summarize(_mean(jax.device_get(window)))))

    resumed = checkpoints.restore_latest(state)
    if resumed is not None:
        state = resumed
        monitor.say(f"{stage}: continuing from step {int(state.step)}.")
    step = int(state.step)
    monitor.begin(stage, step=step, steps=training.steps, batch=training.batch)
    if step == 0:
        _act(hooks, state, step, last=False)
    window = []
    while step < training.steps:
        constants = constants_at(step)
        with jax.transfer_guard("disallow"):  # implicit host-device copies raise
            state, metrics = training.call(state, constants, key)
        step += training.steps_per_call
        window.append(metrics)
        monitor.advance(step)
        last = step >= training.steps
        if step % log_every == 0 or last:
            log(step, window)
            window = []
        _act(hooks, state, step, last)
        stop_requested = processes.stop_requested()
        if stop_requested and window:  # otherwise the next log line would miss these steps
            log(step, window)
        if step % checkpoint_every == 0 or last or stop_requested:
            monitor.flush()  # metrics up to a checkpoint are on disk before the checkpoint is
            checkpoints.save(state)
        if stop_requested:
            checkpoints.close()
            monitor.end()
            processes.stop(f"at step {step} of {training.steps} ({stage}), checkpoint saved")
    monitor.end()
    checkpoints.wait()
    return state


def _act(hooks: Sequence[Hook], state: Any, step: int, last: bool) -> None:
    for hook in hooks:
        if hook.due(step, last):
            hook.act(state, step)


def _mean(window: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.mean([metrics[name] for metrics in window], axis=0) for name in window[0]}
