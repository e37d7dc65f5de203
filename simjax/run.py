"""What the program does in each mode. All of it resumes, on any number of processes and devices.

A run directory holds config.json, metrics.jsonl, tensorboard/, samples/, teacher/ with its
provenance, checkpoints/ and, once finished, report.json.
"""

import json
import secrets
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

import simjax
from simjax import build, checkpoint, checks, processes, report, sharding, storage
from simjax import config as c
from simjax.data import prompts
from simjax.evaluation.judge import Judge
from simjax.monitor import Monitor
from simjax.online import Online
from simjax.porting import port
from simjax.teacher import Model, as_frozen, obtain, starting_generator
from simjax.train import loop, step
from simjax.train.state import TrainState
from simjax.typing import Params


def distill(config: c.Config, workdir: str) -> None:
    """Makes or continues the distillation in `workdir`; a finished one only prints its report."""
    checks.instance("config", config, c.Config, "simjax.Config(...) makes one")
    build.check(config, jax.device_count())
    c.require_teacher(config)
    directory = claim(workdir, config)
    if report.print_finished(directory):
        return
    monitor = _monitor(directory)
    teacher = obtain(config, directory, monitor)
    judging = report.judge(teacher.config, monitor.say)  # missing data show here, not at the end
    training = build.distillation(teacher.config, teacher.denoise, teacher.mesh)
    start = starting_generator(config, teacher, directory, monitor)
    state = training.init(teacher.params, start)
    teacher = as_frozen(teacher)
    generator = _distilled(training, state, teacher, directory, judging, monitor)
    monitor.say("evaluating")
    result = report.make(teacher, report.contestants(teacher, generator), judging)
    result |= {"generator_sha256": checkpoint.params_sha256(generator), "weights": "EMA"}
    report.finish(directory, result | {"teacher": teacher.provenance})


def port_only(config: c.Config, workdir: str) -> None:
    """Fetches and ports teacher.source, and prints what it is; nothing is written but the cache."""
    if not processes.is_first():
        return
    c.require_source(config, "teacher.source")
    known = {"family": config.teacher.family, "sha256": config.teacher.sha256}
    ported = port.port(config.teacher.source, **known)
    print(port.report(ported))


MODES = {"distill": distill, "port": port_only}


def claim(workdir: str, config: c.Config) -> epath.Path:
    """The run directory, created, writable, of this config and seen by every process.

    Raises:
      ConfigError: it cannot be written, or another config's run lives there.
    """
    path = storage.absolute(workdir)
    current = _as_written(c.to_dict(config))
    try:
        if processes.is_first():
            path.mkdir(parents=True, exist_ok=True)
            if not (path / "config.json").exists():
                storage.write_json(path / "config.json", current)
        _require_shared(path)
        saved = path / "config.json"
        written = c.to_dict(c.from_dict(json.loads(saved.read_text())))  # new fields: defaults
    except json.JSONDecodeError as error:
        raise c.ConfigError(
            f"{saved} is not valid JSON ({error}); choose another --workdir."
        ) from error
    except c.ConfigError:
        raise
    except Exception as error:  # a bucket's errors have no common type
        raise c.ConfigError(
            f"workdir {workdir} cannot be used: {' '.join(str(error).split())}; choose another "
            "with --workdir=DIR."
        ) from error
    changed = c.differences(_as_written(written), current)
    if changed:
        lines = "\n  ".join(changed)
        raise c.ConfigError(
            f"workdir {workdir} holds a run of another config; what differs (there -> here):\n"
            f"  {lines}\nChoose another --workdir, or set these fields back."
        )
    return path


def _as_written(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))


def _require_shared(path: epath.Path) -> None:
    """Writes a file in the run directory that every process must see."""
    probe = path / ".writable"
    token = int(processes.from_first(np.uint32(secrets.randbits(32))))
    processes.by_first(lambda: probe.write_text(str(token)), "the directory is probed")
    try:
        seen = probe.read_text() == str(token)
    except Exception:  # for whatever reason
        seen = False
    if not processes.all_true(seen):
        raise c.ConfigError(
            f"not every process sees workdir {path}: several hosts need a bucket (gs://...) or a "
            "shared file system; choose one with --workdir=DIR."
        )
    processes.by_first(probe.unlink, "the probe is removed")


def _monitor(directory: epath.Path) -> Monitor:
    monitor = Monitor(directory)
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    several = jax.process_count()
    devices += f" of {several} processes" if several > 1 else ""
    monitor.say(f"simjax {simjax.__version__} in {directory}, {devices}")
    return monitor


def constants_at(teacher: Model) -> Callable[[int], step.Constants]:
    """What the call that begins at a step is given: the teacher, and captions where it reads them.

    Prompts are shuffled by the run's seed; those of the next call are read meanwhile.
    """
    config = teacher.config
    if teacher.captions is None:
        constants = step.Constants(teacher.params)
        return lambda _: constants
    reader = prompts.Reader(
        teacher.captions.cache,
        seed=config.seed,
        batch=config.batch,
        steps_per_call=config.steps_per_call,
        mesh=teacher.mesh,
    )
    return lambda step_: step.Constants(teacher.params, reader.captions(step_))


def _distilled(
    training: build.Training,
    state: TrainState,
    teacher: Model,
    directory: epath.Path,
    judging: Judge | None,
    monitor: Monitor,
) -> Params:
    """The generator's EMA after distillation; pictures of the same z, and metrics, on the way."""
    config, mesh, loss = teacher.config, teacher.mesh, teacher.config.loss
    monitor.say(
        f"{loss.name}{f', {loss.distance}' if loss.name == 'sim' else ''}: "
        f"{build.count(teacher.params) / 1e6:.2f} M parameters, batch {config.batch}, "
        + ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    )
    classes = np.arange(config.grid**2) % max(teacher.classes, 1)
    inputs = build.grid_inputs(config, teacher.asked(classes), mesh)
    many_steps = report.many_steps(teacher, config.evaluation.teacher_steps[0]).sampler
    reference = sharding.to_host(many_steps(teacher.params, *inputs))
    monitor.picture("teacher", teacher.decode(reference), columns=config.grid)
    level, contrast = reference.mean(), reference.std(axis=(1, 2, 3)).mean()
    one_step = report.one_step(teacher, {"generator": state.generator_ema})[0].sampler

    def sample(state, step: int) -> None:
        images = sharding.to_host(one_step(state.generator_ema, *inputs))
        monitor.picture(f"generator_{step:08d}", teacher.decode(images), columns=config.grid)

    def annotate(scalars: dict[str, float]) -> dict[str, float]:
        return scalars | {
            "samples/mean_drift": scalars["samples/mean"] - float(level),
            "samples/contrast_ratio": scalars["samples/contrast"] / float(contrast),
        }

    online = Online(teacher, judging, directory, monitor)
    checkpoints = checkpoint.Checkpoints(
        directory / "checkpoints",
        keep=config.keep_checkpoints,
        say=monitor.say,
        limit=config.checkpoint_limit,
    )
    state = loop.run(
        training,
        state,
        constants_at(teacher),
        key=build.key_on(config, "distillation", mesh),
        stage=loss.name,
        checkpoints=checkpoints,
        monitor=monitor,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        hooks=[
            loop.Hook(config.sample_every, sample),
            loop.Hook(config.evaluation.every, online.measure),
        ],
        annotate=annotate,
    )
    checkpoints.close()
    steps = sorted({*range(0, config.steps, config.sample_every), config.steps})
    pictures = [f"generator_{step:08d}" for step in steps] + ["teacher"]
    monitor.strip("progress", pictures, tile_rows=config.grid)
    return state.generator_ema
