"""Opens a model from a run directory, an export or published weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from simjax import config as c
from simjax.errors import ConfigError
from simjax.models import exported, port, stored
from simjax.models.model import Model, Read, model_of, require_fit
from simjax.porting import zoo
from simjax.porting.files import cache
from simjax.runtime import checkpoint, values
from simjax.text import captions, encoders
from simjax.text.encoders import Reader
from simjax.typing import Params

NETWORKS = (*stored.GENERATORS, "teacher")  # networks of a run directory


class Opened(NamedTuple):
    """A model and where it came from.

    Attributes:
      source: as given by the user.
      model: the teacher of a run, or the only network of other sources.
      params: parameters of the requested network.
      run: the run directory; None for other sources.
      found: for a run's generator its "step", for the best one also "metric" and "value".
    """

    source: str
    model: Model
    params: Params
    run: epath.Path | None = None
    found: dict[str, Any] | None = None

    @property
    def is_generator(self) -> bool:
        """Whether `params` are a distilled generator, rather than a teacher."""
        return self.found is not None or (self.run is None and is_export(self.source))

    def sha256(self) -> str:
        """sha256 of a run's generator parameters, otherwise of the source file."""
        known = self.model.provenance
        if self.found is not None:
            return checkpoint.params_sha256(self.params)
        return known["sha256" if self.run is not None else "file_sha256"]

    def weights(self) -> str:
        """Human-readable origin and sha256 of the parameters."""
        if self.found is not None:
            name = f"generator of {self.source}, {stored.describe_generator(self.found)}"
        elif self.run is not None:
            name = f"teacher of {self.source}, {self.model.provenance['source']}"
        else:
            name = self.source
        return f"{name}, sha256 {self.sha256()}"


class Wanted(NamedTuple):
    """What the caller needs from a model besides its network.

    Attributes:
      captions: load (or make) the run's captions, which its samples are conditioned on.
      encoder: folder of a T5 encoder for prompts; not needed for a run that made its own captions.
      tokenizer: its file or folder, if it is not in the encoder's folder.
      prompts: prompts of the user are encoded.
      pictures: samples are decoded to images.
    """

    captions: bool = False
    encoder: str = ""
    tokenizer: str = ""
    prompts: bool = False
    pictures: bool = False


def open_model(
    source: str,
    wanted: Wanted,
    *,
    network: str = "generator",
    family: str = "",
    adjusted: Callable[[c.Config], c.Config] = lambda config: config,
    check: Callable[[c.Config, c.Network], None] = lambda config, network: None,
) -> Opened:
    """Opens a model from any source, with everything in `wanted`.

    Errors are raised as early as possible: before weights are downloaded or read, if the network
    is known from the source's name.

    Args:
      source: a run directory, a safetensors export, a known name, a URL, a file or a folder of
        published weights.
      network: which network of a run to open, one of NETWORKS.
      family: family of published weights whose files do not identify it.
      adjusted: applies the user's overrides to the config.
      check: raises if config and network do not suit the caller.

    Raises:
      ConfigError: the source cannot be opened, or lacks something in `wanted`.
    """
    if (run := stored.find_run(source)) is not None:
        _refuse_family(family, "a run")
        return _of_run(source, *run, wanted, network, adjusted, check)
    folder = Path(source).expanduser()
    if is_export(source):
        _refuse_family(family, "an export")
        config, weights = exported.read(folder)
        config = adjusted(config)
        provenance = {"source": source, "file_sha256": cache.digest(folder / exported.WEIGHTS)}
    else:
        config = adjusted(c.Config())
        known = zoo.ZOO.get(source)
        if known is not None and known.network is not None:
            check(config, known.network)
        found = port.port(source, family=family or config.teacher.family)
        config, weights = c.complete(config, *found.description), found.weights
        provenance = found.provenance
    check(config, config.network)
    cached = wanted.captions and config.text.cache  # only a run directory holds other captions
    prepared = captions.prepare(config.text, folder) if cached else None
    beside = {"captions": prepared, "read": _reader(config, wanted, None)}
    model = model_of(config, weights, provenance, pictures=wanted.pictures, **beside)
    return Opened(source, model, model.params)


def is_export(source: str) -> bool:
    """Whether the source is a folder that holds a simjax safetensors export."""
    return not zoo.is_url(source) and exported.is_export(Path(source).expanduser())


def _of_run(
    source: str,
    directory: epath.Path,
    config: c.Config,
    wanted: Wanted,
    network: str,
    adjusted: Callable[[c.Config], c.Config],
    check: Callable[[c.Config, c.Network], None],
) -> Opened:
    values.require_known("network", network, NETWORKS)
    config, _ = stored.described(adjusted(config), directory / "teacher")
    check(config, config.network)
    prepared = None
    if wanted.captions:
        prepared = captions.prepare(config.text, directory)
        require_fit(config.network, prepared)
    beside = {"captions": prepared, "read": _reader(config, wanted, directory)}
    model = stored.load(config, directory / "teacher", pictures=wanted.pictures, **beside)
    if network == "teacher":
        return Opened(source, model, model.params, directory)
    params, found = stored.generator_of_run(model, directory, network)
    return Opened(source, model, params, directory, found)


def _reader(config: c.Config, wanted: Wanted, run: epath.Path | None) -> Read | None:
    """The prompt encoder of a run with template captions, or `wanted.encoder`.

    Raises:
      ConfigError: the network reads no captions, or was trained with another encoder.
    """
    if run is not None and config.text.templates and wanted.prompts:
        return captions.reader(config.text, run)
    if not wanted.encoder:
        return None
    condition = config.network.condition
    if not condition.reads_prompts:
        name = type(config.network).__name__
        raise ConfigError(f"{name} reads no captions; leave the encoder out.")
    length = condition.limit or config.text.length
    reader: Reader = encoders.open_reader(wanted.encoder, wanted.tokenizer, length)
    width, expected = reader.encoder.sizes.width, condition.channels
    if width != expected:
        raise ConfigError(
            f"the text encoder has {width} channels, but the network reads {expected}; use the "
            "encoder that the network was trained with."
        )
    return reader


def _refuse_family(family: str, what: str) -> None:
    """Raises ConfigError if `family` is set but nothing is ported."""
    if family:
        raise ConfigError(
            f"family = {family!r} applies to published weights only; {what} does not need it: "
            "leave it out."
        )
