"""Probes a teacher: what its denoiser says about its data and how it is called, without data.

python -m simjax probe --source=runs/digits
python -m simjax probe --source=edm-cifar10-32x32-cond-vp --write=configs/mine.py
python -m simjax probe --source=PixArt-XL-2-512x512 --encoder=T5 --prompts=prompts.txt

Draws samples by the teacher's own sampler, measures its denoiser at noise levels of their scale,
proposes laws of sigma, sigma_init and the loss's options, and warns of calls that no exact denoiser
would answer so. --out gets probe.json and probe.png, --write a config for simjax.main.
"""

import numpy as np
from absl import flags, logging

from simjax import config as c
from simjax.commands import flags as command_line
from simjax.errors import ConfigError
from simjax.models import stored
from simjax.models.open import Wanted, is_export, open_model
from simjax.runs import probe
from simjax.runs.probe import files
from simjax.runtime import processes, storage, values
from simjax.text import prompts as files_of_prompts

_SOURCE = flags.DEFINE_string("source", None, "Run directory, known name, URL, file, folder.")
_FAMILY = flags.DEFINE_string("family", "", "Family of a .pt that may be DiT's or SiT's: dit, sit.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "To be looked at too; default the run's, or 1.")
_SAMPLES = flags.DEFINE_integer("samples", probe.SAMPLES, "Of the teacher's sampler.", 2)
_STEPS = flags.DEFINE_integer("steps", probe.STEPS, "Of the teacher's sampler.", 1)
_LEVELS = flags.DEFINE_integer("levels", probe.LEVELS, "Noise levels of the curves.", 8)
_BATCH = flags.DEFINE_integer("batch", None, "Samples at a time; default the run's, or 100.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed.", 0, values.LARGEST_SEED)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "May be given several times: in turn.")
_PROMPTS = flags.DEFINE_string("prompts", None, "File of them, .txt, .csv, .json ...: in turn.")
_ENCODER = flags.DEFINE_string("encoder", None, "Folder of a T5 encoder, which reads prompts.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "File or folder; default --encoder.")
_AUTOENCODER = flags.DEFINE_string("autoencoder", None, "Folder of diffusers' AutoencoderKL.")
_EXPLAIN = flags.DEFINE_bool("explain", True, "Try other calls where the curves are wrong.")
_OUT = flags.DEFINE_string("out", "probe", "Folder for probe.json and probe.png.")
_WRITE = flags.DEFINE_string("write", None, "Config file to write, NAME.py, for simjax.main.")


def main() -> None:
    """Parses flags and probes; a user's mistake is one message and exit status 1."""
    command_line.start(_run, parse=command_line.parse_source)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax warns that it only reads
    processes.reuse_compiled()
    is_run = stored.find_run(_SOURCE.value) is not None
    if not is_run and is_export(_SOURCE.value):
        raise ConfigError(f"{_SOURCE.value} is an export of a generator; a teacher is probed.")
    out = storage.new_folder(_OUT.value, "--out")
    if _WRITE.value is not None and not _WRITE.value.endswith(".py"):
        raise ConfigError(f"--write={_WRITE.value}: expected a Python file, as configs/mine.py.")
    config_file = None if _WRITE.value is None else storage.new_file(_WRITE.value, "--write")
    prompts = files_of_prompts.given(_PROMPT.value, _PROMPTS.value)
    opened = open_model(
        _SOURCE.value,
        Wanted(
            captions=not prompts,
            encoder=_ENCODER.value or "",
            tokenizer=_TOKENIZER.value or "",
            prompts=bool(prompts),
        ),
        network="teacher",
        family=_FAMILY.value,
        adjusted=_with_flags,
    )
    found = probe.probe(
        opened.model,
        samples=_SAMPLES.value,
        steps=_STEPS.value,
        levels=_LEVELS.value,
        seed=_SEED.value,
        explain=_EXPLAIN.value,
        prompts=prompts,
    )
    print(f"weights: {opened.weights()}\n\n{found.table()}\n")
    storage.write_json(out / "probe.json", {"source": _SOURCE.value, **found.to_dict()})
    told = f"{np.round(found.seconds, 1)} s; written to {out}/probe.json"
    if found.images:
        files.picture(found).save(out / "probe.png")
        told += f" and {out}/probe.png"
    if config_file is not None:
        if found.proposal is None:
            raise ConfigError("--write: there is nothing to propose; see the warning above.")
        # Of published weights, whose network comes with them, nothing else is known.
        published = c.Config(teacher=c.Teacher(source=_SOURCE.value, family=_FAMILY.value))
        begun = opened.model.config if is_run else _with_flags(published)
        text = files.config_text(begun, found, _SOURCE.value)
        config_file.write_text(text)
        told += f"; python -m simjax.main --config={config_file}"
    print(told)


def _with_flags(config: c.Config) -> c.Config:
    """The config with what the flags change of it."""
    for part, field, value in (
        (config.teacher, "guidance", _GUIDANCE.value),
        (config.evaluation, "batch", _BATCH.value),
        (config, "autoencoder", _AUTOENCODER.value),
    ):
        if value is not None:
            setattr(part, field, value)
    return config
