"""Writes a generator in the formats that other programs read, with a model card.

python -m simjax.export --source=runs/digits --out=exports/digits --format=safetensors,stablehlo
python -m simjax.export --source=sid.pkl --out=exports/sid --format=edm
python -m simjax.export --source=sim.pth --out=exports/sim --format=diffusers,stablehlo

safetensors: weights for simjax. edm: a state dictionary for NVlabs/edm's classes. diffusers: a
transformer's folder. stablehlo: a program that needs jax alone, with its weights as safetensors.
What is written is read back and compared before this says that it is done; all on the CPU, which
rounds the same way every time. Files of the same names are replaced.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
from absl import flags, logging
from etils import epath

from simjax import command_line, formats, model_card, teacher
from simjax import config as c
from simjax.errors import ConfigError
from simjax.models import stored
from simjax.networks.denoiser import with_constants
from simjax.porting.files import cache
from simjax.runtime import checkpoint, processes, sharding, storage
from simjax.teacher import Model
from simjax.typing import Params

_SOURCE = flags.DEFINE_string("source", None, "Run directory, known name, URL, file, folder.")
_OUT = flags.DEFINE_string("out", None, "Folder for the files.")
_FORMAT = flags.DEFINE_list("format", ["safetensors"], f"Of {', '.join(formats.FORMATS)}.")
_FAMILY = flags.DEFINE_string("family", "", "Family of a .pt that may be DiT's or SiT's: dit.")
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


class Origin(NamedTuple):
    """What is exported; its weights, for a person; its role, a sentence; and what a card tells."""

    model: Model
    params: Params
    weights: str
    role: str
    told: model_card.Told


def main() -> None:
    """Parses flags and exports; a user's mistake is one message and exit status 1."""
    command_line.start(_run, parse=command_line.parse_source)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax warns that it only reads
    jax.config.update("jax_platforms", "cpu")
    processes.reuse_compiled(cache.directory() / "compiled")
    found = stored.find_run(_SOURCE.value)
    command_line.require_used(RUN if found else WEIGHTS, USES)
    wanted, out = _formats(_FORMAT.value), _destination(_OUT.value)
    origin = _of_run(*found) if found else _of_network(_SOURCE.value)
    config = origin.model.config
    for name in wanted:
        formats.FORMATS[name].require(config)
    sample = formats.sampler(config, origin.model.denoise, origin.params)
    weights = with_constants(sharding.to_host(origin.params), origin.model.constants)
    generator = formats.Generator(config, weights, sample(*formats.inputs(config)))
    print(f"weights: {origin.weights}")
    checks = {name: _exported(name, generator, out) for name in wanted}
    card = model_card.Card(out.resolve().name, origin.role, config, checks, origin.told)
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


def _of_run(directory: epath.Path, config: c.Config) -> Origin:
    """A generator of a run, the newest or the best, or the run's teacher."""
    model = teacher.load(_with_flags(config), directory / "teacher")
    known = {k: v for k, v in model.provenance.items() if k not in UNTOLD}
    report = directory / "report.json"
    measured = json.loads(report.read_text()) if report.exists() else None
    source, method = _SOURCE.value, config.loss.name
    if _NETWORK.value == "teacher":
        weights = f"teacher of {source}, {known['source']}, sha256 {known['sha256']}"
        role = (
            f"A diffusion model, the teacher of `{source}`; called once, it gives blurred samples."
        )
        told = model_card.Told(c.to_dict(model.config), known, measured)
        return Origin(model, model.params, weights, role, told)
    params, found = stored.generator_of_run(model, directory, _NETWORK.value)
    told, digest = stored.describe_generator(found), checkpoint.params_sha256(params)
    weights = f"generator of {source}, {told}, sha256 {digest}"
    measured = None if "metric" in found else measured  # the report is of the newest
    role = f"A one-step generator that simjax distilled from a diffusion model, by `{method}`."
    own = {"run": source, "weights": f"the generator's {told}", "sha256": digest}
    of_teacher = {f"the teacher's {name}": value for name, value in known.items()}
    told = model_card.Told(c.to_dict(model.config), own | of_teacher, measured)
    return Origin(model, params, weights, role, told)


def _of_network(source: str) -> Origin:
    """Published weights."""
    model = teacher.ported(_with_flags(c.Config()), source, say=print)
    known = {k: v for k, v in model.provenance.items() if k not in UNTOLD}
    weights = f"{source}, sha256 {known['file_sha256']}"
    role = (
        f"The published network `{source}`, called once: made for that if it is a one-step "
        "generator; if it is a diffusion model, samples are blurred."
    )
    told = model_card.Told(formats.settings(model.config), known, None)
    return Origin(model, model.params, weights, role, told)


def _with_flags(config: c.Config) -> c.Config:
    """The config with the noise level and the family that were asked for."""
    config.teacher.family = _FAMILY.value or config.teacher.family
    if _SIGMA_INIT.value is not None:
        config.generator.sigma_init = _SIGMA_INIT.value
    return config


if __name__ == "__main__":
    main()
