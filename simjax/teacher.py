"""A run's networks: ported from a published checkpoint or trained here, stored once, loaded.

A run directory keeps what it started from (teacher/, and generator_start/ where the generator has
a source of its own), with its provenance, and never asks for the source again. The first process
ports; every process reads what it stored, each device its own part.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

import simjax
from simjax import config as c
from simjax.data import conditions
from simjax.errors import ConfigError
from simjax.models import autoencoder, build, port
from simjax.models.autoencoder import Decode
from simjax.networks.denoiser import Constants, as_denoise, constants_of, with_constants
from simjax.porting import zoo
from simjax.porting.maps.edm import Description
from simjax.runs import setup
from simjax.runtime import checkpoint, processes, sharding
from simjax.runtime.monitor import Monitor
from simjax.text import captions, encoders
from simjax.text.captions import Captions
from simjax.train import loop
from simjax.typing import Caption, Condition, Denoise, Int, Params

LARGEST_DATA = 4 * 10**9  # bytes; our choice


@dataclasses.dataclass(frozen=True)
class Model:
    """A denoiser with its parameters, and the run's config completed by what it is."""

    config: c.Config
    mesh: Mesh  # that the parameters are split over
    denoise: Denoise
    params: Params
    constants: Constants  # of the network; never trained
    provenance: dict[str, Any]
    captions: Captions | None = None  # of a text-to-image network
    decode: Decode = autoencoder.as_they_are  # samples to images
    read: Callable[[Sequence[str]], Caption] | None = None  # prompts, of text-to-image networks

    def asked(self, classes: Int[np.ndarray, "n"]) -> Condition:
        """What samples of these classes are conditioned on."""
        if self.captions is not None:
            return self.captions.asked(classes)
        return np.asarray(conditions.one_hot(classes, self.config.network.label_dim))

    @property
    def classes(self) -> int:
        """How many classes samples can be asked for, 0 if none."""
        if self.captions is None:
            return self.config.network.label_dim
        return len(self.config.text.words)


def obtain(config: c.Config, workdir: epath.Path, monitor: Monitor) -> Model:
    """The run's teacher: stored, ported from teacher.source, or trained on config.data.

    Raises:
      ConfigError: it cannot be had; or it reads captions, and there are none.
    """
    stored, prompts = workdir / "teacher", captions.prepare(config, workdir)
    if config.teacher.source:
        source = config.teacher.source
        known = {"family": config.teacher.family, "sha256": config.teacher.sha256}
        model = from_source(config, source, stored, monitor, **known)
        return furnished(model, prompts)
    require_fit(config.network, prompts)
    if not _is_stored(stored):
        _train(config, workdir, stored, monitor, prompts)
    if processes.is_first():
        _training_directory(workdir).rmtree(missing_ok=True)  # a kill may have left it behind
    return furnished(load(config, stored), prompts)


def furnished(model: Model, prompts: Captions | None) -> Model:
    """The model with what its run needs beside it: prompts, and what decodes its samples.

    Raises:
      ConfigError: they do not fit, or are lacking.
    """
    require_fit(model.config.network, prompts)
    return decoded(dataclasses.replace(model, captions=prompts))


def decoded(model: Model) -> Model:
    """The model with what makes images of its samples.

    Raises:
      ConfigError: it is lacking, or of another network.
    """
    folder, network = model.config.autoencoder, model.config.network
    if not folder and network.image_channels not in (1, 3):
        raise ConfigError(
            f"samples are latents of {network.image_channels} channels: --config.autoencoder= the "
            "folder of diffusers' AutoencoderKL, for pictures."
        )
    decode = autoencoder.load_decoder(folder, network) if folder else autoencoder.as_they_are
    return dataclasses.replace(model, decode=decode)


def reading(model: Model, reader: encoders.Reader) -> Model:
    """The model with what reads its prompts.

    Raises:
      ConfigError: the encoder is another than the network was trained with.
    """
    width, expected = reader.encoder.sizes.width, model.config.network.caption_channels
    if width != expected:
        raise ConfigError(
            f"the text encoder has {width} channels, the network reads {expected}; give the "
            "encoder that it was trained with."
        )
    return dataclasses.replace(model, read=reader)


def reader_from(model: Model, encoder: str, tokenizer: str = "") -> encoders.Reader:
    """A T5 encoder's folder, for as many tokens as the network reads.

    Raises:
      ConfigError: the network reads none, or the encoder cannot be read.
    """
    if not isinstance(model.config.network, c.PixArt):
        raise ConfigError(
            f"{type(model.config.network).__name__} reads no captions; leave the encoder out."
        )
    length = model.config.network.caption_length or model.config.text.length
    return encoders.open_reader(encoder, tokenizer, length)


def require_fit(network: c.Network, prompts: Captions | None) -> None:
    """Refuses prompts that the network does not read, and a network that has none to read.

    Raises:
      ConfigError: with what would do.
    """
    if isinstance(network, c.PixArt) != (prompts is not None):
        raise ConfigError(
            f"{type(network).__name__} reads captions, but there are none: make a cache by "
            "python -m simjax.encode_prompts and set --config.text.cache=FOLDER."
            if prompts is None
            else f"text.cache or text.templates are set, but {type(network).__name__} reads no "
            "captions; leave them out."
        )
    if prompts is not None:
        found = prompts.cache.identity
        most = network.caption_length or found["length"]
        if found["channels"] != network.caption_channels or found["length"] > most:
            raise ConfigError(
                f"captions of up to {found['length']} tokens of {found['channels']} channels; the "
                f"network reads {most} of {network.caption_channels}. Encode them with the encoder "
                f"that the network was trained with, and --length={most}."
            )


def refuse_family(family: str, what: str) -> None:
    """Refuses a family where nothing is ported.

    Raises:
      ConfigError: naming what knows its network already.
    """
    if family:
        raise ConfigError(
            f"family = {family!r} is of published weights; {what} does not need it: leave it out."
        )


def plan(config: c.Config) -> c.Config:
    """The config as its teacher will complete it, as far as that is known without reading a file.

    Raises:
      ConfigError: the source is no known name, or one whose network only the file tells.
    """
    if not config.teacher.source:
        made = config.teacher
        return c.complete(config, config.network, made.precondition, made.sigma_data)
    entry = zoo.find(config.teacher.source)
    if entry.network is None:
        raise ConfigError(f"{config.teacher.source}: only the file itself tells its network.")
    return c.complete(config, entry.network, entry.precondition, entry.sigma_data)


def from_source(
    config: c.Config,
    source: str,
    stored: epath.Path,
    monitor: Monitor,
    *,
    family: str = "",
    sha256: str = "",
) -> Model:
    """The network of a known name, URL or file; ported once, then read from `stored`."""
    if not _is_stored(stored):
        _port(source, stored, monitor, family, sha256)
    return load(config, stored)


def ported(config: c.Config, source: str, say: Callable[[str], None]) -> Model:
    """The network of a known name, URL or file (of config.teacher.family), without a run."""
    found = port.port(source, family=config.teacher.family, say=say)
    config = c.complete(config, *found.description)
    return model_of(config, found.weights, found.provenance)


def starting_generator(
    config: c.Config, teacher: Model, workdir: epath.Path, monitor: Monitor
) -> Params:
    """What the generator starts as: generator.source's parameters, or the teacher's.

    Raises:
      ConfigError: the source is another network than the teacher.
    """
    source = config.generator.source
    if not source:
        return teacher.params
    stored, family = workdir / "generator_start", config.generator.family
    start = from_source(config, source, stored, monitor, family=family)
    differing = c.differences(c.describe(teacher.config.network), c.describe(start.config.network))
    if not differing and not _same_constants(teacher, start):
        differing = ["the fixed frequencies of the noise embedding"]
    if differing:
        raise ConfigError(
            f"generator.source = {source!r} is another network than the teacher "
            f"(teacher -> generator): {'; '.join(differing)}."
        )
    return start.params


def store(
    directory: epath.Path, weights: Params, description: Description, provenance: dict[str, Any]
) -> None:
    """Writes a network (numpy arrays) and all that is known of it; one process does it."""
    what = description._replace(network=c.describe(description.network))._asdict()
    note = provenance | {"description": what, "simjax": simjax.__version__}
    checkpoint.save_teacher(directory, weights, note)


def store_again(directory: epath.Path, model: Model, params: Params, found: dict[str, Any]) -> None:
    """Writes other parameters of a model's network, with what is known of them."""
    weights = with_constants(sharding.to_host(params), model.constants)
    note = {"description": model.provenance["description"], "simjax": simjax.__version__}
    save = functools.partial(checkpoint.save_teacher, directory, weights, note | found)
    processes.by_first(save, f"{directory} is stored")


def load(config: c.Config, directory: epath.Path) -> Model:
    """A stored network, and the config that it completes.

    Raises:
      ConfigError: it is damaged, or does not fit the config.
    """
    provenance = checkpoint.load_provenance(directory)
    what = dict(provenance["description"])
    config = c.complete(config, **what | {"network": c.network_from(what["network"])})
    like = sharding.abstract(build.weights_like(config), build.mesh(config))
    return model_of(config, checkpoint.load_teacher(directory, like), provenance)


def as_frozen(model: Model) -> Model:
    """The teacher as it is kept while it is distilled: its parameters in teacher.dtype."""
    where = sharding.by_rules(model.params, model.mesh)
    cast = jax.jit(functools.partial(setup.frozen, model.config), out_shardings=where)
    return dataclasses.replace(model, params=cast(model.params))


def model_of(config: c.Config, weights: Params, provenance: dict[str, Any]) -> Model:
    """The network that a completed config describes, with weights (numpy), on its mesh."""
    mesh = build.mesh(config)
    denoise, params = build.denoiser(config, weights)
    constants = constants_of(weights, params)
    return Model(config, mesh, denoise, sharding.place(params, mesh), constants, provenance)


def _is_stored(directory: epath.Path) -> bool:
    """What the first process sees."""
    return bool(processes.from_first(np.int32(checkpoint.is_stored(directory))))


def _port(source: str, stored: epath.Path, monitor: Monitor, family: str, sha256: str) -> None:
    def port_and_store() -> None:
        ported = port.port(source, family=family, sha256=sha256, say=monitor.say)
        monitor.say(port.report(ported))
        store(stored, ported.weights, ported.description, ported.provenance)

    processes.by_first(port_and_store, f"{stored} is stored")


def _train(
    config: c.Config,
    workdir: epath.Path,
    stored: epath.Path,
    monitor: Monitor,
    prompts: Captions | None,
) -> None:
    """Trains a teacher on config.data, and captions of its classes, and stores its EMA."""
    begun = time.monotonic()
    description = Description(
        config.network, config.teacher.precondition, config.teacher.sigma_data
    )
    config = c.complete(config, *description)
    module = build.module(config)
    denoise, start = as_denoise(module)
    mesh = build.mesh(config)
    training = setup.pretraining(config, denoise, mesh)
    dataset = setup.open_data(config)
    size = dataset.size * math.prod(dataset.shape)
    if size > LARGEST_DATA:
        raise ConfigError(
            f"{dataset.name} has {size / 1e9:.1f} GB of images, which would stay on every device; "
            f"at most {LARGEST_DATA / 1e9:.0f} GB train a teacher here. Use a published teacher."
        )
    labels = np.zeros(dataset.size, np.int32) if dataset.labels is None else dataset.labels
    checkpoints = checkpoint.Checkpoints(
        _training_directory(workdir), keep=1, say=monitor.say, limit=config.checkpoint_limit
    )
    of_classes = None if prompts is None else prompts.of_classes
    constants = sharding.place_whole((dataset.load(), labels, of_classes), mesh)
    state = loop.run(
        training,
        training.init(sharding.place(start, mesh)),
        lambda _: constants,
        key=build.key_on(config, "pretraining", mesh),
        stage="teacher",
        checkpoints=checkpoints,
        monitor=monitor,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
    )
    checkpoints.close()
    constants = constants_of(nnx.to_pure_dict(nnx.state(module)), start)
    weights = with_constants(sharding.to_host(state.ema), constants)
    provenance = {
        "source": f"trained on {dataset.name}, {config.teacher.steps} steps, EMA weights",
        "data_sha256": dataset.fingerprint(),
        "seed": config.seed,
        "seconds": time.monotonic() - begun,
    }
    save = functools.partial(store, stored, weights, description, provenance)
    processes.by_first(save, f"{stored} is stored")


def _training_directory(workdir: epath.Path) -> epath.Path:
    return workdir / "checkpoints_teacher"


def _same_constants(one: Model, other: Model) -> bool:
    return all(np.array_equal(leaf, other.constants[path]) for path, leaf in one.constants.items())
