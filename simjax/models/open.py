"""The one way to a model: of a run, of an export, of published weights; complete when it comes."""

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

NETWORKS = (*stored.GENERATORS, "teacher")  # of a run


class Opened(NamedTuple):
    """What a source is.

    Attributes:
      model: a run's teacher, or the one network of anything else.
      params: of the network that was asked for.
      run: its directory; None of anything else.
      found: of a generator of a run, its "step"; of the best also its "metric" and "value".
    """

    source: str
    model: Model
    params: Params
    run: epath.Path | None = None
    found: dict[str, Any] | None = None

    @property
    def is_generator(self) -> bool:
        """Whether it was trained, or exported, to make samples by the calls of its config."""
        return self.found is not None or (self.run is None and is_export(self.source))

    def sha256(self) -> str:
        """Of the parameters, or of the file that they come from."""
        known = self.model.provenance
        if self.found is not None:
            return checkpoint.params_sha256(self.params)
        return known["sha256" if self.run is not None else "file_sha256"]

    def weights(self) -> str:
        """What they are, for a person."""
        if self.found is not None:
            told = f"generator of {self.source}, {stored.describe_generator(self.found)}"
        elif self.run is not None:
            told = f"teacher of {self.source}, {self.model.provenance['source']}"
        else:
            told = self.source
        return f"{told}, sha256 {self.sha256()}"


class Wanted(NamedTuple):
    """What is to be done with a model, which must have what that needs.

    Attributes:
      captions: samples of a run are asked for its own captions, which are read or made.
      encoder: folder of a T5 encoder that reads prompts; with `prompts`, a run's own needs none.
      tokenizer: its file or folder, if it does not lie beside the encoder.
      prompts: prompts are read.
      pictures: latents are decoded.
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
    """A model from wherever it is, with all that is wanted of it.

    What does not fit is refused as soon as it is known: before weights are fetched or read, where
    the source tells its network.

    Args:
      source: a run directory, an export in the format safetensors, a known name, a URL, a file or a
        folder of published weights.
      network: of a run, one of NETWORKS.
      family: of published weights that do not tell theirs.
      adjusted: the config with what the user changes of it.
      check: raises where config and network do not serve the caller.

    Raises:
      ConfigError: it cannot be had, or not for what is wanted.
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
    cached = wanted.captions and config.text.cache  # there is no run that would keep others
    prepared = captions.prepare(config.text, folder) if cached else None
    beside = {"captions": prepared, "read": _reader(config, wanted, None)}
    model = model_of(config, weights, provenance, pictures=wanted.pictures, **beside)
    return Opened(source, model, model.params)


def is_export(source: str) -> bool:
    """Whether a generator that simjax has exported as safetensors lies there."""
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
    """What reads prompts: of a run that wrote its captions its own encoder, or else the given one.

    Raises:
      ConfigError: the network reads none, or was trained with another encoder.
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
            f"the text encoder has {width} channels, the network reads {expected}; give the "
            "encoder that it was trained with."
        )
    return reader


def _refuse_family(family: str, what: str) -> None:
    """Raises a ConfigError for a family where nothing is ported."""
    if family:
        raise ConfigError(
            f"family = {family!r} is of published weights; {what} does not need it: leave it out."
        )
