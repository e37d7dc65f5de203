"""Run directories in simjax.main's layout with random networks, without training."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from simjax import config
from simjax.config import Description
from simjax.models import build, stored
from simjax.models.model import Model
from simjax.runtime import checkpoint, storage
from simjax.text import captions
from simjax.train.state import Role, TrainState


def random_weights(options: config.Config, seed: int) -> dict:
    draw = np.random.default_rng(seed)
    like = build.weights_like(options)
    return jax.tree.map(lambda leaf: 0.3 * draw.standard_normal(leaf.shape, np.float32), like)


def make_run(folder: Path, options: config.Config, network: config.Network) -> tuple[Model, Any]:
    """Writes a run directory as after step 7; returns its model and its generator."""
    options.network = network
    options.evaluation.teacher_steps = (2,)
    options.evaluation.batch = 4
    folder.mkdir()
    storage.write_json(folder / "config.json", config.to_dict(options))
    captions.prepare(options.text, epath.Path(folder))
    options = config.complete(options, network, "edm", 0.5)
    description = Description(network, "edm", 0.5)
    stored.store(folder / "teacher", random_weights(options, 0), description, {"source": "made"})
    model = stored.load(options, folder / "teacher")
    saving = checkpoint.Checkpoints(folder / "checkpoints", keep=2, say=print)
    for step in (3, 7):
        generator = build.denoiser(options, random_weights(options, step))[1]
        other = {"kernel": jnp.zeros(1)}  # placeholder for unread trees
        roles = dict.fromkeys(("fake_score", "generator"), Role(other, other))
        saving.save(TrainState(jnp.int32(step), roles, generator))
    saving.close()
    return model, generator


def keep_best(folder: Path, model: Model, step: int) -> Any:
    """Stores a random generator like evaluation.best; returns its parameters."""
    params = build.denoiser(model.config, random_weights(model.config, step))[1]
    found = {"step": step, "metric": "pixels/recall", "value": 0.5}
    stored.store_again(epath.Path(folder) / "best" / str(step), model, params, found)
    return params
