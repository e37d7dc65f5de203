"""A run's initial networks: ported checkpoints, or a teacher trained here.

They are stored in the run directory with their provenance (teacher/, and generator_start/ if
generator.source is set); the source is read only once. The first process ports; then every process
reads the stored copy, each device its own shard.
"""

import dataclasses
import functools
import math
import time

import jax
import numpy as np
from etils import epath

from simjax import config as c
from simjax.errors import ConfigError
from simjax.models import build, port, stored
from simjax.models.model import Model, require_fit
from simjax.networks.network import Description
from simjax.runs import setup
from simjax.runtime import checkpoint, processes, sharding
from simjax.runtime.monitor import Monitor
from simjax.text import captions
from simjax.text.captions import Captions
from simjax.train import loop
from simjax.typing import Params

LARGEST_DATA = 4 * 10**9  # of images to train a teacher on, bytes; our choice


def obtain(config: c.Config, workdir: epath.Path, monitor: Monitor) -> Model:
    """The run's teacher: loaded, ported from teacher.source, or trained on config.data.

    Raises:
      ConfigError: porting or training is not possible, or captions are missing.
    """
    directory, prompts = workdir / "teacher", captions.prepare(config.text, workdir)
    if config.teacher.source:
        known = {"family": config.teacher.family, "sha256": config.teacher.sha256}
        _port_once(config.teacher.source, directory, monitor, **known)
    else:
        require_fit(config.network, prompts)
        if not _is_stored(directory):
            _train(config, workdir, directory, monitor, prompts)
        if processes.is_first():
            _training_directory(workdir).rmtree(missing_ok=True)  # left over if the run was killed
    require_fit(stored.described(config, directory)[0].network, prompts)
    return stored.load(config, directory, captions=prompts, pictures=True)


def starting_generator(
    config: c.Config, teacher: Model, workdir: epath.Path, monitor: Monitor
) -> Params:
    """Initial generator parameters: those of generator.source, or the teacher's.

    Raises:
      ConfigError: the source's network differs from the teacher's.
    """
    source = config.generator.source
    if not source:
        return teacher.params
    directory = workdir / "generator_start"
    _port_once(source, directory, monitor, family=config.generator.family)
    start = stored.load(config, directory)
    differing = c.differences(c.describe(teacher.config.network), c.describe(start.config.network))
    if not differing and not _same_constants(teacher, start):
        differing = ["the fixed frequencies of the noise embedding"]
    if differing:
        raise ConfigError(
            f"generator.source = {source!r} must be the same network as the teacher; differences "
            f"(teacher -> generator): {'; '.join(differing)}."
        )
    return start.params


def as_frozen(model: Model) -> Model:
    """The frozen teacher for distillation, with parameters in teacher.dtype."""
    where = sharding.by_rules(model.params, model.mesh)
    cast = jax.jit(functools.partial(setup.frozen, model.config), out_shardings=where)
    return dataclasses.replace(model, params=cast(model.params))


def _is_stored(directory: epath.Path) -> bool:
    """Whether the network is stored, as seen by the first process."""
    return bool(processes.from_first(np.int32(checkpoint.is_stored(directory))))


def _port_once(
    source: str, directory: epath.Path, monitor: Monitor, *, family: str = "", sha256: str = ""
) -> None:
    """Ports a known name, URL or file, unless already stored."""

    def port_and_store() -> None:
        ported = port.port(source, family=family, sha256=sha256, say=monitor.say)
        monitor.say(port.report(ported))
        stored.store(directory, ported.weights, ported.description, ported.provenance)

    if not _is_stored(directory):
        processes.by_first(port_and_store, f"{directory} is stored")


def _train(
    config: c.Config,
    workdir: epath.Path,
    directory: epath.Path,
    monitor: Monitor,
    prompts: Captions | None,
) -> None:
    """Trains a teacher on config.data and stores its EMA."""
    begun = time.monotonic()
    description = Description(
        config.network, config.teacher.precondition, config.teacher.sigma_data
    )
    config = c.complete(config, *description)
    denoise, start, fixed = build.fresh(config)
    mesh = build.mesh(config)
    training = setup.pretraining(config, denoise, mesh)
    dataset = setup.open_data(config)
    size = dataset.size * math.prod(dataset.shape)
    if size > LARGEST_DATA:
        raise ConfigError(
            f"{dataset.name} has {size / 1e9:.1f} GB of images, which would be replicated on "
            f"every device; a teacher is trained on at most {LARGEST_DATA / 1e9:.0f} GB. Use a "
            "published teacher."
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
    weights = build.weights_of(state.ema, fixed)
    provenance = {
        "source": f"trained on {dataset.name}, {config.teacher.steps} steps, EMA weights",
        "data_sha256": dataset.fingerprint(),
        "seed": config.seed,
        "seconds": time.monotonic() - begun,
    }
    save = functools.partial(stored.store, directory, weights, description, provenance)
    processes.by_first(save, f"{directory} is stored")


def _training_directory(workdir: epath.Path) -> epath.Path:
    return workdir / "checkpoints_teacher"


def _same_constants(one: Model, other: Model) -> bool:
    return all(np.array_equal(leaf, other.constants[path]) for path, leaf in one.constants.items())
