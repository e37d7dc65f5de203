"""A run's final report: metrics of every sampler, and their protocol.

All processes draw samples; the first one computes the metrics.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from simjax import config as c
from simjax import data
from simjax.errors import ConfigError
from simjax.evaluation import features, reference
from simjax.evaluation.drawing import Drawing
from simjax.evaluation.evaluator import Evaluator, Row, Space, table
from simjax.models import build, samplers
from simjax.models.generator import generator_of
from simjax.models.model import Model
from simjax.models.samplers import Sampler
from simjax.runs import check, setup
from simjax.runtime import processes, storage, values, versions
from simjax.typing import Condition, Params

NOTHING_TO_COMPARE = (
    "Neither evaluation.reference nor data.source is set: only the speed was measured."
)


def samplers_of(teacher: Model, generator: Params, name: str = "generator") -> list[Sampler]:
    """Samplers of a distillation's report: generator, teacher once, teacher's sampler."""
    config = teacher.config
    called = f"teacher, {generator_of(config).name}"
    alike = {f"{name}, {config.loss.name}": generator, called: teacher.params}
    return samplers.generated(teacher, alike) + [
        samplers.many_steps(teacher, n) for n in config.evaluation.teacher_steps
    ]


def evaluator(config: c.Config, say: Callable[[str], None] = print) -> Evaluator | None:
    """Feature spaces and references of a config; None without a reference.

    With several processes only the first one has feature spaces.

    Raises:
      ConfigError: data, weights or statistics are missing or do not match.
    """
    options = config.evaluation
    source = options.reference or config.data.source
    if not source:
        return None
    if not processes.is_first():
        return Evaluator([], options.metrics)
    real = _real_images(config)
    check.check_evaluation(options)
    spaces = []
    for name in options.features:
        extractor = EXTRACTORS[name](real, say)
        which = {"split": config.data.split, "limit": options.limit or None}
        compared = reference.of(source, extractor, **which, say=say)
        spaces.append(Space(extractor, compared))
    return Evaluator(spaces, options.metrics)


def _real_images(config: c.Config) -> data.Dataset | None:
    if not config.data.source:
        return None
    if config.network is None:  # evaluating images from files
        return data.open(config.data.source, split=config.data.split)
    return setup.open_data(config)


def _classifier(real: data.Dataset | None, say: Callable[[str], None]) -> features.Extractor:
    if real is None:
        raise ConfigError("the features 'classifier' need data.source as training data.")
    return features.classifier(real, say=say)


EXTRACTORS = {
    "inception": lambda real, say: features.inception(say=say),
    "pixels": lambda real, say: features.pixels(),
    "classifier": _classifier,
}


def requested_classes(model: Model, evaluator: Evaluator | None, count: int) -> np.ndarray:
    """Classes to condition on, cycling through the reference's labels or all classes."""
    classes = np.arange(max(model.classes, 1))
    if evaluator and model.classes:
        labels = (space.reference.labels for space in evaluator.spaces)
        classes = next((found for found in labels if found is not None), classes)
    return processes.from_first(classes[np.arange(count) % len(classes)].astype(np.int32))


def drawing(model: Model, classes: np.ndarray, seed: int) -> Drawing:
    """Noise and conditions for samples of `classes`."""
    return drawing_of(model, model.conditions(classes), len(classes), seed)


def drawing_of(model: Model, cond: Condition, count: int, seed: int) -> Drawing:
    """Noise for `count` samples, which cycle through the conditions."""
    config = model.config
    values.whole_number("samples", count, 1)
    key = jax.random.fold_in(build.key(config, "evaluation"), values.seed(seed))
    shape, batch = build.image_shape(config), config.evaluation.batch
    return Drawing(key, cond, shape, batch, model.mesh, model.decode, count)


def measure(
    model: Model,
    compared: Sequence[Sampler],
    evaluator: Evaluator | None,
    *,
    samples: int,
    seed: int = 0,
) -> list[Row]:
    """Evaluates each sampler; without an evaluator, times one batch."""
    config = model.config
    classes = requested_classes(model, evaluator, samples if evaluator else config.evaluation.batch)
    drawn = drawing(model, classes, seed)
    conditional = classes if model.classes else None
    rows = []
    for sampler in compared:
        batches = drawn.draw(sampler.function, sampler.params)
        if evaluator:
            metrics, count = evaluator.measure(batches, conditional)
        else:
            metrics, count = {}, sum(map(len, batches))
        rows.append(Row(sampler.name, sampler.evaluations, count, drawn.seconds, metrics))
    return rows


def make(
    model: Model, compared: Sequence[Sampler], evaluator: Evaluator | None, *, seed: int = 0
) -> dict[str, Any]:
    """Rows of every sampler and of real images, with protocol and versions."""
    samples = model.config.evaluation.samples
    rows = measure(model, compared, evaluator, samples=samples, seed=seed)
    rows += evaluator.floors(model.config.seed) if evaluator else []
    return result(rows, evaluator, seed)


def result(
    rows: Sequence[Row],
    evaluator: Evaluator | None,
    seed: int,
    of_clip: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Contents of report.json and metrics.json.

    Args:
      of_clip: protocol of CLIP and aesthetic scores.
    """
    protocol = {} if evaluator is None else evaluator.protocol()
    is_measured = evaluator is not None or of_clip is not None
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "protocol": protocol | (of_clip or {}) if is_measured else NOTHING_TO_COMPARE,
        "seed": seed,
        "versions": versions.of("jax", "flax", "optax"),
        "device": jax.devices()[0].device_kind,
    }


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first result, plus minimum, mean and all values per metric.

    EDM reports the minimum of three, which rewards measuring more often; so all values are kept.

    >>> row = {"name": "generator", "evaluations": 1}
    >>> one = {"seed": 0, "rows": [row | {"metrics": {"fid": 2.0}}]}
    >>> two = {"seed": 1, "rows": [row | {"metrics": {"fid": 4.0}}]}
    >>> summary([one, two])["repeats"]
    {'generator (1)': {'fid': {'minimum': 2.0, 'mean': 3.0, 'all': [2.0, 4.0]}}}
    """
    by_name: dict[str, dict[str, list[float]]] = {}
    for found in results:
        for row in found["rows"]:
            calls = row["evaluations"]  # rows of one sampler may differ only in NFE
            name = row["name"] if calls is None else f"{row['name']} ({calls})"
            for metric, value in row["metrics"].items():
                by_name.setdefault(name, {}).setdefault(metric, []).append(value)
    spread = {
        name: {
            metric: {"minimum": min(values), "mean": float(np.mean(values)), "all": values}
            for metric, values in metrics.items()
        }
        for name, metrics in by_name.items()
    }
    return results[0] | {"seeds": [found["seed"] for found in results], "repeats": spread}


def finish(workdir: epath.Path, result: dict[str, Any]) -> None:
    """Writes report.json, which marks the run as finished, and prints the table."""
    if processes.is_first():
        storage.write_json(workdir / "report.json", result)
        show(result)


def print_finished(workdir: epath.Path) -> bool:
    """Prints a finished run's report; returns False if there is none."""
    written = workdir / "report.json"
    if not processes.from_first(np.int32(written.exists())):
        return False
    if not processes.is_first():
        return True
    print(f"{workdir} is finished; its report:\n")
    show(json.loads(written.read_text()))
    return True


def show(result: dict[str, Any]) -> None:
    """Prints the table, and the protocol of its columns."""
    print(table([Row(**row) for row in result["rows"]]))
    for name, metrics in result.get("repeats", {}).items():
        for metric, found in metrics.items():
            each = ", ".join(f"{value:.4f}" for value in found["all"])
            low, mean = found["minimum"], found["mean"]
            print(f"{name}: {metric} minimum {low:.4f}, mean {mean:.4f} ({each})")
    print()
    if isinstance(result["protocol"], str):
        print(result["protocol"])
        return
    for name, space in result["protocol"].items():
        if "reference" not in space:
            print(f"{name}: {_clip_protocol(space)}")
            continue
        real, accuracy = space["reference"], space["extractor"].get("held_out_accuracy")
        note = "" if accuracy is None else f"; its held-out accuracy is {accuracy:.3f}"
        count = "an unknown number of" if real["images"] is None else real["images"]
        unknown = real["protocol"].get("extractor") == reference.UNKNOWN
        note += f" ({reference.UNKNOWN})" if unknown else ""
        print(f"{name}: {space['extractor']['features']}{note}; against {count} of {real['name']}")


def _clip_protocol(space: dict[str, Any]) -> str:
    """Human-readable protocol of the CLIP score and the aesthetic score."""
    network, agreement, head = (space.get(k) for k in ("extractor", "clip_score", "aesthetic"))
    parts = [f"{network['network']} (sha256 {network['weights_sha256'][:12]})"]
    if agreement:
        parts.append(
            f"clip_score = {agreement['weight']:g} max(cos, 0); {agreement['prompts']} prompts of "
            f"{agreement['prompts_name']} (cycled), {agreement['truncated']} truncated"
        )
    if head:
        parts.append(f"aesthetic head: {head['head']} (sha256 {head['weights_sha256'][:12]})")
    return "; ".join(parts)
