"""What the program does in each mode. All of it resumes.

A run directory holds config.json, metrics.jsonl, tensorboard/, samples/, teacher/ with its
provenance, checkpoints/ and, once finished, report.json.
"""

import json

import jax
import numpy as np
from etils import epath

import simjax
from simjax import build, checkpoint, report, sharding
from simjax import config as c
from simjax.evaluation.judge import Judge
from simjax.monitor import Monitor
from simjax.online import Online
from simjax.porting import port
from simjax.teacher import Model, obtain, starting_generator
from simjax.train import loop
from simjax.typing import Params


def distill(config: c.Config, workdir: str) -> None:
    """Makes or continues the distillation in `workdir`; a finished one only prints its report."""
    build.check(config, jax.device_count())
    c.require_teacher(config)
    directory = claim(workdir, config)
    if report.print_finished(directory):
        return
    monitor = _monitor(directory)
    teacher = obtain(config, directory, monitor)
    judging = report.judge(teacher.config, monitor.say)  # missing data show here, not at the end
    start = starting_generator(config, teacher, directory, monitor)
    generator = _distilled(teacher, start, directory, judging, monitor)
    monitor.say("evaluating")
    result = report.make(teacher.config, report.contestants(teacher, generator), judging)
    result |= {"generator_sha256": checkpoint.params_sha256(generator), "weights": "EMA"}
    report.finish(directory, result | {"teacher": teacher.provenance})


def port_only(config: c.Config, workdir: str) -> None:
    """Fetches and ports teacher.source, and prints what it is; nothing is written but the cache."""
    c.require_source(config, "teacher.source")
    ported = port.port(config.teacher.source, sha256=config.teacher.sha256)
    print(port.report(ported))


MODES = {"distill": distill, "port": port_only}


def claim(workdir: str, config: c.Config) -> epath.Path:
    """The run directory, created, writable and of this config.

    Raises:
      ConfigError: it cannot be written, or another config's run lives there.
    """
    path = epath.Path(workdir).resolve()  # Orbax takes absolute paths only
    current = json.loads(json.dumps(c.to_dict(config)))
    try:
        path.mkdir(parents=True, exist_ok=True)
        saved = path / "config.json"
        if not saved.exists():
            report.write_json(saved, current)
        written = json.loads(saved.read_text())
        probe = path / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise c.ConfigError(
            f"workdir {workdir} cannot be used: {error}; choose another with --workdir=DIR."
        ) from error
    except json.JSONDecodeError as error:
        raise c.ConfigError(
            f"{saved} is not valid JSON ({error}); choose another --workdir."
        ) from error
    changed = c.differences(written, current)
    if changed:
        lines = "\n  ".join(changed)
        raise c.ConfigError(
            f"workdir {workdir} holds a run of another config; what differs (there -> here):\n"
            f"  {lines}\nChoose another --workdir, or set these fields back."
        )
    return path


def _monitor(directory: epath.Path) -> Monitor:
    monitor = Monitor(directory)
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    monitor.say(f"simjax {simjax.__version__} in {directory}, {devices}")
    return monitor


def _distilled(
    teacher: Model,
    start: Params,
    directory: epath.Path,
    judging: Judge | None,
    monitor: Monitor,
) -> Params:
    """The generator's EMA after distillation; pictures of the same z, and metrics, on the way."""
    config, mesh = teacher.config, sharding.make_mesh()
    loss = config.loss
    monitor.say(
        f"{loss.name}{f', {loss.distance}' if loss.name == 'sim' else ''}: "
        f"{build.count(teacher.params) / 1e6:.2f} M parameters, batch {config.batch}"
    )
    inputs = build.grid_inputs(config)
    many_steps = report.heun(teacher, config.evaluation.teacher_steps[0]).sampler
    reference = np.asarray(many_steps(teacher.params, *inputs))
    monitor.picture("teacher", reference, columns=config.grid)
    level, contrast = reference.mean(), reference.std(axis=(1, 2, 3)).mean()
    one_step = build.one_step_sampler(teacher.denoise, config.generator.sigma_init)

    def sample(state, step: int) -> None:
        images = np.asarray(one_step(state.generator_ema, *inputs))
        monitor.picture(f"generator_{step:08d}", images, columns=config.grid)

    def annotate(scalars: dict[str, float]) -> dict[str, float]:
        return scalars | {
            "samples/mean_drift": scalars["samples/mean"] - float(level),
            "samples/contrast_ratio": scalars["samples/contrast"] / float(contrast),
        }

    online = Online(teacher, judging, directory, monitor)
    checkpoints = checkpoint.Checkpoints(
        directory / "checkpoints", keep=config.keep_checkpoints, say=monitor.say
    )
    training = build.distillation(config, teacher.denoise, mesh)
    state = loop.run(
        training,
        training.init(teacher.params, start),
        jax.device_put(teacher.params, sharding.replicated(mesh)),
        key=build.key(config, "distillation"),
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
