"""Decides whether a run can be resumed with a changed config.

Each config field is in exactly one of the tables below: FIXED (the results so far depend on it),
MEASURED (only the report depends on it) or FREE (neither). `steps` and `data` have their own rules.

Called from runs/distill.py.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from simjax import config as c
from simjax.errors import ConfigError
from simjax.runtime import checkpoint, processes, storage

CONFIG, REPORT, REPORT_BEFORE = "config.json", "report.json", "report_before.json"

# How steps are computed, logged and saved: results are the same, up to rounding.
FREE = {
    "accumulate": "gradient accumulation over slices of the batch",
    "steps_per_call": "training steps per compiled call",
    "remat": "activations recomputed in the backward pass",
    "scan_blocks": "how blocks are compiled; stored in the same format",
    "fsdp": "number of devices that states are sharded over; checkpoints restore onto any mesh",
    "probe": "teacher probe at start, and alarms",
    "grid": "size of the sample grids",
    "log_every": "logging interval",
    "sample_every": "interval of sample grids",
    "checkpoint_every": "checkpoint interval",
    "keep_checkpoints": "number of checkpoints kept",
    "checkpoint_limit": "time limit of a save",
    "evaluation.every": "interval of online evaluation",
    "evaluation.online_samples": "samples of online evaluation",
    "evaluation.best": "metric by which the best generator is kept",
}
# What the report measures: a finished run that changes one of these is evaluated again.
MEASURED = {
    "evaluation.reference": "reference images or statistics",
    "evaluation.limit": "number of reference images",
    "evaluation.features": "feature spaces",
    "evaluation.metrics": "metrics",
    "evaluation.samples": "number of samples",
    "evaluation.teacher_steps": "steps of the teacher's rows",
    "evaluation.batch": "sampling batch, which affects the speed",
    "teacher.sampler": "draws the teacher's rows and grid; not used in training",
    "autoencoder": "decodes latents for sample grids and the report",
}
# Training data of a teacher trained here (fixed); of a ported teacher only the reference.
DATA = ("data.source", "data.split")
# The parameters depend on these, or stored files would no longer match the config.
FIXED = (
    *("seed", "batch", "fake_score_updates", "compute_dtype", "network", "dropout"),
    *("text.t5", "text.length", "text.cache", "text.words", "text.templates", "text.held_out"),
    *("teacher.source", "teacher.family", "teacher.sha256", "teacher.dtype", "teacher.guidance"),
    "teacher.guided_channels",
    *("teacher.precondition", "teacher.sigma_data", "teacher.steps", "teacher.batch"),
    *("teacher.sigma", "teacher.weight", "teacher.augment", "teacher.drop_condition"),
    *("teacher.optim", "teacher.ema"),
    *("generator.source", "generator.family", "generator.sigma_init", "generator.sigma"),
    *("generator.steps", "generator.shift", "generator.levels", "generator.renoise"),
    *("generator.start", "fake_score.pull"),
    *("generator.weight", "generator.optim", "generator.ema"),
    *("fake_score.sigma", "fake_score.weight", "fake_score.scale", "fake_score.augment"),
    *("fake_score.guidance", "fake_score.drop_condition", "fake_score.optim"),
    *("fake_score.learnt_guidance", "guidance"),
    *("loss", "real", "adversarial"),
)
STEPS = "steps"
SCHEDULES = ("generator.optim.final_lr", "fake_score.optim.final_lr")  # 1: constant rates


@dataclasses.dataclass(frozen=True)
class Plan:
    """What starting a run in a directory involves.

    Args:
      config: contents of the new config.json.
      changed: differences from the present config.json; None if there is none.
      finished: report.json exists.
      measures: the report is outdated: made with other settings or fewer steps.
    """

    config: dict[str, Any]
    changed: tuple[c.Change, ...] | None
    finished: bool
    measures: bool

    @property
    def has_work(self) -> bool:
        """Whether training or evaluation remains."""
        return not self.finished or self.measures


def plan(directory: epath.Path, config: c.Config) -> Plan:
    """Compares a config with the run stored in a directory; writes nothing.

    Raises:
      ConfigError: the directory holds another run; lists the fields that differ.
    """
    config = c.resolved(config)
    current, saved = _plain(c.to_dict(config)), _saved(directory / CONFIG)
    if saved is None:
        return Plan(current, None, finished=False, measures=False)
    changed = tuple(c.changes(saved, current))
    done = max(checkpoint.steps_in(directory / "checkpoints"), default=0)
    refused = [line for change in changed for line in _refusals(change, config, done)]
    if refused:
        lines = "\n  ".join(refused)
        raise ConfigError(
            f"workdir {directory} holds a run of another config; differences (stored -> given):\n"
            f"  {lines}\nChoose another --workdir, or reset these fields."
        )
    finished = (directory / REPORT).exists()
    measures = finished and any(_is_measured(change.field, config) for change in changed)
    if measures and not done:
        lines = ", ".join(map(str, changed))
        raise ConfigError(
            f"workdir {directory} holds a finished run whose checkpoints are gone, so it cannot "
            f"be resumed with {lines}. Choose another --workdir, or reset these fields."
        )
    return Plan(current, changed, finished, measures)


def apply(plan: Plan, directory: epath.Path, say: Callable[[str], None]) -> None:
    """Updates config.json; an outdated report becomes report_before.json."""
    if plan.measures:  # first, so that a kill here leaves the run unfinished
        (directory / REPORT).replace(directory / REPORT_BEFORE)
    if plan.changed is None or plan.changed:
        storage.write_json(directory / CONFIG, plan.config)
    if plan.changed:
        say(f"continuing with changed settings: {', '.join(map(str, plan.changed))}.")


def aligned(config: c.Config, directory: epath.Path, say: Callable[[str], None]) -> c.Config:
    """The config with steps_per_call reduced to divide every checkpoint's step.

    Logging, sampling and saving happen only at the end of a compiled call.
    """
    found = 0
    if processes.is_first():
        kept = [
            step
            for stage in ("checkpoints", "checkpoints_teacher")
            for step in checkpoint.steps_in(directory / stage)
        ]
        found = math.gcd(config.steps_per_call, *kept)
        if found != config.steps_per_call:
            say(
                f"steps_per_call = {found} instead of {config.steps_per_call}, which does not "
                f"divide the {max(kept)} steps done."
            )
    return dataclasses.replace(config, steps_per_call=int(processes.from_first(np.int32(found))))


def holds(table: Any, field: str) -> bool:
    """Whether a table contains the field or a config section around it.

    >>> holds(FIXED, "loss.c"), holds(FREE, "loss.c"), holds(FREE, "evaluation.every")
    (True, False, True)
    """
    return any(path in table for path in _paths(field))


def _refusals(change: c.Change, config: c.Config, done: int) -> Iterator[str]:
    """Yields why the run cannot be resumed with this change."""
    if change.field == STEPS:
        yield from _refused_steps(change, config, done)
    elif not (holds(FREE, change.field) or _is_measured(change.field, config)):
        yield str(change)


def _refused_steps(change: c.Change, config: c.Config, done: int) -> Iterator[str]:
    decaying = [path for path in SCHEDULES if c.get_field(config, path) != 1]
    if change.current < done:
        yield f"{change}, but {done} are done already"
    elif decaying and done:
        rates = ", ".join(f"{path} = {c.get_field(config, path)}" for path in decaying)
        yield (
            f"{change}, but the learning rates decay over these steps ({rates}); to train this "
            "run's generator further, start a new --workdir with --config.generator.source set to "
            "this one"
        )


def _is_measured(field: str, config: c.Config) -> bool:
    if field in DATA:
        return bool(config.teacher.source)
    return field == STEPS or holds(MEASURED, field)


def _paths(field: str) -> Iterator[str]:
    """Yields the field's dotted name and those of its enclosing sections."""
    while field:
        yield field
        field = field.rpartition(".")[0]


def _saved(file: epath.Path) -> dict[str, Any] | None:
    """Contents of config.json, with defaults for missing (newer) fields."""
    if not file.exists():
        return None
    try:
        return _plain(c.to_dict(c.resolved(c.from_dict(json.loads(file.read_text())))))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{file} is not valid JSON ({error}); choose another --workdir."
        ) from error


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))
