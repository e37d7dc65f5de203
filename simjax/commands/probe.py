"""Checks a teacher's denoiser without data and proposes distillation settings.

Samples the teacher, measures its denoising error at noise levels matched to the samples' scale,
proposes sigma distributions, sigma_init and loss options, and warns if the curves are impossible
for an exact denoiser (wrong preconditioning, sigma convention, guidance, ...). --out receives
probe.json and probe.png; --write writes the proposal as a config for simjax.main.

Examples:
  python -m simjax probe --source=runs/digits
  python -m simjax probe --source=edm-cifar10-32x32-cond-vp --write=configs/mine.py
  python -m simjax probe --source=PixArt-XL-2-512x512 --encoder=T5 --prompts=prompts.txt
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

_SOURCE = flags.DEFINE_string(
    "source", None, "Run directory, or published weights: known name, URL, file, folder."
)
_FAMILY = flags.DEFINE_string("family", "", "Family of a DiT or SiT .pt file: dit, sit, sit_gvp.")
_GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Guidance scale to check as well; default: the run's, or 1 (none)."
)
_SAMPLES = flags.DEFINE_integer("samples", probe.SAMPLES, "Teacher samples to draw.", 2)
_STEPS = flags.DEFINE_integer("steps", probe.STEPS, "Steps of the teacher's sampler.", 1)
_LEVELS = flags.DEFINE_integer("levels", probe.LEVELS, "Noise levels to measure.", 8)
_BATCH = flags.DEFINE_integer("batch", None, "Samples per batch; default: the run's, or 100.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed.", 0, values.LARGEST_SEED)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Prompt, cycled with the others")
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "File of prompts: .txt (one per line), .tsv, .csv, .json or .jsonl."
)
_ENCODER = flags.DEFINE_string("encoder", None, "Folder of a T5 encoder, for prompts.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokenizer file or folder; default: --encoder.")
_AUTOENCODER = flags.DEFINE_string(
    "autoencoder", None, "Folder of a diffusers AutoencoderKL, to decode latents."
)
_EXPLAIN = flags.DEFINE_bool("explain", True, "Search for the cause if the curves are wrong.")
_OUT = flags.DEFINE_string("out", "probe", "Folder for probe.json and probe.png.")
_WRITE = flags.DEFINE_string("write", None, "Config file NAME.py to write, for simjax.main.")


def main() -> None:
    """Entry point; user errors exit with status 1 and one message."""
    command_line.start(_run, parse=command_line.parse_source)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # hides Orbax's warnings about read-only access
    processes.reuse_compiled()
    is_run = stored.find_run(_SOURCE.value) is not None
    if not is_run and is_export(_SOURCE.value):
        raise ConfigError(f"{_SOURCE.value} is an exported generator; expected a teacher.")
    out = storage.new_folder(_OUT.value, "--out")
    if _WRITE.value is not None and not _WRITE.value.endswith(".py"):
        raise ConfigError(f"--write={_WRITE.value}: expected a Python file, e.g. configs/mine.py.")
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
    summary = f"{np.round(found.seconds, 1)} s; written to {out}/probe.json"
    if found.images:
        files.picture(found).save(out / "probe.png")
        summary += f" and {out}/probe.png"
    if config_file is not None:
        if found.proposal is None:
            raise ConfigError("--write: the probe has no proposal; see the warning above.")
        # A config of published weights has the source alone; the network is read from it.
        published = c.Config(teacher=c.Teacher(source=_SOURCE.value, family=_FAMILY.value))
        begun = opened.model.config if is_run else _with_flags(published)
        text = files.config_text(begun, found, _SOURCE.value)
        config_file.write_text(text)
        summary += f"; python -m simjax.main --config={config_file}"
    print(summary)


def _with_flags(config: c.Config) -> c.Config:
    """The config with the overrides of the flags."""
    for part, field, value in (
        (config.teacher, "guidance", _GUIDANCE.value),
        (config.evaluation, "batch", _BATCH.value),
        (config, "autoencoder", _AUTOENCODER.value),
    ):
        if value is not None:
            setattr(part, field, value)
    return config
