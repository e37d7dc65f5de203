"""The story of a run: a teacher, its distillation, the report. All of it resumes.

A run directory holds config.json, metrics.jsonl, tensorboard/, samples/, teacher/ with its
provenance, checkpoints/ and, once finished, report.json.
"""

import dataclasses
import hashlib
import json
import platform
import time
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import simjax
from simjax import build, checkpoint, data, sharding
from simjax import config as c
from simjax.data import conditions
from simjax.evaluation import evaluate
from simjax.monitor import Monitor
from simjax.train import loop
from simjax.typing import Denoise, Params

GRID = 10  # tiles a side of the sample pictures; on the digits a column is a class


def distill(config: c.Config, workdir: str) -> None:
    """Makes or continues the run in `workdir`; a finished one only prints its report."""
    build.check(config, jax.device_count())
    workdir = claim(workdir, config)
    report = workdir / "report.json"
    if report.exists():
        print(f"{workdir} is finished; its report:\n")
        print_report(json.loads(report.read_text()))
        return
    monitor = Monitor(workdir)
    denoise, start = build.denoiser(config)
    size = sum(leaf.size for leaf in jax.tree.leaves(start))
    monitor.say(
        f"simjax {simjax.__version__} in {workdir}: {size / 1e6:.2f} M parameters, "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s), "
        f"{config.loss.name} {config.loss.distance if config.loss.name == 'sim' else ''}"
    )
    teacher, provenance = _teacher(config, workdir, denoise, start, monitor)
    generator = _distilled(config, workdir, denoise, teacher, monitor)
    result = _report(config, denoise, teacher, generator, provenance, monitor)
    write_json(report, result)
    print_report(result)


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
            write_json(saved, current)
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


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a file that is either absent or whole."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def print_report(report: dict[str, Any]) -> None:
    """The short table that ends a run."""
    print(evaluate.table([evaluate.Row(**row) for row in report["rows"]]))
    accuracy = report["classifier_held_out_accuracy"]
    print(f"\n{report['protocol']}; its accuracy on the other half: {accuracy:.3f}.")


def _teacher(
    config: c.Config, workdir: epath.Path, denoise: Denoise, start: Params, monitor: Monitor
) -> tuple[Params, dict[str, Any]]:
    """The run's teacher: the stored one, or one trained now on config.data and stored."""
    stored, pretraining = workdir / "teacher", workdir / "checkpoints_teacher"
    if not stored.exists():
        begun = time.monotonic()
        training = build.pretraining(config, denoise, sharding.make_mesh())
        checkpoints = checkpoint.Checkpoints(pretraining, keep=1, say=monitor.say)
        state = loop.run(
            training,
            start,
            key=_key(config, "pretraining"),
            stage="teacher",
            checkpoints=checkpoints,
            monitor=monitor,
            log_every=config.log_every,
            sample_every=training.steps,
            checkpoint_every=config.checkpoint_every,
        )
        checkpoints.close()
        images, labels = data.SOURCES[config.data.name]()
        provenance = {
            "source": f"trained on {config.data.name}, {config.teacher.steps} steps, EMA weights",
            "data_sha256": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
            "seed": config.seed,
            "seconds": time.monotonic() - begun,
            "simjax": simjax.__version__,
        }
        checkpoint.save_teacher(stored, state.ema, provenance)
    if pretraining.exists():  # also what a kill between the two left behind
        pretraining.rmtree()
    return checkpoint.load_teacher(stored, start)


def _distilled(
    config: c.Config, workdir: epath.Path, denoise: Denoise, teacher: Params, monitor: Monitor
) -> Params:
    """The generator's EMA after distillation, with pictures of the same z on the way."""
    z, labels = _grid_inputs(config)
    reference = np.asarray(
        build.teacher_sampler(denoise, config.evaluation.teacher_steps[0])(teacher, z, labels)
    )
    monitor.picture("teacher", reference, columns=GRID)
    level, contrast = reference.mean(), reference.std(axis=(1, 2, 3)).mean()
    one_step = build.one_step_sampler(denoise, config.generator.sigma_init)

    def sample(state, step: int) -> None:
        images = np.asarray(one_step(state.generator_ema, z, labels))
        monitor.picture(f"generator_{step:08d}", images, columns=GRID)

    def annotate(scalars: dict[str, float]) -> dict[str, float]:
        return scalars | {
            "samples/mean_drift": scalars["samples/mean"] - float(level),
            "samples/contrast_ratio": scalars["samples/contrast"] / float(contrast),
        }

    checkpoints = checkpoint.Checkpoints(
        workdir / "checkpoints", keep=config.keep_checkpoints, say=monitor.say
    )
    state = loop.run(
        build.distillation(config, denoise, sharding.make_mesh()),
        teacher,
        key=_key(config, "distillation"),
        stage=config.loss.name,
        checkpoints=checkpoints,
        monitor=monitor,
        log_every=config.log_every,
        sample_every=config.sample_every,
        checkpoint_every=config.checkpoint_every,
        sample=sample,
        annotate=annotate,
    )
    checkpoints.close()
    steps = sorted({*range(0, config.steps, config.sample_every), config.steps})
    pictures = [f"generator_{step:08d}" for step in steps] + ["teacher"]
    monitor.strip("progress", pictures, tile_rows=GRID)
    return state.generator_ema


def _report(
    config: c.Config,
    denoise: Denoise,
    teacher: Params,
    generator: Params,
    provenance: dict[str, Any],
    monitor: Monitor,
) -> dict[str, Any]:
    """Measures generator and teacher on the labels of the real data, from the same z."""
    monitor.say("evaluating")
    images, classes = data.SOURCES[config.data.name]()
    judge = evaluate.Judge(images, classes)
    asked = classes[np.arange(config.evaluation.samples) % len(classes)]
    labels = conditions.one_hot(asked, config.network.label_dim)
    one_step = build.one_step_sampler(denoise, config.generator.sigma_init)
    runs = [
        (f"generator, {config.loss.name}", 1, one_step, generator),
        ("teacher, one call", 1, one_step, teacher),
    ]
    runs += [
        ("teacher, Heun", 2 * steps - 1, build.teacher_sampler(denoise, steps), teacher)
        for steps in config.evaluation.teacher_steps
    ]
    rows = []
    for name, evaluations, sampler, params in runs:
        samples, seconds = evaluate.draw_samples(
            sampler,
            params,
            _key(config, "evaluation"),
            labels,
            build.image_shape(config),
            config.evaluation.batch,
        )
        rows.append(judge.measure(name, samples, asked, evaluations=evaluations, seconds=seconds))
    rows += judge.floors(config.seed)
    versions = {name: metadata.version(name) for name in ("jax", "flax", "optax")}
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "protocol": evaluate.PROTOCOL,
        "classifier_held_out_accuracy": judge.classifier.held_out_accuracy,
        "seed": config.seed,
        "generator_sha256": checkpoint.params_sha256(generator),
        "teacher": provenance,
        "versions": versions | {"simjax": simjax.__version__, "python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
    }


def _grid_inputs(config: c.Config) -> tuple[jax.Array, jax.Array]:
    """The z and labels of every sample picture of a run, columns of classes."""
    shape = (GRID * GRID, *build.image_shape(config))
    z = jax.random.normal(_key(config, "pictures"), shape)
    classes = jnp.arange(GRID * GRID) % max(config.network.label_dim, 1)
    return z, conditions.one_hot(classes, config.network.label_dim)


def _key(config: c.Config, purpose: str) -> jax.Array:
    """One root key a run, one branch a purpose."""
    purposes = ("pretraining", "distillation", "pictures", "evaluation")
    return jax.random.fold_in(jax.random.key(config.seed), purposes.index(purpose))
