"""The training loop of both stages: call, log, sample, save; resume where the last save was.

SIGTERM saves at once and ends the program with exit status 0, on all processes at the same step.
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
    """What is done with (state, step) every so many steps, first and last; 0: never."""

    every: int
    act: Callable[[Any, int], None]

    def due(self, step: int, last: bool) -> bool:
        """Whether it is done at this step."""
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
    """Trains from the newest checkpoint, or from `state`, to the last step; returns the state.

    Args:
      training: the compiled call (compile.py).
      state: a fresh one, training.init(...); donated.
      constants_at: step -> what the call that begins there is given beside the state: the teacher
        and captions, or the images.
      key: of the whole run; step n draws from fold_in(key, n).
      stage: name in logs.
      hooks: pictures and measurements on the way.
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
        with jax.transfer_guard("disallow"):  # no copy between host and device goes unseen
            state, metrics = training.call(state, constants, key)
        step += training.steps_per_call
        window.append(metrics)
        monitor.advance(step)
        last = step >= training.steps
        if step % log_every == 0 or last:
            log(step, window)
            window = []
        _act(hooks, state, step, last)
        asked_to_stop = processes.asked_to_stop()
        if asked_to_stop and window:  # or the next line would lack these steps
            log(step, window)
        if step % checkpoint_every == 0 or last or asked_to_stop:
            monitor.flush()  # a resumed run knows what was logged before its checkpoint
            checkpoints.save(state)
        if asked_to_stop:
            checkpoints.close()
            monitor.end()
            processes.stop(f"at step {step} of {training.steps} ({stage}), which is saved")
    monitor.end()
    checkpoints.wait()
    return state


def _act(hooks: Sequence[Hook], state: Any, step: int, last: bool) -> None:
    for hook in hooks:
        if hook.due(step, last):
            hook.act(state, step)


def _mean(window: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.mean([metrics[name] for metrics in window], axis=0) for name in window[0]}
