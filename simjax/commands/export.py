"""Exports a generator to other formats, with a model card.

Formats:
  safetensors  weights and config, for simjax
  edm          state dict and constructor arguments for the classes of NVlabs/edm
  diffusers    folder of a transformer (DiT, PixArt-alpha)
  stablehlo    program that needs only jax, with its weights as safetensors

Every format is read back and compared with the source, on the CPU. Existing files of the same names
are overwritten.

Examples:
  python -m simjax export --source=runs/digits --out=exports/digits --format=safetensors,stablehlo
  python -m simjax export --source=sid.pkl --out=exports/sid --format=edm
  python -m simjax export --source=sim.pth --out=exports/sim --format=diffusers,stablehlo
"""

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from etils import epath

from simjax import config as c
from simjax.commands import flags as command_line
from simjax.errors import ConfigError
from simjax.export import formats, model_card
from simjax.models import exported, stored
from simjax.models.generator import generator_of, set_sigma_init
from simjax.models.model import Model
from simjax.models.open import Opened, Wanted, is_export, open_model
from simjax.runtime import processes, storage

_SOURCE = flags.DEFINE_string(
    "source", None, "Run directory, export, or published weights: known name, URL, file, folder."
)
_OUT = flags.DEFINE_string("out", None, "Output folder.")
_FORMAT = flags.DEFINE_list("format", ["safetensors"], f"Any of {', '.join(formats.FORMATS)}.")
_FAMILY = flags.DEFINE_string("family", "", "Family of a DiT or SiT .pt file: dit, sit, sit_gvp.")
_NETWORK = flags.DEFINE_enum(
    "network",
    "generator",
    ["generator", "best", "teacher"],
    "Which network of a run: newest generator (EMA), best generator by evaluation.best, teacher.",
)
_SIGMA_INIT = flags.DEFINE_float(
    "sigma_init", None, "Noise level of a generator's first call; default: the run's, or 2.5."
)

RUN, WEIGHTS = "a run", "published weights"
USES = {  # flag -> kinds of source on which it has an effect
    "source": (RUN, WEIGHTS),
    "family": (WEIGHTS,),
    "network": (RUN,),
    "out": (RUN, WEIGHTS),
    "format": (RUN, WEIGHTS),
    "sigma_init": (RUN, WEIGHTS),
}
INTERNAL = ("description", "checksum", "seconds")  # internal provenance, not for the model card

command_line.require_positive("sigma_init")


def main() -> None:
    """Entry point; user errors exit with status 1 and one message."""
    command_line.start(_run, parse=command_line.parse_source)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # hides Orbax's warnings about read-only access
    jax.config.update("jax_platforms", "cpu")
    processes.reuse_compiled()
    found = stored.find_run(_SOURCE.value)
    command_line.require_used(RUN if found else WEIGHTS, USES)
    wanted, out = _formats(_FORMAT.value), _destination(_OUT.value)
    opened = open_model(
        _SOURCE.value,
        Wanted(),
        network=_NETWORK.value,
        family=_FAMILY.value,
        adjusted=_with_flags,
    )
    model, params, config = opened.model, opened.params, opened.model.config
    for name in wanted:
        formats.FORMATS[name].require(config)
    sample = formats.sampler(config, model.denoise, params)
    weights = model.weights(params)
    generator = formats.Generator(config, weights, sample(*formats.inputs(config)))
    print(f"weights: {opened.weights()}")
    checks = {name: _exported(name, generator, out) for name in wanted}
    role, facts = _of_run(opened) if opened.run else _of_network(opened)
    card = model_card.Card(out.resolve().name, role, config, checks, facts)
    formats.write(out / model_card.NAME, model_card.text(card).encode())
    print(f"model card: {model_card.NAME}")
    print(f"written to {_OUT.value}")


def _exported(name: str, generator: formats.Generator, out: Path) -> str:
    """Writes one format, reads it back and describes the comparison.

    Raises:
      ConfigError: the files cannot be written or read, or differ from the source.
    """
    try:
        files = formats.FORMATS[name].write(generator, out)
        found = formats.FORMATS[name].compare(generator, out)
    except ConfigError:
        raise
    except Exception as error:  # damaged files raise errors of many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"--format={name}: writing to {out} and reading back failed: {reason}."
        ) from error
    print(f"{name}: {', '.join(files)}; read back: {found}")
    return found


def _formats(given: list[str]) -> list[str]:
    """Requested formats; stablehlo implies safetensors, which hold its weights.

    Raises:
      ConfigError: a format is unknown.
    """
    unknown = [name for name in given if name not in formats.FORMATS]
    if unknown or not given:
        raise ConfigError(
            f"--format={','.join(given)}: expected some of {', '.join(formats.FORMATS)}, e.g. "
            "--format=safetensors,stablehlo."
        )
    given = [*given, *["safetensors"] * ("stablehlo" in given)]
    return [name for name in formats.FORMATS if name in given]


def _destination(given: str | None) -> Path:
    """Output folder, checked to be writable before weights are read.

    Raises:
      ConfigError: it is not a writable local folder, or it is a run directory, whose config.json
        would be overwritten.
    """
    if not given or storage.in_bucket(given):
        raise ConfigError(f"--out={given or ''}: expected a folder on a local disk.")
    out = Path(given).expanduser()
    if stored.config_of_run(epath.Path(out)) is not None:
        raise ConfigError(f"--out={given} is a run directory; choose another folder.")
    storage.new_folder(given, "--out")
    return out


def _of_run(opened: Opened) -> tuple[str, model_card.Origin]:
    """Model card of a run's network: role (one sentence) and facts."""
    model, source, config = opened.model, opened.source, opened.model.config
    known = _known(model)
    report = opened.run / "report.json"
    measured = json.loads(report.read_text()) if report.exists() else None
    if opened.found is None:
        role = (
            f"A diffusion model, the teacher of `{source}`; samples by {generator_of(config).name} "
            "are blurred."
        )
        return role, model_card.Origin(c.to_dict(config), known, measured)
    measured = None if "metric" in opened.found else measured  # the report has the newest one's
    role = (
        f"A {generator_of(config).kind} generator, distilled by simjax from a diffusion model "
        f"with the loss `{config.loss.name}`."
    )
    weights = f"the generator's {stored.describe_generator(opened.found)}"
    own = {"run": source, "weights": weights, "sha256": opened.sha256()}
    of_teacher = {f"the teacher's {name}": value for name, value in known.items()}
    return role, model_card.Origin(c.to_dict(config), own | of_teacher, measured)


def _of_network(opened: Opened) -> tuple[str, model_card.Origin]:
    """Model card of an export or published weights: role and facts."""
    what = "A network that simjax exported" if is_export(opened.source) else "The published network"
    generator = generator_of(opened.model.config)
    role = (
        f"{what}, `{opened.source}`, sampled by {generator.name}. This is right for a "
        f"{generator.kind} generator; a diffusion model gives blurred samples."
    )
    config = exported.settings(opened.model.config)
    return role, model_card.Origin(config, _known(opened.model), None)


def _known(model: Model) -> dict[str, Any]:
    return {name: value for name, value in model.provenance.items() if name not in INTERNAL}


def _with_flags(config: c.Config) -> c.Config:
    """The config with --sigma_init."""
    if _SIGMA_INIT.value is not None:
        set_sigma_init(config, _SIGMA_INIT.value)
    return config
