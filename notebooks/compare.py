"""Compares score distillation methods: trains their curves and plots them.

python notebooks/compare.py --plot                # redraw the figure from comparison.json
python notebooks/compare.py --out=FOLDER          # train every curve missing in comparison.json
python notebooks/compare.py --quick --out=FOLDER  # smoke test, two minutes, no usable results
python notebooks/compare.py --config=configs/fashion.py --teacher=runs/fashion --out=FOLDER

On the digits: five methods with the settings of configs/digits.py, at learning rates of 3e-4
(generator) and 6e-4 (fake score) and at ten times those, three seeds, one teacher per seed. With
another config: six methods at 1, 3 and 10 times its learning rates, all distilled from the teacher
of one run. A small version of the comparison in figure 2 of SIM (arXiv:2410.16794).

Each curve is stored on completion. Rerunning the command after a kill continues with the missing
curves; other --seeds or --factors add curves.
"""

import argparse
import copy
import dataclasses
import json
import math
import os
import platform
import runpy
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib

import simjax
from simjax import config as c
from simjax.models import samplers
from simjax.models.open import is_export
from simjax.runs import report, teacher
from simjax.runtime import checkpoint, processes, storage
from simjax.runtime.monitor import Monitor
from simjax.typing import Params

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402

HERE = Path(__file__).parent
ROOT = HERE.parent
DIGITS = "configs/digits.py"
Metrics = dict[str, float]


class Method(NamedTuple):
    """A line colour (Okabe-Ito palette) and the fields of config.loss."""

    color: str
    loss: dict[str, Any]


METHODS = {
    "SIM, Pseudo-Huber": Method("#0072b2", {"name": "sim", "distance": "pseudo_huber"}),
    "SIM, squared L2": Method(
        "#56b4e9", {"name": "sim", "distance": "l2_squared", "c": c.Loss().c}
    ),
    "SiD, alpha 1.0": Method("#d55e00", {"name": "sid", "alpha": 1.0}),
    "SiD, alpha 1.2": Method("#e69f00", {"name": "sid", "alpha": 1.2}),
    "SiD, alpha 0.5": Method("#cc79a7", {"name": "sid", "alpha": 0.5}),
    "Diff-Instruct": Method("#009e73", {"name": "diff_instruct"}),
}


@dataclasses.dataclass(frozen=True)
class Study:
    """Settings of a comparison. All numbers are our choice.

    Args:
      factors: multipliers of both learning rates.
      every: steps between measurements.
      teacher_steps: training steps of each teacher; 0: the config's.
      samples: images per measurement.
      batch: images per distillation step; 0: the config's.
      config: path relative to the repository.
      teacher: sha256 of the teacher of all curves; empty: one is trained per seed.
    """

    methods: tuple[str, ...] = tuple(name for name in METHODS if name != "SiD, alpha 0.5")
    factors: tuple[float, ...] = (1, 10)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 240
    every: int = 40
    teacher_steps: int = 0
    samples: int = 600
    batch: int = 0
    features: tuple[str, ...] = ("pixels",)
    config: str = DIGITS
    teacher: str = ""


OTHERS = Study(
    methods=tuple(METHODS),
    factors=(1, 3, 10),
    seeds=(0,),
    steps=600,
    every=100,
    samples=2000,
    batch=32,
    features=("pixels", "classifier"),
)
GROWING = ("methods", "factors", "seeds")  # a stored study can be extended along these


def quick(study: Study) -> Study:
    """A smoke test: a few steps of every other method."""
    few = {"factors": (1,), "seeds": (0,), "steps": 4, "every": 2, "teacher_steps": 20}
    return dataclasses.replace(study, methods=study.methods[::2], **few)


def settings(study: Study, seed: int) -> simjax.Config:
    """The study's config with this seed and the study's step counts."""
    config = runpy.run_path(str(ROOT / study.config))["get_config"]()
    if study.config == DIGITS:
        _with_a_better_teacher(config)
    config.seed, config.steps = seed, study.steps
    config.teacher.steps = study.teacher_steps or config.teacher.steps
    config.batch = study.batch or config.batch
    config.evaluation.features = study.features
    config.evaluation.samples = study.samples
    return config


def _with_a_better_teacher(config: simjax.Config) -> None:
    """Digits only: more attention and teacher steps, other learning rates."""
    config.network.attention_resolutions = (4,)
    config.teacher.steps = 1500
    config.teacher.optim.lr, config.teacher.optim.warmup_steps = 3e-3, 100
    config.teacher.ema.half_life_kimg, config.generator.ema.half_life_kimg = 8.85, 4.41
    config.generator.optim.lr, config.fake_score.optim.lr = 3e-4, 6e-4


def train_teacher(study: Study, seed: int) -> simjax.Model:
    """Trains a teacher with the study's settings and this seed."""
    with tempfile.TemporaryDirectory() as scratch:
        workdir = storage.absolute(scratch)
        return teacher.obtain(settings(study, seed), workdir, Monitor(workdir))


def stored_teacher(source: str) -> simjax.Model:
    """Loads a teacher from a run directory or an export."""
    return simjax.load(source, network=None if is_export(source) else "teacher")


def teacher_of(source: str, study: Study, seed: int) -> simjax.Model:
    """Loads a stored teacher, with the study's settings and a run's data."""
    found = stored_teacher(source)
    config, made = settings(study, seed), found.config.teacher
    if not is_export(source):
        config.data = found.config.data
    config = c.complete(config, found.config.network, made.precondition, made.sigma_data)
    return dataclasses.replace(found, config=config)


class Measure:
    """Metrics of samplers on fixed noise; each sampler is compiled once."""

    def __init__(self, model: simjax.Model):
        self._evaluator = report.evaluator(model.config)
        self._classes = report.requested_classes(
            model, self._evaluator, model.config.evaluation.samples
        )
        self._drawing = report.drawing(model, self._classes, 0)
        (self._one_step,) = samplers.generated(model, {"generator": model.params})

    def generator(self, params: Params) -> Metrics | None:
        """Metrics of one-step samples; None if samples or metrics are not finite."""
        try:
            found = self.sampler(dataclasses.replace(self._one_step, params=params))
        except simjax.ConfigError as error:
            if "not finite" in f"{error}":
                return None
            raise
        return found if all(map(math.isfinite, found.values())) else None

    def sampler(self, contestant: samplers.Sampler) -> Metrics:
        """Metrics of any sampler's samples."""
        batches = self._drawing.draw(contestant.function, contestant.params)
        return self._evaluator.measure(batches, self._classes)[0]


def curve(
    model: simjax.Model, measure: Measure, study: Study, method: str, factor: float
) -> list[Metrics | None]:
    """Generator metrics every `study.every` steps; None after divergence."""
    config = copy.deepcopy(model.config)
    for name, value in METHODS[method].loss.items():
        setattr(config.loss, name, value)
    config.generator.optim.lr *= factor
    config.fake_score.optim.lr *= factor
    distillation = simjax.Distillation(model, config)
    found = [measure.generator(distillation.generator.params)]
    points = 1 + study.steps // study.every
    while len(found) < points and found[-1] is not None:  # the EMA stays NaN or inf
        distillation.train(study.every)
        found.append(measure.generator(distillation.generator.params))
    return found + [None] * (points - len(found))


def run(folder: Path, study: Study, source: str = "") -> None:
    """Trains every missing curve; stores each on completion.

    Args:
      source: the teacher to distil, a run or an export; empty: one is trained per seed.
    """
    if source:
        sha256 = checkpoint.params_sha256(stored_teacher(source).params)
        study = dataclasses.replace(study, teacher=sha256)
    stored = folder / "comparison.json"
    found = _begun(stored, study)
    done = {(one["method"], one["factor"], one["seed"]) for one in found["curves"]}
    for seed in study.seeds:
        wanted = [(method, factor) for factor in study.factors for method in study.methods]
        wanted = [(m, factor) for m, factor in wanted if (m, factor, seed) not in done]
        if not wanted:
            continue
        model = teacher_of(source, study, seed) if source else train_teacher(study, seed)
        measure = Measure(model)
        if str(seed) not in found["teachers"]:
            many = samplers.many_steps(model, model.config.evaluation.teacher_steps[0])
            found["teachers"][str(seed)] = measure.sampler(many)
            storage.write_json(stored, found)
        for method, factor in wanted:
            print(f"seed {seed}, {method}, learning rates x {factor:g}", flush=True)
            begun = time.monotonic()
            metrics = curve(model, measure, study, method, factor)
            if None in metrics:
                print(f"diverged before step {study.every * metrics.index(None)}", flush=True)
            key = {"method": method, "factor": factor, "seed": seed}
            seconds = round(time.monotonic() - begun, 1)
            found["curves"].append(key | {"seconds": seconds, "metrics": metrics})
            storage.write_json(stored, found)
    print(f"written to {stored}")


def _begun(stored: Path, study: Study) -> dict[str, Any]:
    """Contents of comparison.json, extended by the study; a new record if none."""
    found = {"size": dataclasses.asdict(study), "curves": [], "teachers": {}}
    if stored.exists():
        found = json.loads(stored.read_text())
        before = _study(found)
        union = {n: (*getattr(before, n), *getattr(study, n)) for n in GROWING}
        union = {name: tuple(dict.fromkeys(values)) for name, values in union.items()}
        if dataclasses.replace(before, **union) != dataclasses.replace(study, **union):
            raise SystemExit(
                f"{stored} holds a study of another size or teacher: choose another --out."
            )
        found["size"] = dataclasses.asdict(dataclasses.replace(study, **union))
    return found | {"versions": versions()}


def _study(found: dict[str, Any]) -> Study:
    """The study stored in a comparison.json."""
    values = found["size"].items()
    return Study(**{k: tuple(v) if isinstance(v, list) else v for k, v in values})


def versions() -> dict[str, str]:
    """Versions and device that the numbers depend on."""
    found = {name: metadata.version(name) for name in ("jax", "flax", "optax")}
    found |= {"simjax": simjax.__version__, "python": platform.python_version()}
    return found | {"device": jax.devices()[0].device_kind}


def plot(folder: Path) -> None:
    """Draws comparison.png: one row per feature space, one column per factor."""
    found = json.loads((folder / "comparison.json").read_text())
    study = _study(found)
    rows, columns = len(study.features), len(study.factors)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.6 * columns, 3.8 * rows), sharey="row", squeeze=False
    )
    for row, space in zip(axes, study.features, strict=True):
        metric = f"{space}/frechet"
        teachers = [metrics[metric] for metrics in found["teachers"].values()]
        reference = sum(teachers) / len(teachers)
        for axis, factor in zip(row, study.factors, strict=True):
            curves = [one for one in found["curves"] if one["factor"] == factor]
            _draw(axis, study, curves, metric)
            axis.axhline(reference, color="black", linestyle=":", linewidth=1)
            axis.set_title(f"learning rates of {study.config}" + f" x {factor:g}" * (factor != 1))
        row[0].set_ylabel(f"Frechet distance in {SPACES[space]}")
        row[0].text(0, reference * 1.03, "teacher, NFE 35", fontsize=8)
    axes[0, -1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "comparison.png", dpi=110)
    plt.close(figure)
    print(f"drawn as {folder / 'comparison.png'}")


SPACES = {"pixels": "pixels", "classifier": "the classifier's features"}


def _draw(axis: plt.Axes, study: Study, curves: Sequence[dict[str, Any]], metric: str) -> None:
    """Plots mean and range over seeds; a cross marks the first divergence."""
    steps = range(0, study.steps + 1, study.every)
    for name in study.methods:
        color = METHODS[name].color
        values = [
            [None if at is None else at[metric] for at in one["metrics"]]
            for one in curves
            if one["method"] == name
        ]
        whole = [at for at in zip(*values, strict=True) if None not in at]
        if not whole:
            continue
        shown, means = steps[: len(whole)], [sum(at) / len(at) for at in whole]
        axis.plot(shown, means, color=color, label=name)
        axis.fill_between(
            shown, [min(at) for at in whole], [max(at) for at in whole], color=color, alpha=0.15
        )
        if len(whole) < len(steps):
            axis.plot(shown[-1], means[-1], "x", color=color)
    axis.set_xlabel("distillation step")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)


def numbers(text: str) -> tuple[float, ...]:
    """Parses a comma-separated list of numbers.

    >>> numbers("1,3,0.5")
    (1, 3, 0.5)
    """
    return tuple(json.loads(f"[{text}]"))


def main() -> None:
    """Parses flags, trains missing curves and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "comparison", help="result folder")
    parser.add_argument("--plot", action="store_true", help="only redraw stored curves")
    parser.add_argument("--quick", action="store_true", help="smoke test; no usable results")
    parser.add_argument("--config", type=Path, default=ROOT / DIGITS, help="default: digits")
    parser.add_argument("--teacher", default="", help="run or export; default: train one per seed")
    parser.add_argument("--seeds", type=numbers, help="e.g. 0,1,2")
    parser.add_argument("--factors", type=numbers, help="learning rate multipliers, e.g. 1,3,10")
    parser.add_argument("--steps", type=int, help="distillation steps")
    parser.add_argument("--every", type=int, help="steps between measurements")
    parser.add_argument("--samples", type=int, help="images per measurement")
    parser.add_argument("--batch", type=int, help="images per step; 0: the config's")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    processes.reuse_compiled()
    if not given.plot:
        config = os.path.relpath(given.config.resolve(), ROOT.resolve())
        study = Study() if config == DIGITS else dataclasses.replace(OTHERS, config=config)
        study = quick(study) if given.quick else study
        fields = ("seeds", "factors", "steps", "every", "samples", "batch")
        chosen = {n: getattr(given, n) for n in fields if getattr(given, n) is not None}
        run(given.out, dataclasses.replace(study, **chosen), given.teacher)
    plot(given.out)


if __name__ == "__main__":
    main()
