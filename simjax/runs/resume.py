"""Whether a run directory can be continued with a config, and what of it may differ from before.

The tables below decide every field of the schema once: what a run has computed so far depends on
it, or only what its report measures does, or neither. `steps` has rules of its own.

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

# How the steps are computed, or what is seen and kept of them: the same numbers, up to rounding.
FREE = {
    "accumulate": "sums the same gradient in slices",
    "steps_per_call": "how many steps a compiled call makes",
    "remat": "what a backward pass recomputes",
    "scan_blocks": "how blocks are compiled; they are stored alike",
    "fsdp": "over how many devices states are split; checkpoints fit any mesh",
    "probe": "whether the teacher is looked at before, and bounds are watched",
    "grid": "size of the pictures",
    "log_every": "when something is logged",
    "sample_every": "when pictures are drawn",
    "checkpoint_every": "when the state is saved",
    "keep_checkpoints": "how many are kept",
    "checkpoint_limit": "how long a save may take",
    "evaluation.every": "when curves are measured",
    "evaluation.online_samples": "of the curves",
    "evaluation.best": "which generator is kept beside the newest",
}
# What the report measures: a finished run that changes one of these is measured again.
MEASURED = {
    "evaluation.reference": "what samples are compared with",
    "evaluation.limit": "of the reference",
    "evaluation.features": "where they are compared",
    "evaluation.metrics": "how",
    "evaluation.samples": "how many",
    "evaluation.teacher_steps": "of the teacher's rows",
    "evaluation.batch": "how many at a time, which decides the speed",
    "teacher.sampler": "draws the teacher's rows and picture; no step reads it",
    "autoencoder": "decodes latents for pictures and the report",
}
# They train a teacher; of one that has a source they are only the reference.
DATA = ("data.source", "data.split")
# What the parameters depend on, or what is stored of a run would no longer be of its config.
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
    """What a start does in a run directory.

    Args:
      config: as config.json will hold it.
      changed: what differs from what it holds now; None if there is none yet.
      finished: there is a report.
      measures: it is of other settings, or of fewer steps.
    """

    config: dict[str, Any]
    changed: tuple[c.Change, ...] | None
    finished: bool
    measures: bool

    @property
    def has_work(self) -> bool:
        """Whether more is to be done than to print the report."""
        return not self.finished or self.measures


def plan(directory: epath.Path, config: c.Config) -> Plan:
    """Compares a config with the run that lives in the directory; nothing is written.

    Raises:
      ConfigError: another run lives there, with the fields that differ.
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
            f"workdir {directory} holds a run of another config; what differs (there -> here):\n"
            f"  {lines}\nChoose another --workdir, or set these fields back."
        )
    finished = (directory / REPORT).exists()
    measures = finished and any(_is_measured(change.field, config) for change in changed)
    if measures and not done:
        lines = ", ".join(map(str, changed))
        raise ConfigError(
            f"workdir {directory} holds a finished run whose checkpoints are gone, so that it "
            f"cannot go on with {lines}. Choose another --workdir, or set these fields back."
        )
    return Plan(current, changed, finished, measures)


def apply(plan: Plan, directory: epath.Path, say: Callable[[str], None]) -> None:
    """Brings config.json up to date; a report of other settings becomes report_before.json."""
    if plan.measures:  # first: a kill now leaves a run that is not finished
        (directory / REPORT).replace(directory / REPORT_BEFORE)
    if plan.changed is None or plan.changed:
        storage.write_json(directory / CONFIG, plan.config)
    if plan.changed:
        say(f"continuing with other settings: {', '.join(map(str, plan.changed))}.")


def aligned(config: c.Config, directory: epath.Path, say: Callable[[str], None]) -> c.Config:
    """The config with a divisor of steps_per_call that divides every checkpoint's step too.

    What is done every so many steps is only seen where calls end.
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
                f"divide the steps done ({max(kept)})."
            )
    return dataclasses.replace(config, steps_per_call=int(processes.from_first(np.int32(found))))


def holds(table: Any, field: str) -> bool:
    """Whether a table decides the field, or a record that the field is part of."""
    return any(path in table for path in _paths(field))


def _refusals(change: c.Change, config: c.Config, done: int) -> Iterator[str]:
    """Why the run cannot go on with this change, if it cannot."""
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
            f"{change}, which learning rates decay over ({rates}); to go on from this run's "
            "generator, start another --workdir with --config.generator.source= this one"
        )


def _is_measured(field: str, config: c.Config) -> bool:
    if field in DATA:
        return bool(config.teacher.source)
    return field == STEPS or holds(MEASURED, field)


def _paths(field: str) -> Iterator[str]:
    """The field's dotted name and those of the records around it."""
    while field:
        yield field
        field = field.rpartition(".")[0]


def _saved(file: epath.Path) -> dict[str, Any] | None:
    """What config.json holds, with defaults for fields that it does not have yet."""
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
