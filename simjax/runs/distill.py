"""Runs a whole distillation; resumes on any number of processes and devices.

A run directory holds config.json, metrics.jsonl, tensorboard/, samples/, teacher/ with its
provenance, probe.json, checkpoints/ and, once finished, report.json; owner.json exists while a
program is writing there.
"""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath
from PIL import Image

from simjax import config as c
from simjax.data import Dataset
from simjax.errors import ConfigError
from simjax.evaluation.evaluator import Evaluator
from simjax.models import build, samplers, stored
from simjax.models.model import Model
from simjax.models.samplers import Sampler
from simjax.runs import ahead, check, fields, real, report, resume, setup
from simjax.runs.online import Online
from simjax.runs.probe import alarm
from simjax.runs.teacher import as_frozen, obtain, starting_generator
from simjax.runtime import (
    checkpoint,
    owner,
    processes,
    settings,
    sharding,
    storage,
    values,
    versions,
)
from simjax.runtime.monitor import Monitor
from simjax.text import prompts
from simjax.train import loop
from simjax.train.compile import Training
from simjax.train.state import TrainState
from simjax.train.update import Constants
from simjax.typing import Params


@settings.independent
def distill(config: c.Config, workdir: str) -> None:
    """Starts or resumes the run in `workdir`, or prints its report.

        from simjax import config as c

        config = simjax.Config(
            steps=100_000, batch=256, teacher=c.Teacher(source="edm-ffhq-64x64-uncond-vp")
        )
        simjax.distill(config, "runs/ffhq")
        generator = simjax.load("runs/ffhq")

    Writes config.json, metrics.jsonl, samples/, checkpoints/ and, at the end, report.json, as
    `python -m simjax.main` does. An interrupted run resumes from its last checkpoint.

    Args:
      config: settings; the teacher is config.teacher.source, or is trained on config.data.
      workdir: run directory, local, shared or gs://BUCKET/RUN.

    Raises:
      ConfigError: invalid config, or `workdir` holds another run, is in use or is not writable.
      Preempted: SIGTERM was received, and the state is saved.
    """
    values.instance("config", config, c.Config, "simjax.Config(...) makes one")
    check.check(config, jax.device_count(), _begun(storage.absolute(workdir)))
    c.require_teacher(config)
    directory = storage.absolute(workdir)
    if _has_work(directory, config):
        # Before config.json is written, so that a wrong real.source can still be corrected.
        images = real.open_images(dataclasses.replace(config, network=fields.known_network(config)))
        say = functools.partial(print, flush=True)
        with owner.only(directory, say):
            if _has_work(directory, config, begin=say):  # again, now that this program owns it
                monitor = _monitor(directory)
                try:
                    _distill(resume.aligned(config, directory, say), directory, monitor, images)
                finally:  # flush the log: the process may exit right after
                    with contextlib.suppress(Exception):
                        monitor.end()
                return
    report.print_finished(directory)


def _distill(
    config: c.Config, directory: epath.Path, monitor: Monitor, images: Dataset | None
) -> None:
    with ahead.distillation(config, images) as distillation_of:
        teacher = obtain(config, directory, monitor)
    # Again: the network may have been unknown until the teacher's file was read.
    fields.require_read(teacher.config, _begun(directory))
    samplers.require_ladder(teacher.config)
    images = images or real.open_images(teacher.config)
    evaluator = report.evaluator(
        teacher.config, monitor.say
    )  # fail on missing data now, not at the end
    training = distillation_of(teacher)
    _store_start_of_run(config.generator.source, directory / "generator_start")
    state = training.init(teacher.params, starting_generator(config, teacher, directory, monitor))
    teacher = as_frozen(teacher)
    compared = report.samplers_of(teacher, teacher.params)
    generator = _distilled(
        training, state, teacher, images, compared, directory, evaluator, monitor
    )
    monitor.say("evaluating")
    compared[0] = dataclasses.replace(compared[0], params=generator)
    result = report.make(teacher, compared, evaluator)
    result |= {"generator_sha256": checkpoint.params_sha256(generator), "weights": "EMA"}
    report.finish(directory, result | {"teacher": teacher.provenance})


def _has_work(
    directory: epath.Path, config: c.Config, begin: Callable[[str], None] | None = None
) -> bool:
    """Whether training or evaluation remains; every process gets the same answer.

    Args:
      begin: logging function; if given, config.json is written (or updated, which is logged).

    Raises:
      ConfigError: the directory holds a run of another config, or is not writable.
    """

    def decide() -> bool:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            plan = resume.plan(directory, config)
            if begin and plan.has_work:
                resume.apply(plan, directory, begin)
        except ConfigError:
            raise
        except Exception as error:  # errors of gs:// buckets have no common type
            raise storage.unusable(directory, error) from error
        return plan.has_work

    return processes.decided_by_first(decide)


def _begun(directory: epath.Path) -> c.Config | None:
    """Config of a run that has checkpoints; `resume` reports a damaged config.json."""
    with contextlib.suppress(Exception):
        if any((directory / name).exists() for name in ("checkpoints_teacher", "checkpoints")):
            return stored.config_of_run(directory)
    return None


def _store_start_of_run(source: str, start: epath.Path) -> None:
    """Copies the generator of another run, if `source` is a run directory."""
    found = stored.find_run(source) if source else None
    if found is None or processes.from_first(np.int32(checkpoint.is_stored(start))):
        return
    directory, config = found
    model = stored.load(config, directory / "teacher")
    generator, made = stored.generator_of_run(model, directory, "generator")
    about = {"source": f"generator of {source}, {stored.describe_generator(made)}"}
    stored.store_again(start, model, generator, about)


def _monitor(directory: epath.Path) -> Monitor:
    monitor = Monitor(directory)
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    several = jax.process_count()
    devices += f" of {several} processes" if several > 1 else ""
    monitor.say(f"simjax {versions.SIMJAX} in {directory}, {devices}")
    return monitor


def constants_at(
    teacher: Model, updates: int, reads: int = 0, images: Dataset | None = None
) -> Callable[[int], Constants]:
    """Returns step -> call inputs: teacher, captions or real images.

    Captions and real images are shuffled by the run's seed and prefetched for the next call.

    Args:
      updates: number of updates per step; each gets its own captions.
      reads: number of these updates that read real images.
      images: the data set of real images.
    """
    config = teacher.config
    if images is not None:
        real_at = real.images_at(config, images, teacher.mesh, reads)
        return lambda step: Constants(teacher.params, real=real_at(step))
    if teacher.captions is None:
        constants = Constants(teacher.params)
        return lambda _: constants
    reader = prompts.Reader(
        teacher.captions.cache,
        seed=config.seed,
        batch=config.batch,
        steps_per_call=config.steps_per_call,
        updates=updates,
        mesh=teacher.mesh,
    )
    return lambda step: Constants(teacher.params, reader.at(step))


def _distilled(
    training: Training,
    state: TrainState,
    teacher: Model,
    images: Dataset | None,
    compared: Sequence[Sampler],
    directory: epath.Path,
    evaluator: Evaluator | None,
    monitor: Monitor,
) -> Params:
    """Distils and returns the generator's EMA; logs metrics and sample grids.

    All grids use the same z.

    Args:
      compared: samplers of the report, which also draw the grids.
    """
    config, mesh, loss = teacher.config, teacher.mesh, teacher.config.loss
    monitor.say(
        f"{loss.name}{f', {loss.distance}' if loss.name == 'sim' else ''}: "
        f"{build.count(teacher.params) / 1e6:.2f} M parameters, batch {config.batch}, "
        + ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    )
    classes = np.arange(config.grid**2) % max(teacher.classes, 1)
    cond = jax.tree.map(np.asarray, teacher.conditions(classes))
    inputs = setup.grid_inputs(config, cond, mesh)
    generate, _, many_steps, *_ = (sampler.function for sampler in compared)
    reference = sharding.to_host(many_steps(teacher.params, *inputs))
    monitor.picture("teacher", teacher.decode(reference), columns=config.grid)
    level, contrast = reference.mean(), reference.std(axis=(1, 2, 3)).mean()
    raised = _no_alarm
    if config.probe:
        raised = alarm.begin(teacher, reference, cond, directory / "probe.json", monitor.say)

    def sample(state, step: int) -> None:
        images = sharding.to_host(generate(state.ema, *inputs))
        monitor.picture(f"generator_{step:08d}", teacher.decode(images), columns=config.grid)

    def annotate(scalars: dict[str, float]) -> dict[str, float]:
        if "samples/mean" in scalars:  # logged once the generator is being trained
            scalars = scalars | {
                "samples/mean_drift": scalars["samples/mean"] - float(level),
                "samples/contrast_ratio": scalars["samples/contrast"] / float(contrast),
            }
        return scalars | raised(scalars)

    online = Online(teacher, evaluator, directory, monitor)
    checkpoints = checkpoint.Checkpoints(
        directory / "checkpoints",
        keep=config.keep_checkpoints,
        say=monitor.say,
        limit=config.checkpoint_limit,
    )
    state = loop.run(
        training,
        state,
        constants_at(teacher, setup.updates_a_step(config), setup.reads_a_step(config), images),
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
    if monitor.active:
        monitor.strip("progress", [*_drawn(directory), "teacher"], tile_rows=config.grid)
    return state.ema


def _no_alarm(scalars: dict[str, float]) -> dict[str, float]:
    return {}


def _drawn(directory: epath.Path) -> list[str]:
    """Names of the generator's sample grids of the current size, oldest first."""

    def size(path: epath.Path) -> tuple[int, int]:
        return Image.open(io.BytesIO(path.read_bytes())).size

    samples = directory / "samples"
    expected = size(samples / "teacher.png")
    found = sorted(samples.glob("generator_*.png"), key=lambda path: path.name)
    return [path.stem for path in found if size(path) == expected]
