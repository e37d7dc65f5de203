"""The table that ends a run: every sampler measured the same way, and what it was made with."""

import dataclasses
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from etils import epath

import simjax
from simjax import build, data
from simjax import config as c
from simjax.data import conditions
from simjax.evaluation import evaluate
from simjax.teacher import Model
from simjax.typing import Images, Params


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A way of making images: sampler(params, z, labels, keys), at `evaluations` calls of D."""

    name: str
    evaluations: int
    sampler: Callable[..., Images]
    params: Params


def one_step(model: Model, params: Mapping[str, Params]) -> list[Contestant]:
    """One evaluation at sigma_init, with each of the named parameters."""
    sampler = build.one_step_sampler(model.denoise, model.config.generator.sigma_init)
    return [Contestant(name, 1, sampler, value) for name, value in params.items()]


def heun(teacher: Model, steps: int) -> Contestant:
    """The teacher itself, on EDM's ladder."""
    sampler = build.teacher_sampler(teacher.denoise, teacher.config.teacher.sampler, steps)
    return Contestant("teacher, Heun", 2 * steps - 1, sampler, teacher.params)


def make(config: c.Config, contestants: Sequence[Contestant]) -> dict[str, Any]:
    """Measures every contestant on the same z and labels, against config.data if there is any."""
    judge = _judge(config)
    classes = np.arange(max(config.network.label_dim, 1))
    if judge and judge.labels is not None:
        classes = judge.labels
    asked = classes[np.arange(config.evaluation.samples) % len(classes)]
    labels = conditions.one_hot(asked, config.network.label_dim)
    shape, batch = build.image_shape(config), config.evaluation.batch
    drawing = evaluate.Drawing(build.key(config, "evaluation"), labels, shape, batch)
    rows = []
    for contestant in contestants:
        images, seconds = drawing.draw(contestant.sampler, contestant.params)
        facts = {"evaluations": contestant.evaluations, "seconds": seconds}
        if judge:
            rows.append(judge.measure(contestant.name, images, asked, **facts))
        else:
            rows.append(evaluate.Row(contestant.name, samples=len(images), **facts))
    rows += judge.floors(config.seed) if judge else []
    versions = {name: metadata.version(name) for name in ("jax", "flax", "optax")}
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "protocol": judge.protocol if judge else evaluate.NO_DATA,
        "seed": config.seed,
        "versions": versions | {"simjax": simjax.__version__, "python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
    }


def finish(workdir: epath.Path, result: dict[str, Any]) -> None:
    """Writes report.json, which marks the run as finished, and prints its table."""
    write_json(workdir / "report.json", result)
    _print(result)


def print_finished(workdir: epath.Path) -> bool:
    """Prints the report of a finished run; False if there is none yet."""
    written = workdir / "report.json"
    if not written.exists():
        return False
    print(f"{workdir} is finished; its report:\n")
    _print(json.loads(written.read_text()))
    return True


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a file that is either absent or whole."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def _judge(config: c.Config) -> evaluate.Judge | None:
    if not config.data.source:
        return None
    dataset = build.open_data(config)
    first = np.arange(min(dataset.size, config.evaluation.real_images))
    labels = dataset.labels[first] if config.network.label_dim else None
    return evaluate.Judge(data.to_unit(dataset.read(first)), labels)


def _print(result: dict[str, Any]) -> None:
    print(evaluate.table([evaluate.Row(**row) for row in result["rows"]]))
    print(f"\n{result['protocol']}")
