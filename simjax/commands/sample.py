"""Draws samples from a run, an export or published weights.

Generators take the number of steps they were trained for, teachers --steps of their sampler.
Classes and prompts are cycled: sample i has condition i modulo their number. Sample i of a seed is
the same for every --count, --batch and number of devices. Existing files of the same names are
overwritten.

Examples:
  python -m simjax sample --source=runs/digits --classes=3,7
  python -m simjax sample --source=sid.pkl --count=50000 --out=samples/
  python -m simjax sample --source=edm-cifar10-32x32-cond-vp --steps=18 --out=samples.npz
  python -m simjax sample --source=runs/captioned_digits --prompt="write seven" --prompt="an 8"
  python -m simjax sample --source=sim.pth --encoder=T5 --autoencoder=VAE --prompts=prompts.txt
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import flags, logging
from etils import epath

from simjax import config as c
from simjax.commands import flags as command_line
from simjax.data.image_file import CHANNELS
from simjax.errors import ConfigError
from simjax.evaluation import images
from simjax.evaluation.drawing import Drawing
from simjax.models import build, samplers, stored
from simjax.models.generator import generator_of, set_sigma_init, with_calls
from simjax.models.model import Model
from simjax.models.open import Opened, Wanted, is_export, open_model
from simjax.runs import report
from simjax.runtime import processes, storage, values
from simjax.runtime.monitor import grid
from simjax.text import prompts as files_of_prompts
from simjax.typing import Int

_SOURCE = flags.DEFINE_string(
    "source", None, "Run directory, export, or published weights: known name, URL, file, folder."
)
_FAMILY = flags.DEFINE_string("family", "", "Family of a DiT or SiT .pt file: dit, sit, sit_gvp.")
_NETWORK = flags.DEFINE_enum(
    "network",
    "generator",
    ["generator", "best", "teacher"],
    "Which network of a run: newest generator (EMA), best generator by evaluation.best, teacher.",
)
_STEPS = flags.DEFINE_integer(
    "steps", None, "Teacher: sampler steps (0: one call); generator: NFE. Default: the run's.", 0
)
_GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Guidance scale of a teacher's sampler; default: the run's, or 1 (none)."
)
_SIGMA_INIT = flags.DEFINE_float(
    "sigma_init", None, "Noise level of a generator's first call; default: the run's, or 2.5."
)
_CLASSES = flags.DEFINE_list("classes", None, "Class indices, cycled, e.g. 3,7; default: all.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Prompt, cycled with the others")
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "File of prompts: .txt (one per line), .tsv, .csv, .json or .jsonl."
)
_ENCODER = flags.DEFINE_string("encoder", None, "Folder of a T5 encoder, for prompts.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokenizer file or folder; default: --encoder.")
_AUTOENCODER = flags.DEFINE_string(
    "autoencoder", None, "Folder of a diffusers AutoencoderKL, to decode latents."
)
_COUNT = flags.DEFINE_integer(
    "count", None, "Number of samples (default 64), or of samples per prompt (default 4).", 1
)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed.", 0, values.LARGEST_SEED)
_BATCH = flags.DEFINE_integer("batch", None, "Samples per batch; default: the run's, or 100.", 1)
_OUT = flags.DEFINE_string(
    "out", "samples.png", "Grid NAME.png, arrays NAME.npz, or PNG files FOLDER/."
)
_COLUMNS = flags.DEFINE_integer("columns", None, "Columns of the grid; default: about square.", 1)

COUNT, COUNT_OF_A_PROMPT = 64, 4  # our choice
FILES = (".png", ".npz")
# Kinds of source, and the flags that have an effect on each; per network: _require_flags.
GENERATOR, TEACHER = "a run's generator", "a run's teacher (--network=teacher)"
TEACHER_ONCE = "a run's teacher called once (--network=teacher --steps=0)"
EXPORT = "an export"
ONE_CALL, SAMPLED = "published weights called once", "published weights with --steps=N"
OF_A_RUN = (GENERATOR, TEACHER, TEACHER_ONCE)
USES = {
    "network": OF_A_RUN,
    "family": (ONE_CALL, SAMPLED),
    "steps": (GENERATOR, TEACHER, TEACHER_ONCE, EXPORT, ONE_CALL, SAMPLED),
    "guidance": (TEACHER, SAMPLED),
    "sigma_init": (GENERATOR, TEACHER_ONCE, EXPORT, ONE_CALL),
} | dict.fromkeys(
    ("source", "classes", "prompt", "prompts", "encoder", "tokenizer", "autoencoder")
    + ("count", "seed", "batch", "out", "columns"),
    (*OF_A_RUN, EXPORT, ONE_CALL, SAMPLED),
)

command_line.require_positive("sigma_init")


class Request(NamedTuple):
    """Samples to draw, with their conditions.

    Attributes:
      labels: classes of the samples; None without classes.
      period: number of conditions that are cycled over the samples.
      conditions: description for the log.
    """

    drawing: Drawing
    count: int
    labels: Int[np.ndarray, "n"] | None
    period: int
    conditions: str


def main() -> None:
    """Entry point; user errors exit with status 1 and one message."""
    command_line.start(_run, parse=command_line.parse_source)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # hides Orbax's warnings about read-only access
    processes.reuse_compiled()
    is_run = stored.find_run(_SOURCE.value) is not None
    command_line.require_used(_kind(is_run), USES)
    out, prompts = _destination(_OUT.value), files_of_prompts.given(_PROMPT.value, _PROMPTS.value)
    wanted = Wanted(
        captions=is_run and not prompts,
        encoder=_ENCODER.value or "",
        tokenizer=_TOKENIZER.value or "",
        prompts=bool(prompts),
        pictures=True,
    )
    opened = open_model(
        _SOURCE.value,
        wanted,
        network=_NETWORK.value,
        family=_FAMILY.value,
        adjusted=_with_flags,
        check=functools.partial(_require_flags, prompts=prompts),
    )
    model, weights = opened.model, opened.weights()
    sampler, sampled = _sampler(opened)
    request = _of_prompts(model, prompts) if prompts else _of_classes(model)
    drawing, count = request.drawing, request.count
    batches = drawing.draw(sampler.function, sampler.params)
    if out.suffix == ".png":
        columns = _COLUMNS.value or _columns(count, request.period)
        images.write_image(out, grid(np.concatenate(list(batches)), columns))
    else:
        images.write(out, batches, request.labels)
    height, width, _ = build.pixel_shape(model.config)
    print(f"weights: {weights}")
    print(f"sampler: {sampled}; NFE: {sampler.evaluations}")
    print(f"conditions: {request.conditions}; seed {_SEED.value}")
    print(f"images: {count} of {width} x {height}; {drawing.seconds / count:.3g} s each")
    print(f"written to {out}")


def _kind(is_run: bool) -> str:
    """Kind of source, as in USES."""
    if not is_run and is_export(_SOURCE.value):
        return EXPORT
    if not is_run:
        return SAMPLED if _STEPS.value else ONE_CALL
    if _NETWORK.value != "teacher":
        return GENERATOR
    return TEACHER_ONCE if _STEPS.value == 0 else TEACHER


def _destination(given: str) -> epath.Path:
    """Output path, checked to be writable before sampling starts.

    Raises:
      ConfigError: it is not writable or has another suffix than FILES, or --columns is given
        without a grid.
    """
    out = storage.new_file_or_folder(given, "--out", FILES)
    if out.suffix != ".png" and command_line.was_given("columns"):
        raise ConfigError(f"--columns is for a grid, --out=NAME.png, not for --out={given}.")
    return out


def _with_flags(config: c.Config) -> c.Config:
    """The config with the overrides of the flags."""
    given = (
        (config.evaluation, "batch", _BATCH.value),
        (config.teacher, "guidance", _GUIDANCE.value),
        (config, "autoencoder", _AUTOENCODER.value),
    )
    for part, field, value in given:
        if value is not None:
            setattr(part, field, value)
    if _SIGMA_INIT.value is not None:
        set_sigma_init(config, _SIGMA_INIT.value)
    return config


def _sampler(opened: Opened) -> tuple[samplers.Sampler, str]:
    """Sampler and its description: a teacher's with --steps, else the generator's."""
    model, steps = opened.model, _STEPS.value
    if opened.is_generator and steps:
        config, note = with_calls(model.config, steps)
        model, steps = dataclasses.replace(model, config=config), None
        if note:
            print(f"note: {note}")
    if steps is None and opened.run is not None and opened.found is None:  # as in the run's report
        steps = model.config.evaluation.teacher_steps[0]
    if not steps:
        (sampler,) = samplers.generated(model, {"generator": opened.params})
        return sampler, generator_of(model.config).describe()
    sampler, guidance = samplers.many_steps(model, steps), model.config.teacher.guidance
    return sampler, f"{sampler.name}, {steps} steps, guidance {guidance}"


def _require_flags(config: c.Config, network: c.Network, prompts: Sequence[str]) -> None:
    """Rejects flags that the network does not use, and missing required ones.

    Raises:
      ConfigError: naming these flags.
    """
    reads, has_reader = network.condition.reads_prompts, bool(config.text.templates)
    has_prompts = bool(prompts or has_reader or config.text.cache)
    gives_reader = bool(_ENCODER.value or _TOKENIZER.value)
    has_classes = bool(has_reader or network.label_dim) and not prompts
    found = {
        "does not use": {
            "--prompt and --prompts": prompts and not reads,
            "--encoder and --tokenizer": gives_reader and (has_reader or not prompts),
            "--classes": _CLASSES.value is not None and not has_classes,
        },
        "needs": {
            "--prompt=TEXT or --prompts=FILE": reads and not has_prompts,
            "--encoder=FOLDER of a T5 encoder": reads
            and not (has_reader or _ENCODER.value)
            and (prompts or not has_prompts),
            "--autoencoder=FOLDER of diffusers' AutoencoderKL": not config.autoencoder
            and network.image_channels not in CHANNELS.values(),
        },
    }
    for what, flags_ in found.items():
        if named := [name for name, is_so in flags_.items() if is_so]:
            raise ConfigError(f"{type(network).__name__} {what} {', '.join(named)}.")


def _of_prompts(model: Model, prompts: Sequence[str]) -> Request:
    """--count samples per prompt, with the prompts encoded."""
    reader, cond = model.read, model.read(prompts)
    count = (_COUNT.value or COUNT_OF_A_PROMPT) * len(prompts)
    drawing = report.drawing_of(model, cond, count, _SEED.value)
    cut = f"{reader.cut(prompts)} of them truncated to {reader.length} tokens"
    conditions = f"{len(prompts)} prompts, cycled, {cut}"
    return Request(drawing, count, None, len(prompts), conditions)


def _of_classes(model: Model) -> Request:
    """Samples conditioned on --classes or the run's prompts, or unconditional ones."""
    classes, count = np.arange(max(model.classes, 1)), _COUNT.value or COUNT
    if _CLASSES.value is not None:
        known = {str(number): number for number in classes}
        if not _CLASSES.value or any(given not in known for given in _CLASSES.value):
            raise ConfigError(
                f"--classes={','.join(_CLASSES.value)}: expected numbers from 0 to "
                f"{len(classes) - 1}, as in --classes=0,1."
            )
        classes = np.array([known[given] for given in _CLASSES.value])
    labels = np.resize(classes, count).astype(np.int32)  # cycles
    drawing = report.drawing(model, labels, _SEED.value)
    if model.classes:
        conditions = f"{len(classes)} classes, cycled"
        return Request(drawing, count, labels, len(classes), conditions)
    conditions = "none" if model.captions is None else "the run's prompts, cycled"
    return Request(drawing, count, None, 1, conditions)


def _columns(count: int, period: int) -> int:
    """Columns of a nearly square grid, one condition per column if possible."""
    side = count**0.5
    return period * max(1, round(side / period)) if period <= count else -int(-side // 1)
