"""A run's networks: ported from a published checkpoint or trained here, stored once, loaded.

A run directory keeps what it started from (teacher/, and generator_start/ where the generator has
a source of its own), with its provenance, and never asks for the source again.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

import simjax
from simjax import build, checkpoint, sharding
from simjax import config as c
from simjax.monitor import Monitor
from simjax.networks.denoiser import as_denoise, with_params
from simjax.porting import port, zoo
from simjax.porting.maps.edm import Description
from simjax.train import loop
from simjax.typing import Denoise, Params

LARGEST_DATA = 4 * 10**9  # bytes; our choice


@dataclasses.dataclass(frozen=True)
class Model:
    """A denoiser with its parameters, and the run's config completed by what it is."""

    config: c.Config
    denoise: Denoise
    params: Params
    weights: Params  # params, and the network's fixed constants
    provenance: dict[str, Any]


def obtain(config: c.Config, workdir: epath.Path, monitor: Monitor) -> Model:
    """The run's teacher: stored, ported from teacher.source, or trained on config.data."""
    stored = workdir / "teacher"
    if config.teacher.source:
        return from_source(config, config.teacher.source, stored, monitor, config.teacher.sha256)
    if not stored.exists():
        _train(config, workdir, stored, monitor)
    _training_directory(workdir).rmtree(missing_ok=True)  # a kill may have left it behind
    return load(config, stored)


def plan(config: c.Config) -> c.Config:
    """The config as its teacher will complete it, as far as that is known without reading a file.

    Raises:
      ConfigError: the source is no known name, or one whose network only the file tells.
    """
    if not config.teacher.source:
        made = config.teacher
        return c.complete(config, config.network, made.precondition, made.sigma_data)
    network = zoo.find(config.teacher.source).network
    if network is None:
        raise c.ConfigError(f"{config.teacher.source}: only the file itself tells its network.")
    return c.complete(config, network, "edm", 0.5)  # what the EDM release's own networks are


def from_source(
    config: c.Config, source: str, stored: epath.Path, monitor: Monitor, sha256: str = ""
) -> Model:
    """The network of a known name, URL or file; ported once, then read from `stored`."""
    if not stored.exists():
        ported = port.port(source, sha256=sha256, say=monitor.say)
        monitor.say(port.report(ported))
        store(stored, ported.weights, ported.description, ported.provenance)
    return load(config, stored)


def ported(config: c.Config, source: str, say: Callable[[str], None]) -> Model:
    """The network of a known name, URL or file, without a run directory."""
    found = port.port(source, say=say)
    config = c.complete(config, *found.description)
    weights = jax.tree.map(jnp.asarray, found.weights)
    denoise, params = build.denoiser(config, weights)
    return Model(config, denoise, params, weights, found.provenance)


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
    start = from_source(config, source, workdir / "generator_start", monitor)
    differing = c.differences(c.describe(teacher.config.network), c.describe(start.config.network))
    if not differing and not _same_constants(teacher, start):
        differing = ["the fixed frequencies of the noise embedding"]
    if differing:
        raise c.ConfigError(
            f"generator.source = {source!r} is another network than the teacher "
            f"(teacher -> generator): {'; '.join(differing)}."
        )
    return start.params


def store(
    directory: epath.Path, weights: Params, description: Description, provenance: dict[str, Any]
) -> None:
    """Writes a network and all that is known of it."""
    what = description._replace(network=c.describe(description.network))._asdict()
    note = provenance | {"description": what, "simjax": simjax.__version__}
    checkpoint.save_teacher(directory, jax.tree.map(jnp.asarray, weights), note)


def store_again(directory: epath.Path, model: Model, params: Params, found: dict[str, Any]) -> None:
    """Writes other parameters of a model's network, with what is known of them."""
    weights = with_params(model.weights, params)
    note = {"description": model.provenance["description"], "simjax": simjax.__version__}
    checkpoint.save_teacher(directory, weights, note | found)


def load(config: c.Config, directory: epath.Path) -> Model:
    """A stored network, and the config that it completes.

    Raises:
      ConfigError: it is damaged, or does not fit the config.
    """
    provenance = checkpoint.load_provenance(directory)
    what = dict(provenance["description"])
    config = c.complete(config, **what | {"network": c.network_from(what["network"])})
    weights = checkpoint.load_teacher(directory, build.weights_like(config))
    denoise, params = build.denoiser(config, weights)
    return Model(config, denoise, params, weights, provenance)


def _train(config: c.Config, workdir: epath.Path, stored: epath.Path, monitor: Monitor) -> None:
    """Trains a teacher on config.data and stores its EMA."""
    begun = time.monotonic()
    description = Description(
        config.network, config.teacher.precondition, config.teacher.sigma_data
    )
    config = c.complete(config, *description)
    module = build.module(config)
    denoise, start = as_denoise(module)
    mesh = sharding.make_mesh()
    training = build.pretraining(config, denoise, mesh)
    dataset = build.open_data(config)
    size = dataset.size * math.prod(dataset.shape)
    if size > LARGEST_DATA:
        raise c.ConfigError(
            f"{dataset.name} has {size / 1e9:.1f} GB of images, which would stay on every device; "
            f"at most {LARGEST_DATA / 1e9:.0f} GB train a teacher here. Use a published teacher."
        )
    labels = np.zeros(dataset.size, np.int32) if dataset.labels is None else dataset.labels
    checkpoints = checkpoint.Checkpoints(_training_directory(workdir), keep=1, say=monitor.say)
    state = loop.run(
        training,
        training.init(start),
        jax.device_put((dataset.load(), labels), sharding.replicated(mesh)),
        key=build.key(config, "pretraining"),
        stage="teacher",
        checkpoints=checkpoints,
        monitor=monitor,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
    )
    checkpoints.close()
    weights = with_params(nnx.to_pure_dict(nnx.state(module)), state.ema)
    provenance = {
        "source": f"trained on {dataset.name}, {config.teacher.steps} steps, EMA weights",
        "data_sha256": dataset.fingerprint(),
        "seed": config.seed,
        "seconds": time.monotonic() - begun,
    }
    store(stored, weights, description, provenance)


def _training_directory(workdir: epath.Path) -> epath.Path:
    return workdir / "checkpoints_teacher"


def _same_constants(one: Model, other: Model) -> bool:
    def constants(model: Model) -> dict[str, Any]:
        trained = {jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(model.params)}
        every = ((jax.tree_util.keystr(p), x) for p, x in jax.tree.leaves_with_path(model.weights))
        return {path: leaf for path, leaf in every if path not in trained}

    return all(
        jnp.array_equal(leaf, constants(other)[path]) for path, leaf in constants(one).items()
    )
