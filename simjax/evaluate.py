"""Measures a run, a published network, or images that lie somewhere.

python -m simjax.evaluate --source=runs/digits
python -m simjax.evaluate --source=edm-cifar10-32x32-cond-vp --steps=18 --reference=tfds:cifar10
python -m simjax.evaluate --source=sid.pkl --reference=https://.../fid-refs/cifar10-32x32.npz
python -m simjax.evaluate --source=FOLDER_OR_NPZ_OF_IMAGES --reference=zip:ffhq-64x64.zip
python -m simjax.evaluate --source=idx:DIR --split=test --data=idx:DIR --features=pixels,classifier

A run directory is measured as its own report was, unless flags say otherwise; a network by one call
at --sigma_init, or by --steps of EDM's sampler. Prints the table and writes --out.
"""

import dataclasses
from typing import Any

from absl import flags, logging
from etils import epath

from simjax import captions, command_line, data, processes, report, storage, teacher
from simjax import config as c
from simjax.evaluation import images
from simjax.evaluation.judge import Judge, Row
from simjax.porting import cache

_SOURCE = flags.DEFINE_string("source", None, "Run directory, known name, URL, file, images.")
_FAMILY = flags.DEFINE_string("family", "", "Of a .pt that may be DiT's or SiT's: dit.")
_REFERENCE = flags.DEFINE_string("reference", None, "Data, statistics (.npz), URL to compare with.")
_DATA = flags.DEFINE_string("data", None, "Real images, for labels and the classifier.")
_SPLIT = flags.DEFINE_string("split", "train", "Of --source, where that is real images.")
_LIMIT = flags.DEFINE_integer("limit", None, "Of real images compared with, the first.")
_FEATURES = flags.DEFINE_list("features", None, "Spaces: inception, pixels, classifier.")
_METRICS = flags.DEFINE_list("metrics", None, "frechet, kernel, precision_recall, ...")
_SAMPLES = flags.DEFINE_integer("samples", None, "Images; a network's default is 50,000.")
_BATCH = flags.DEFINE_integer("batch", None, "Images at a time.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
_REPEATS = flags.DEFINE_integer("repeats", 1, "Seeds to measure, from --seed on; EDM's are 3.")
_STEPS = flags.DEFINE_integer("steps", 0, "Of the teacher's sampler; 0: one call at --sigma_init.")
_CHURN = flags.DEFINE_list("churn", None, "S_churn,S_min,S_max,S_noise; EDM: 40,0.05,50,1.003.")
_SIGMA_INIT = flags.DEFINE_float("sigma_init", 2.5, "Noise level of a one-step generator.")
_SAVE = flags.DEFINE_string("save", None, "Folder, or .npz, for the first row's images.")
_OUT = flags.DEFINE_string("out", None, "Default metrics.json, beside a run's report or here.")


def main() -> None:
    """Parses flags, measures, and turns a user's mistake into one message and exit status 1."""
    command_line.start(_run, parse=command_line.parse_source)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax warns that it only reads
    processes.reuse_compiled(cache.directory() / "compiled")
    source = epath.Path(_SOURCE.value).expanduser()
    is_run = (source / "config.json").exists()
    if is_run:
        result = _of_run(storage.absolute(source))
    elif _SOURCE.value.partition(":")[0] in data.SOURCES:
        result = _of_images(data.open(_SOURCE.value, split=_SPLIT.value))
    elif source.suffix == ".npz" or source.is_dir():
        result = _of_images(images.read(source))
    else:
        result = _of_network(_SOURCE.value)
    result = {"source": _SOURCE.value} | result
    out = epath.Path(_OUT.value or (source / "metrics.json" if is_run else "metrics.json"))
    report.write_json(out, result)
    report.show(result)
    print(f"written to {out}")


def _of_run(directory: epath.Path) -> dict[str, Any]:
    """The report of a run, finished or not, from its newest checkpoint."""
    teacher.refuse_family(_FAMILY.value, "a run")
    saved = teacher.config_of_run(directory)
    if saved is None:
        raise c.ConfigError(f"{directory / 'config.json'} is not of a run of simjax.")
    model = teacher.load(_with_flags(saved), directory / "teacher")
    model = teacher.furnished(model, captions.prepare(model.config, directory))
    generator, step = teacher.newest_generator(model, directory)
    result = _repeated(model, report.contestants(model, generator))
    return result | {"step": step, "weights": "EMA"}


def _of_network(source: str) -> dict[str, Any]:
    """A published network: a teacher with --steps, or else a one-step generator."""
    config = _with_flags(c.Config())
    config.generator.sigma_init, config.teacher.family = _SIGMA_INIT.value, _FAMILY.value
    if _CHURN.value:
        config.teacher.sampler = _churning(_CHURN.value)
    model = teacher.ported(config, source, say=print)
    if _STEPS.value:
        contestants = [report.many_steps(model, _STEPS.value)]
    else:
        contestants = report.one_step(model, {f"{source}, one call": model.params})
    return _repeated(model, contestants) | {"network": model.provenance}


def _churning(numbers: list[str]) -> c.Sampler:
    names = ("churn", "churn_low", "churn_high", "churn_inflation")
    try:
        return c.Sampler(**{name: float(n) for name, n in zip(names, numbers, strict=True)})
    except ValueError as error:
        raise c.ConfigError(
            f"--churn={','.join(numbers)} is not four numbers, as in --churn=40,0.05,50,1.003."
        ) from error


def _of_images(dataset: data.Dataset) -> dict[str, Any]:
    """A folder or .npz of images, or a split of real ones."""
    teacher.refuse_family(_FAMILY.value, "a set of images")
    config = _with_flags(c.Config())
    judging = report.judge(config)
    if judging is None:
        raise c.ConfigError("images need --reference=... (or --data=...) to be compared with.")
    batches = (images.as_bytes(x) for x, _ in data.batches(dataset, config.evaluation.batch))
    metrics, count = judging.measure(batches, dataset.labels)
    rows = [Row(dataset.name, None, count, None, metrics), *judging.floors(_SEED.value)]
    return report.result(rows, judging, _SEED.value)


def _repeated(model: teacher.Model, contestants: list[report.Contestant]) -> dict[str, Any]:
    """One result, or the first with every seed's rows and, by metric, the smallest and the mean."""
    judging = report.judge(model.config)
    seeds = range(_SEED.value, _SEED.value + _REPEATS.value)
    if _SAVE.value:
        _save(model, contestants[0], judging)
    results = [report.make(model, contestants, judging, seed=seed) for seed in seeds]
    if len(results) == 1:
        return results[0]
    return report.summary(results)


def _save(model: teacher.Model, contestant: report.Contestant, judging: Judge | None) -> None:
    """Writes the images that the first row of the first seed measures."""
    classes = report.asked(model, judging, model.config.evaluation.samples)
    drawn = report.drawing(model, classes, _SEED.value)
    batches = drawn.draw(contestant.sampler, contestant.params)
    images.write(_SAVE.value, batches, classes)


def _with_flags(config: c.Config) -> c.Config:
    """The config with what the flags change of its evaluation and its data."""
    given = {
        "reference": _REFERENCE.value,
        "features": _FEATURES.value and tuple(_FEATURES.value),
        "metrics": _METRICS.value and tuple(_METRICS.value),
        "samples": _SAMPLES.value,
        "limit": _LIMIT.value,
        "batch": _BATCH.value,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    evaluation = dataclasses.replace(config.evaluation, **changes)
    source = config.data if _DATA.value is None else c.Data(source=_DATA.value)
    return dataclasses.replace(config, evaluation=evaluation, data=source)


if __name__ == "__main__":
    main()
