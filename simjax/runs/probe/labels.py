"""Checks a conditional network's class labels.

Permuted classes cannot be detected from the network's own samples, because sampler and denoiser
share the permutation; they are compared with real images if the config names a data set.
"""

import numpy as np

from simjax import data
from simjax.errors import ConfigError
from simjax.evaluation import calibration
from simjax.models.model import Model
from simjax.runs import setup
from simjax.runs.probe.look import Look
from simjax.typing import Float

MOST = 64  # maximum number of classes to check; our choice
EXAMPLES = 8  # noisy images per class; our choice
ALIKE = 1e-3  # classes are identical below this share of the largest difference; our choice


def fault(look: Look, model: Model, x0: Float[np.ndarray, "n h w c"], sigma: float) -> str:
    """Describes a fault of the class labels; "" if none is found.

    Args:
      x0: samples of the model.
      sigma: noise level at which D is compared; most sensitive at half of the error's rise.
    """
    if model.captions is not None or not 1 < model.classes <= MOST:
        return ""
    return _alike(look, model, x0, sigma) or _renamed(look, model, sigma)


def _alike(look: Look, model: Model, x0: Float[np.ndarray, "n h w c"], sigma: float) -> str:
    """Finds classes for which D is identical."""
    answers = _of_every_class(look, model, x0[:EXAMPLES], sigma)
    flat = answers.reshape(model.classes, -1).astype(np.float64)
    flat -= flat.mean(0)
    squares = np.sum(flat**2, 1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * flat @ flat.T, 0))
    most = distance.max()
    if most <= ALIKE * np.sqrt(np.sum(answers**2)):
        return f"D is identical for all {model.classes} classes: the network ignores the class."
    alike = np.triu(distance <= ALIKE * most, 1)
    if not alike.any():
        return ""
    first, second = np.argwhere(alike)[0]
    return (
        f"D is identical for classes {first} and {second}; {alike.any(0).sum()} of "
        f"{model.classes} classes duplicate another: the network was trained with fewer classes."
    )


def _renamed(look: Look, model: Model, sigma: float) -> str:
    """Finds classes of config.data whose images match another class better."""
    if not model.config.data.source:
        return ""
    try:
        dataset = setup.open_data(model.config)
    except ConfigError:  # data set not found, or its images do not match the network
        return ""
    if dataset.labels is None:
        return ""
    best = {}
    for number in range(model.classes):
        rows = np.flatnonzero(dataset.labels == number)[:EXAMPLES]
        if not len(rows):
            continue
        images = data.to_unit(dataset.read(rows))
        answers = _of_every_class(look, model, np.asarray(images), sigma)
        best[number] = int(np.argmin(np.mean((answers - images) ** 2, axis=(1, 2, 3, 4))))
    moved = {number: found for number, found in best.items() if number != found}
    if 2 * len(moved) <= len(best):
        return ""
    number, found = next(iter(moved.items()))
    return (
        f"images of class {number} of {dataset.name} match the network's class {found} best, and "
        f"{len(moved)} of {len(best)} classes match another: the classes have another order."
    )


def _of_every_class(
    look: Look, model: Model, x0: Float[np.ndarray, "n h w c"], sigma: float
) -> Float[np.ndarray, "classes n h w c"]:
    """D of the same noisy images, conditioned on each class."""
    xt = x0 + sigma * calibration.matched_noise(x0, look.seed)
    every = np.repeat(np.arange(model.classes, dtype=np.int32), len(x0))
    answers = look.denoised(
        model, np.tile(xt, (model.classes, 1, 1, 1)), sigma, np.asarray(model.conditions(every))
    )
    return answers.reshape(model.classes, *x0.shape)
