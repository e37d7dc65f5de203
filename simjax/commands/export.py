"""Writes a generator in the formats that other programs read, with a model card.

python -m simjax export --source=runs/digits --out=exports/digits --format=safetensors,stablehlo
python -m simjax export --source=sid.pkl --out=exports/sid --format=edm
python -m simjax export --source=sim.pth --out=exports/sim --format=diffusers,stablehlo

safetensors: weights for simjax. edm: a state dictionary for NVlabs/edm's classes. diffusers: a
transformer's folder. stablehlo: a program that needs jax alone, with its weights as safetensors.
What is written is read back and compared before this says that it is done; all on the CPU, which
rounds the same way every time. Files of the same names are replaced.
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

_SOURCE = flags.DEFINE_string("source", None, "Run directory, known name, URL, file, folder.")
_OUT = flags.DEFINE_string("out", None, "Folder for the files.")
_FORMAT = flags.DEFINE_list("format", ["safetensors"], f"Of {', '.join(formats.FORMATS)}.")
_FAMILY = flags.DEFINE_string("family", "", "Family of a .pt that may be DiT's or SiT's: dit, sit.")
_NETWORK = flags.DEFINE_enum(
    "network",
    "generator",
    ["generator", "best", "teacher"],
    "Which network of a run: the newest generator, that which evaluation.best kept, the teacher.",
)
_SIGMA_INIT = flags.DEFINE_float("sigma_init", None, "Of the one call; default the run's, or 2.5.")

RUN, WEIGHTS = "a run", "published weights"
USES = {  # the kinds of source that each flag has an effect on
    "source": (RUN, WEIGHTS),
    "family": (WEIGHTS,),
    "network": (RUN,),
    "out": (RUN, WEIGHTS),
    "format": (RUN, WEIGHTS),
    "sigma_init": (RUN, WEIGHTS),
}
UNTOLD = ("description", "checksum", "seconds")  # of a network's provenance: for simjax alone

command_line.require_positive("sigma_init")


def main() -> None:
    """Parses flags and exports; a user's mistake is one message and exit status 1."""
    command_line.start(_run, parse=command_line.parse_source)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax warns that it only reads
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
    role, told = _of_run(opened) if opened.run else _of_network(opened)
    card = model_card.Card(out.resolve().name, role, config, checks, told)
    formats.write(out / model_card.NAME, model_card.text(card).encode())
    print(f"model card: {model_card.NAME}")
    print(f"written to {_OUT.value}")


def _exported(name: str, generator: formats.Generator, out: Path) -> str:
    """Writes one format; what was found when it was read back.

    Raises:
      ConfigError: it cannot be read, or is something else than what was written.
    """
    try:
        files = formats.FORMATS[name].write(generator, out)
        found = formats.FORMATS[name].compare(generator, out)
    except ConfigError:
        raise
    except Exception as error:  # damage shows in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"--format={name}: what is in {out} could not be written and read back: {reason}."
        ) from error
    print(f"{name}: {', '.join(files)}; read back: {found}")
    return found


def _formats(given: list[str]) -> list[str]:
    """Those asked for; a program needs its weights beside it.

    Raises:
      ConfigError: naming those that are not known.
    """
    unknown = [name for name in given if name not in formats.FORMATS]
    if unknown or not given:
        raise ConfigError(
            f"--format={','.join(given)}: expected some of {', '.join(formats.FORMATS)}, as in "
            "--format=safetensors,stablehlo."
        )
    given = [*given, *["safetensors"] * ("stablehlo" in given)]
    return [name for name in formats.FORMATS if name in given]


def _destination(given: str | None) -> Path:
    """The folder, which is known to be writable before anything is read.

    Raises:
      ConfigError: it is not, or a run directory, whose config.json would be replaced.
    """
    if not given or storage.in_bucket(given):
        raise ConfigError(f"--out={given or ''}: expected a folder on a disk, to be read back.")
    out = Path(given).expanduser()
    if stored.config_of_run(epath.Path(out)) is not None:
        raise ConfigError(f"--out={given} is a run directory; give a folder of its own.")
    storage.new_folder(given, "--out")
    return out


def _of_run(opened: Opened) -> tuple[str, model_card.Told]:
    """What a card tells of a run's teacher or generator: its role, a sentence; and facts."""
    model, source, config = opened.model, opened.source, opened.model.config
    known = _known(model)
    report = opened.run / "report.json"
    measured = json.loads(report.read_text()) if report.exists() else None
    if opened.found is None:
        role = (
            f"A diffusion model, the teacher of `{source}`; by {generator_of(config).name} it "
            "gives blurred samples."
        )
        return role, model_card.Told(c.to_dict(config), known, measured)
    measured = None if "metric" in opened.found else measured  # the report is of the newest
    role = (
        f"A {generator_of(config).kind} generator that simjax distilled from a diffusion model, by "
        f"`{config.loss.name}`."
    )
    weights = f"the generator's {stored.describe_generator(opened.found)}"
    own = {"run": source, "weights": weights, "sha256": opened.sha256()}
    of_teacher = {f"the teacher's {name}": value for name, value in known.items()}
    return role, model_card.Told(c.to_dict(config), own | of_teacher, measured)


def _of_network(opened: Opened) -> tuple[str, model_card.Told]:
    """What a card tells of an export or of published weights."""
    what = "A network that simjax exported" if is_export(opened.source) else "The published network"
    generator = generator_of(opened.model.config)
    role = (
        f"{what}, `{opened.source}`, by {generator.name}: made for that if it is a "
        f"{generator.kind} generator; if it is a diffusion model, samples are blurred."
    )
    config = exported.settings(opened.model.config)
    return role, model_card.Told(config, _known(opened.model), None)


def _known(model: Model) -> dict[str, Any]:
    return {name: value for name, value in model.provenance.items() if name not in UNTOLD}


def _with_flags(config: c.Config) -> c.Config:
    """The config with the noise level that was asked for."""
    if _SIGMA_INIT.value is not None:
        set_sigma_init(config, _SIGMA_INIT.value)
    return config
