"""Computes FID and other metrics of a run, a network or images.

A run is evaluated as in its report unless flags override it; a network with one call at
--sigma_init, or with --steps of its sampler. With n prompts, image i belongs to prompt i mod n, as
drawn by simjax sample --prompts. Prints a table and writes --out.

Examples:
  python -m simjax evaluate --source=runs/digits
  python -m simjax evaluate --source=edm-cifar10-32x32-cond-vp --steps=18 --reference=tfds:cifar10
  python -m simjax evaluate --source=sid.pkl --reference=https://.../fid-refs/cifar10-32x32.npz
  python -m simjax evaluate --source=IMAGES --reference=FOLDER_NPZ_OR_ZIP_OF_IMAGES
  python -m simjax evaluate --source=idx:DIR --split=test --data=idx:DIR --features=pixels
  python -m simjax evaluate --source=IMAGES --metrics=clip_score --prompts=p.txt --clip=FOLDER
"""

import dataclasses
from typing import Any

from absl import flags, logging
from etils import epath

from simjax import config as c
from simjax import data
from simjax.commands import flags as command_line
from simjax.diffusion import sampler
from simjax.errors import ConfigError
from simjax.evaluation import images
from simjax.evaluation.clip import scorer
from simjax.evaluation.clip.scorer import Scorer
from simjax.evaluation.evaluator import METRICS, Evaluator, Row
from simjax.models import samplers, stored
from simjax.models.generator import generator_of, set_sigma_init
from simjax.models.model import Model
from simjax.models.open import Wanted, open_model
from simjax.models.samplers import Sampler
from simjax.porting import zoo
from simjax.runs import report
from simjax.runtime import processes, storage, values
from simjax.text import prompts as files_of_prompts

_SOURCE = flags.DEFINE_string(
    "source", None, "Run directory, network (known name, URL, file, folder), data set or images."
)
_FAMILY = flags.DEFINE_string("family", "", "Family of a DiT or SiT .pt file: dit, sit, sit_gvp.")
_NETWORK = flags.DEFINE_enum(
    "network", "generator", ["generator", "best"], "Generator of a run: newest (EMA), or best."
)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "Data set, folder or zip of images, .npz (images or statistics), or a URL."
)
_DATA = flags.DEFINE_string("data", None, "Real images, for labels and the classifier.")
_SPLIT = flags.DEFINE_string("split", "train", "Split of a data set in --source.")
_LIMIT = flags.DEFINE_integer("limit", None, "Use the first N reference images; 0: all.", 0)
_FEATURES = flags.DEFINE_list("features", None, "Feature spaces: inception, pixels, classifier.")
_METRICS = flags.DEFINE_list("metrics", None, "frechet, kernel, ..., clip_score, aesthetic.")
_PROMPTS = flags.DEFINE_string("prompts", None, "File of the images' prompts, for clip_score.")
_CLIP = flags.DEFINE_string("clip", None, "Folder of a transformers CLIPModel and tokenizer.")
_HEAD = flags.DEFINE_string("aesthetic_head", None, "LAION's sac+logos+ava1-l14-linearMSE.pth.")
_SAMPLES = flags.DEFINE_integer(
    "samples", None, "Samples to draw; default: the run's, or 50,000.", 1
)
_BATCH = flags.DEFINE_integer("batch", None, "Images per batch.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed.", 0, values.LARGEST_SEED)
_REPEATS = flags.DEFINE_integer("repeats", 1, "Number of seeds, from --seed on; EDM uses 3.", 1)
_STEPS = flags.DEFINE_integer("steps", 0, "Steps of the teacher's sampler; 0: one call.", 0)
_GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale with --steps; default 1 (none).")
_SOLVER = flags.DEFINE_enum("solver", None, list(sampler.SOLVERS), "Default: the family's solver.")
_CHURN = flags.DEFINE_list("churn", None, "S_churn,S_min,S_max,S_noise; EDM: 40,0.05,50,1.003.")
_SIGMA_INIT = flags.DEFINE_float(
    "sigma_init", None, "Noise level of one call; default: an export's, or 2.5."
)
_AUTOENCODER = flags.DEFINE_string(
    "autoencoder", None, "Folder of a diffusers AutoencoderKL, to decode latents."
)
_SAVE = flags.DEFINE_string("save", None, "Folder/ or NAME.npz for the samples of the first row.")
_OUT = flags.DEFINE_string(
    "out", None, "JSON file; default: metrics.json in the run directory, else in the current one."
)

# Kinds of source, and the flags that have an effect on each.
RUN, DATA, IMAGES = "a run", "a data set", "images in files"
ONE_CALL, SAMPLED = "a network called once", "a network with --steps"
NETWORKS, EVERY = (ONE_CALL, SAMPLED), (RUN, DATA, IMAGES, ONE_CALL, SAMPLED)
STORED = (DATA, IMAGES)
USES = {
    "source": EVERY,
    "network": (RUN,),
    "family": NETWORKS,
    "reference": EVERY,
    "data": EVERY,
    "split": (DATA,),
    "limit": EVERY,
    "features": EVERY,
    "metrics": EVERY,
    "prompts": STORED,
    "clip": STORED,
    "aesthetic_head": STORED,
    "samples": (RUN, *NETWORKS),
    "batch": EVERY,
    "seed": EVERY,
    "repeats": (RUN, *NETWORKS),
    "steps": NETWORKS,
    "guidance": (SAMPLED,),
    "solver": (SAMPLED,),
    "churn": (SAMPLED,),
    "sigma_init": (ONE_CALL,),
    "autoencoder": NETWORKS,
    "save": (RUN, *NETWORKS),
    "out": EVERY,
}
OF_A_RUN = "A run is evaluated with the sampler of its report; simjax sample has other options."
# Metrics without a reference, and the flags that each needs.
SCORES = {"clip_score": ("prompts", "clip"), "aesthetic": ("clip", "aesthetic_head")}
OF_SCORES = {"prompts": "FILE", "clip": "FOLDER", "aesthetic_head": "FILE"}
COMPARING = ("reference", "data", "limit", "features", "seed")  # flags without effect on SCORES
WEIGHTS = ("config.json", "model_index.json", "*.safetensors", "*.bin")  # in folders of networks

command_line.require_positive("sigma_init")
command_line.require_some("features", "metrics")


def main() -> None:
    """Entry point; user errors exit with status 1 and one message."""
    command_line.start(_run, parse=command_line.parse_source)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # hides Orbax's warnings about read-only access
    processes.reuse_compiled()
    run, _ = stored.find_run(_SOURCE.value) or (None, None)
    kind = RUN if run else _kind(_SOURCE.value)
    command_line.require_used(kind, USES, OF_A_RUN if kind == RUN else "")
    _require_metrics(kind)
    values.seed(_SEED.value + _REPEATS.value - 1, "the last seed of --repeats")
    out, save = _destinations("metrics.json" if run is None else f"{run}/metrics.json")
    if kind == RUN:
        result = _of_run(save)
    elif kind == DATA:
        result = _of_images(data.open(_SOURCE.value, split=_SPLIT.value))
    elif kind == IMAGES:
        result = _of_images(_in_files(_SOURCE.value))
    else:
        result = _of_network(save)
    result = {"source": _SOURCE.value} | result
    storage.write_json(out, result)
    report.show(result)
    print(f"written to {out}")


def _kind(source: str) -> str:
    """Kind of a source that is not a run, one of EVERY."""
    network = SAMPLED if _STEPS.value else ONE_CALL
    if source.partition(":")[0] in data.SOURCES:
        return DATA
    if source in zoo.ZOO:
        return network
    folder = _folder(source)
    if folder is not None:
        return network if any(any(folder.glob(name)) for name in WEIGHTS) else IMAGES
    return IMAGES if source.lower().endswith((".npz", ".zip")) else network


def _folder(source: str) -> epath.Path | None:
    path = None if zoo.is_url(source) else epath.Path(source).expanduser()
    return path if path is not None and path.is_dir() else None


def _in_files(source: str) -> data.Dataset:
    """Images of a folder, .npz or zip (path or URL)."""
    if folder := _folder(source):
        return images.read(folder)
    file = zoo.fetch(source).path
    is_zip = source.lower().endswith(".zip")
    dataset = data.open(f"zip:{file}") if is_zip else images.read(file)
    return dataclasses.replace(dataset, name=source)


def _destinations(default: str) -> tuple[epath.Path, epath.Path | None]:
    """Paths of the metrics and of saved samples, checked to be writable.

    Raises:
      ConfigError: a path is not writable.
    """
    out = storage.new_file(default if _OUT.value is None else _OUT.value, "--out")
    if _SAVE.value is None:
        return out, None
    return out, storage.new_file_or_folder(_SAVE.value, "--save", [".npz"])


def _of_run(save: epath.Path | None) -> dict[str, Any]:
    """Report of a run, finished or not: newest checkpoint or best generator."""
    wanted = Wanted(captions=True, pictures=True)
    opened = open_model(_SOURCE.value, wanted, network=_NETWORK.value, adjusted=_with_flags)
    name = "best generator" if _NETWORK.value == "best" else "generator"
    compared = report.samplers_of(opened.model, opened.params, name)
    return _repeated(opened.model, compared, save) | {"weights": "EMA"} | opened.found


def _of_network(save: epath.Path | None) -> dict[str, Any]:
    """Report of an export or published weights."""
    source, wanted = _SOURCE.value, Wanted(pictures=True)
    model = open_model(source, wanted, family=_FAMILY.value, adjusted=_of_network_flags).model
    if _STEPS.value:
        compared = [samplers.many_steps(model, _STEPS.value)]
    else:
        name = f"{source}, {generator_of(model.config).name}"
        compared = samplers.generated(model, {name: model.params})
    return _repeated(model, compared, save) | {"network": model.provenance}


def _of_network_flags(config: c.Config) -> c.Config:
    """The config with the flags for exports and published weights."""
    config = _with_flags(config)
    if _SIGMA_INIT.value is not None:
        set_sigma_init(config, _SIGMA_INIT.value)
    if _CHURN.value:
        config.teacher.sampler = _churning(_CHURN.value)
    if _SOLVER.value:
        config.teacher.sampler.solver = _SOLVER.value
    if _GUIDANCE.value is not None:
        config.teacher.guidance = _GUIDANCE.value
    config.autoencoder = _AUTOENCODER.value or ""
    return config


def _churning(numbers: list[str]) -> c.Sampler:
    names = ("churn", "churn_low", "churn_high", "churn_inflation")
    try:
        return c.Sampler(**{name: float(n) for name, n in zip(names, numbers, strict=True)})
    except ValueError as error:
        raise ConfigError(
            f"--churn={','.join(numbers)}: expected four numbers, e.g. --churn=40,0.05,50,1.003."
        ) from error


def _of_images(dataset: data.Dataset) -> dict[str, Any]:
    """Report of stored images or of a split of a data set."""
    config = _with_flags(c.Config())
    options = config.evaluation
    if options.metrics and not (options.reference or config.data.source):
        raise ConfigError(
            f"{', '.join(options.metrics)} of images need --reference=... (or --data=...) to "
            "compare with."
        )
    of_clip, evaluator = _scorer(dataset, options.batch), report.evaluator(config)
    batches = (images.as_bytes(x) for x, _ in data.batches(dataset, options.batch))
    if of_clip:
        batches = of_clip.watch(batches)
    if evaluator:
        metrics, count = evaluator.measure(batches, dataset.labels)
    else:
        metrics, count = {}, sum(map(len, batches))
    metrics |= of_clip.metrics() if of_clip else {}
    rows = [Row(dataset.name, None, count, None, metrics)]
    rows += evaluator.floors(_SEED.value) if evaluator else []
    return report.result(rows, evaluator, _SEED.value, of_clip and of_clip.protocol())


def _scorer(dataset: data.Dataset, batch: int) -> Scorer | None:
    """CLIP scorer of --clip, or None; checks prompts before CLIP is loaded.

    Raises:
      ConfigError: a file cannot be used, or the prompts do not match the images.
    """
    if _CLIP.value is None:
        return None
    prompts = None if _PROMPTS.value is None else _prompts(dataset)
    head = None if _HEAD.value is None else epath.Path(_HEAD.value).expanduser()
    folder = epath.Path(_CLIP.value).expanduser()
    return scorer.load(folder, prompts=prompts, head=head, batch=batch)


def _prompts(dataset: data.Dataset) -> scorer.Prompts:
    """Prompts of --prompts; every prompt must have equally many images."""
    file = _PROMPTS.value
    found = files_of_prompts.survey(file)  # rejects files without prompts
    if dataset.size % found.count:
        raise ConfigError(
            f"{dataset.name} has {dataset.size} images, {file} {found.count} prompts; expected "
            "equally many images per prompt (image i belongs to prompt i mod n, as drawn by simjax "
            "sample --prompts). Pass the images and the prompts of one such command."
        )
    return scorer.Prompts([*files_of_prompts.read_prompts(file)], file, found.sha256)


def _repeated(model: Model, compared: list[Sampler], save: epath.Path | None) -> dict[str, Any]:
    """Result of one seed, or the summary of --repeats seeds."""
    evaluator = report.evaluator(model.config)
    seeds = range(_SEED.value, _SEED.value + _REPEATS.value)
    if save:
        _save(model, compared[0], evaluator, save)
    results = [report.make(model, compared, evaluator, seed=seed) for seed in seeds]
    if len(results) == 1:
        return results[0]
    return report.summary(results)


def _save(
    model: Model,
    sampler: Sampler,
    evaluator: Evaluator | None,
    where: epath.Path,
) -> None:
    """Writes the samples of the first row and seed."""
    classes = report.requested_classes(model, evaluator, model.config.evaluation.samples)
    drawn = report.drawing(model, classes, _SEED.value)
    batches = drawn.draw(sampler.function, sampler.params)
    images.write(where, batches, classes)


def _with_flags(config: c.Config) -> c.Config:
    """The config with the overrides of the flags on evaluation and data."""
    given = {
        "reference": _REFERENCE.value,
        "features": _FEATURES.value and tuple(_FEATURES.value),
        "metrics": _METRICS.value and tuple(name for name in _METRICS.value if name in METRICS),
        "samples": _SAMPLES.value,
        "limit": _LIMIT.value,
        "batch": _BATCH.value,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    evaluation = dataclasses.replace(config.evaluation, **changes)
    source = config.data if _DATA.value is None else c.Data(source=_DATA.value)
    config = dataclasses.replace(config, evaluation=evaluation, data=source)
    _require_compared(config)
    return config


def _require_metrics(kind: str) -> None:
    """Rejects unknown metrics, and SCORES without their flags or of other sources.

    Raises:
      ConfigError: naming these metrics.
    """
    given = _METRICS.value or []
    for name in given:
        values.require_known("--metrics", name, (*METRICS, *SCORES))
    scores = [name for name in SCORES if name in given]
    if scores and kind not in STORED:
        raise ConfigError(
            f"the source is {kind}: --metrics={','.join(scores)} is for {' or '.join(STORED)}. "
            "Run simjax sample --prompts=FILE --out=FOLDER/, then evaluate FOLDER."
        )
    needed = [flag for flag in OF_SCORES if any(flag in SCORES[name] for name in scores)]
    if lacking := [f"--{flag}={OF_SCORES[flag]}" for flag in needed if not flags.FLAGS[flag].value]:
        raise ConfigError(f"--metrics={','.join(scores)} needs {', '.join(lacking)}.")
    _require_read(scores, needed, compares=not scores or set(given) > set(scores))


def _require_read(scores: list[str], needed: list[str], *, compares: bool) -> None:
    """Rejects flags that no requested metric reads.

    Raises:
      ConfigError: naming these flags.
    """
    if idle := [flag for flag in OF_SCORES if flag not in needed and command_line.was_given(flag)]:
        readers = {flag: [name for name in SCORES if flag in SCORES[name]] for flag in idle}
        named = "; ".join(f"--{flag} is for {' or '.join(readers[flag])}" for flag in idle)
        raise ConfigError(
            f"no effect with these --metrics: {named}. Add that metric, or drop the flag."
        )
    if compares:
        return
    if idle := [f"--{flag}" for flag in COMPARING if command_line.was_given(flag)]:
        raise ConfigError(
            f"{', '.join(idle)}: no effect, --metrics={','.join(scores)} needs no reference. Add "
            "frechet or other metrics to --metrics, or drop the flag."
        )


def _require_compared(config: c.Config) -> None:
    """Rejects flags about a missing reference, and --data without effect.

    Raises:
      ConfigError: naming these flags.
    """
    options = config.evaluation
    if not (options.reference or config.data.source):
        has_scores = not SCORES.keys().isdisjoint(_METRICS.value or ())
        about = ("limit", "features", *(() if has_scores else ("metrics",)))
        about += () if _SAVE.value else ("samples",)
        remedy = "there is no reference: add --reference=... (or --data=...)"
    elif options.reference and "classifier" not in options.features:
        about, remedy = ("data",), "with a reference only the classifier features need it"
    else:
        return
    if idle := [f"--{name}" for name in about if command_line.was_given(name)]:
        raise ConfigError(f"{', '.join(idle)}: no effect, {remedy}.")
