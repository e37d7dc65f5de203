"""The training loop of both stages: call, log, sample, save; resume where the last save was."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from simjax.build import Training
from simjax.checkpoint import Checkpoints
from simjax.monitor import Monitor
from simjax.train import health
from simjax.typing import Key

Sample = Callable[[Any, int], None]  # (state, step)


def run(
    training: Training,
    state: Any,
    constants: Any,
    *,
    key: Key,
    stage: str,
    checkpoints: Checkpoints,
    monitor: Monitor,
    log_every: int,
    sample_every: int,
    checkpoint_every: int,
    sample: Sample = lambda state, step: None,
    annotate: Callable[[dict[str, float]], dict[str, float]] = dict,
) -> Any:
    """Trains from the newest checkpoint, or from `state`, to the last step; returns the state.

    Args:
      training: the compiled call (build.py).
      state: a fresh one, training.init(...); donated.
      constants: what every call is given beside the state: the teacher, or the images.
      key: of the whole run; step n draws from fold_in(key, n).
      stage: name in logs.
      sample: called with (state, step) every `sample_every` steps, at the start and at the end.
      annotate: adds scalars to those of a log window.
    """
    resumed = checkpoints.restore_latest(state)
    if resumed is not None:
        state = resumed
        monitor.say(f"{stage}: continuing from step {int(state.step)}.")
    step = int(state.step)
    monitor.begin(stage, step=step, steps=training.steps, batch=training.batch)
    if step == 0:
        sample(state, step)
    window = []
    while step < training.steps:
        state, metrics = training.call(state, constants, key)
        step += training.steps_per_call
        window.append(metrics)
        monitor.advance(step)
        last = step >= training.steps
        if step % log_every == 0 or last:
            monitor.scalars(step, annotate(health.summarize(_mean(jax.device_get(window)))))
            window = []
        if step % sample_every == 0 or last:
            sample(state, step)
        if step % checkpoint_every == 0 or last:
            checkpoints.save(state)
    monitor.end()
    checkpoints.wait()
    return state


def _mean(window: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.mean([metrics[name] for metrics in window], axis=0) for name in window[0]}
