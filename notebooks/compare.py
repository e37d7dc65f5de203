"""Score distillation methods side by side on the digits: figures from stored numbers, or anew.

python notebooks/compare.py --plot              # the figure again, from comparison.json
python notebooks/compare.py --out=FOLDER        # every run that FOLDER/comparison.json lacks
python notebooks/compare.py --quick --out=FOLDER  # two minutes: whether it works, nothing more

Five methods with the settings of configs/digits.py, at learning rates of 3e-4 (generator)
and 6e-4 (fake score) and at ten times those,
three seeds, each with a teacher of its own. As SIM's figure 2 (arXiv:2410.16794) in question, not
in scale.
"""

import argparse
import dataclasses
import json
import platform
import runpy
import tempfile
from importlib import metadata
from pathlib import Path

import jax
import matplotlib

import simjax
from simjax.models import samplers
from simjax.runs import report, teacher
from simjax.runtime import processes, storage
from simjax.runtime.monitor import Monitor
from simjax.typing import Params

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402

HERE = Path(__file__).parent
METHODS = {
    "SIM, Pseudo-Huber": {"name": "sim", "distance": "pseudo_huber"},
    "SIM, squared L2": {"name": "sim", "distance": "l2_squared", "c": simjax.Config().loss.c},
    "SiD, alpha 1.0": {"name": "sid", "alpha": 1.0},
    "SiD, alpha 1.2": {"name": "sid", "alpha": 1.2},
    "Diff-Instruct": {"name": "diff_instruct"},
}
FACTORS = (1, 10)  # of both learning rates
SEEDS = (0, 1, 2)
STEPS, EVERY = 240, 40  # between measurements. Our choice
SAMPLES = 600  # a measurement, against all 1797 real digits; our choice
COLORS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73")  # Okabe and Ito's
METRIC = "pixels/frechet"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is computed."""

    methods: tuple[str, ...] = tuple(METHODS)
    factors: tuple[int, ...] = FACTORS
    seeds: tuple[int, ...] = SEEDS
    steps: int = STEPS
    every: int = EVERY
    teacher_steps: int = 0  # 0: 1500
    samples: int = SAMPLES


QUICK = Size(
    methods=tuple(METHODS)[::2], factors=(1,), seeds=(0,), steps=4, every=2, teacher_steps=20
)


def settings(size: Size, seed: int) -> simjax.Config:
    """configs/digits.py, with a seed and the study's lengths."""
    config = runpy.run_path(str(HERE.parent / "configs" / "digits.py"))["get_config"]()
    config.seed, config.steps = seed, size.steps
    config.network.attention_resolutions = (4,)
    config.teacher.steps = size.teacher_steps or 1500
    config.teacher.optim.lr, config.teacher.optim.warmup_steps = 3e-3, 100
    config.teacher.ema.half_life_kimg, config.generator.ema.half_life_kimg = 8.85, 4.41
    config.generator.optim.lr, config.fake_score.optim.lr = 3e-4, 6e-4
    config.evaluation.features = ("pixels",)
    config.evaluation.metrics = ("frechet", "precision_recall")
    config.evaluation.samples = size.samples
    return config


class Measure:
    """Metrics of samplers, always from the same noise; each is compiled once."""

    def __init__(self, model: simjax.Model):
        self._evaluator = report.evaluator(model.config)
        self._classes = report.asked(model, self._evaluator, model.config.evaluation.samples)
        self._drawing = report.drawing(model, self._classes, 0)
        (self._one_step,) = samplers.generated(model, {"generator": model.params})

    def generator(self, params: Params) -> dict[str, float] | None:
        """Of one-step samples; None where they are not finite."""
        try:
            return self.sampler(dataclasses.replace(self._one_step, params=params))
        except simjax.ConfigError:
            return None

    def sampler(self, contestant: samplers.Sampler) -> dict[str, float]:
        """Of any sampler."""
        batches = self._drawing.draw(contestant.function, contestant.params)
        return self._evaluator.measure(batches, self._classes)[0]


def curve(
    model: simjax.Model, measure: Measure, size: Size, method: str, factor: int
) -> list[dict[str, float] | None]:
    """Metrics of the generator every so many steps; None once it has diverged."""
    config = settings(size, model.config.seed)
    for name, value in METHODS[method].items():
        setattr(config.loss, name, value)
    config.generator.optim.lr *= factor
    config.fake_score.optim.lr *= factor
    distillation = simjax.Distillation(model, config)
    found = []
    for step in range(0, size.steps + 1, size.every):
        if step:
            distillation.train(size.every)
        found.append(measure.generator(distillation.generator.params))
    return found


def run(folder: Path, size: Size) -> None:
    """Every curve that is not stored yet; each is stored when it is done."""
    stored = folder / "comparison.json"
    sizes = json.loads(json.dumps(dataclasses.asdict(size)))  # tuples as lists
    study = {"size": sizes, "curves": [], "teachers": {}}
    if stored.exists():
        study = json.loads(stored.read_text())
        if study["size"] != sizes:
            raise SystemExit(f"{stored} holds a study of another size: choose another --out.")
    study["versions"] = versions()
    done = {(c["method"], c["factor"], c["seed"]) for c in study["curves"]}
    for seed in size.seeds:
        wanted = [(m, f, seed) for f in size.factors for m in size.methods]
        wanted = [key for key in wanted if key not in done]
        if not wanted:
            continue
        config = settings(size, seed)
        with tempfile.TemporaryDirectory() as scratch:
            workdir = storage.absolute(scratch)
            model = teacher.obtain(config, workdir, Monitor(workdir))
        measure = Measure(model)
        many = samplers.many_steps(model, model.config.evaluation.teacher_steps[0])
        study["teachers"][str(seed)] = measure.sampler(many)
        for method, factor, _ in wanted:
            print(f"seed {seed}, {method}, learning rates x {factor}", flush=True)
            found = curve(model, measure, size, method, factor)
            study["curves"].append(
                {"method": method, "factor": factor, "seed": seed, "metrics": found}
            )
            storage.write_json(stored, study)
    print(f"written to {stored}")


def versions() -> dict[str, str]:
    """What the numbers depend on."""
    found = {name: metadata.version(name) for name in ("jax", "flax", "optax")}
    found |= {"simjax": simjax.__version__, "python": platform.python_version()}
    return found | {"device": jax.devices()[0].device_kind}


def plot(folder: Path) -> None:
    """comparison.png: a panel for each learning rate; mean, minimum and maximum of the seeds."""
    study = json.loads((folder / "comparison.json").read_text())
    size = Size(**study["size"])
    figure, axes = plt.subplots(
        1, len(size.factors), figsize=(4.6 * len(size.factors), 3.8), sharey=True, squeeze=False
    )
    steps = range(0, size.steps + 1, size.every)
    teachers = [metrics[METRIC] for metrics in study["teachers"].values()]
    reference = sum(teachers) / len(teachers)
    for axis, factor in zip(axes[0], size.factors, strict=True):
        for color, method in zip(COLORS, METHODS, strict=True):
            curves = [
                [None if at is None else at[METRIC] for at in c["metrics"]]
                for c in study["curves"]
                if (c["method"], c["factor"]) == (method, factor)
            ]
            whole = [at for at in zip(*curves, strict=True) if None not in at]
            if not whole:
                continue
            shown = steps[: len(whole)]
            axis.plot(shown, [sum(at) / len(at) for at in whole], color=color, label=method)
            axis.fill_between(
                shown, [min(at) for at in whole], [max(at) for at in whole], color=color, alpha=0.15
            )
        axis.axhline(reference, color="black", linestyle=":", linewidth=1)
        axis.set_title("learning rates of configs/digits.py" + (f" x {factor}" * (factor != 1)))
        axis.set_xlabel("distillation step")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("Frechet distance in pixels")
    axes[0, -1].legend(frameon=False, fontsize=8)
    axes[0, 0].text(0, reference * 1.03, "teacher, 35 evaluations", fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "comparison.png", dpi=110)
    print(f"drawn as {folder / 'comparison.png'}")


def main() -> None:
    """Reads the flags, computes what lacks and draws."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "comparison")
    parser.add_argument("--plot", action="store_true", help="only draw what is stored")
    parser.add_argument("--quick", action="store_true", help="whether it works; no result")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    processes.reuse_compiled()
    if not given.plot:
        run(given.out, QUICK if given.quick else Size())
    plot(given.out)


if __name__ == "__main__":
    main()
