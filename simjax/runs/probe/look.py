"""A teacher's samples, and its denoiser's curves and one-call pictures on them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from simjax.errors import ConfigError
from simjax.evaluation import calibration
from simjax.evaluation.calibration import Curves
from simjax.models import build, samplers
from simjax.models.model import Model
from simjax.runs import report
from simjax.runtime import sharding
from simjax.typing import Condition, Denoise, Float

SIGMA_INITS = (0.5, 1.0, 2.0)  # times the proposed one, of the pictures


class Look:
    """Samples, noise and conditions of a probe, for the model and for its corrections."""

    def __init__(self, model: Model, samples: int, levels: int, seed: int):
        if model.config.network.condition.reads_prompts and model.captions is None:
            raise ConfigError(
                "the probe of a text-to-image model needs captions: probe a run directory, which "
                "has its own."
            )
        self.batch = sharding.rounded_up(min(model.config.evaluation.batch, samples), model.mesh)
        self.count = -(-samples // self.batch) * self.batch
        classes = np.arange(self.count, dtype=np.int32) % max(model.classes, 1)
        self.cond = jax.tree.map(np.asarray, model.asked(classes))
        self.levels, self.seed = levels, seed

    def drawn(self, model: Model, steps: int) -> Float[np.ndarray, "n h w c"] | None:
        """Samples of the model's own sampler, data units; None if they are not finite."""
        sampler = samplers.many_steps(model, steps)
        drawing = report.drawing_of(
            dataclasses.replace(model, decode=lambda samples: samples),
            self.cond,
            self.count,
            self.seed,
        )
        try:
            return np.concatenate(list(drawing.images(sampler.function, sampler.params)))
        except ConfigError:
            return None

    def curves(self, model: Model, x0: Float[np.ndarray, "n h w c"]) -> Curves:
        """The model's curves on these samples."""
        denoise = _called(model)
        mean = x0.mean(0, keepdims=True)

        @jax.jit
        def program(params, x0, eps, sigma, cond):
            def at(xt, sigma, cond):
                return denoise(params, xt, sigma, cond)

            return calibration.statistics(at, x0, eps, sigma, cond, mean)

        sigmas = calibration.levels(float(x0.std()), self.levels)
        eps = calibration.matched_noise(x0, self.seed)
        found = []
        for sigma in sigmas:
            level = np.full(self.batch, sigma, np.float32)
            parts = [
                program(model.params, *self._placed(model, x0[rows], eps[rows], level, cond))
                for rows, cond in self._batches()
            ]
            parts = [sharding.to_host(part) for part in parts]
            found.append({name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
        sums = {name: np.stack([each[name] for each in found]) for name in found[0]}
        return calibration.curves(sigmas, sums, x0)

    def pictures(
        self, model: Model, x0: Float[np.ndarray, "n h w c"], sigma_init: float
    ) -> dict[str, Float[np.ndarray, "n h w c"]]:
        """Of the sampler, and of one call at the proposed sigma_init, half of it and twice it."""
        rows = slice(0, min(self.batch, 10))
        cond = jax.tree.map(lambda leaf: leaf[: self.batch], self.cond)
        eps = np.random.default_rng(self.seed).standard_normal((self.batch, *x0.shape[1:]))
        denoise = jax.jit(_called(model))
        found = {"teacher": model.decode(x0[rows])}
        for times in SIGMA_INITS:
            sigma = np.full(self.batch, times * sigma_init, np.float32)
            inputs = self._placed(model, np.float32(eps * times * sigma_init), sigma, cond)
            called = sharding.to_host(denoise(model.params, *inputs))
            found[f"sigma_init = {times * sigma_init:.3g}"] = model.decode(called[rows])
        return found

    def _batches(self) -> Iterator[tuple[slice, Condition]]:
        """Rows of all samples, and their conditions."""
        for start in range(0, self.count, self.batch):
            rows = slice(start, start + self.batch)
            yield rows, jax.tree.map(lambda leaf, rows=rows: leaf[rows], self.cond)

    @staticmethod
    def _placed(model: Model, *trees: Any) -> Any:
        where = sharding.batch_split(model.mesh)
        return jax.tree.map(lambda leaf: sharding.placed(leaf, where), trees)


def _called(model: Model) -> Denoise:
    """D as the model calls it: on its devices, with its guidance."""
    denoise = build.on_devices(model.denoise, model.mesh, model.config)
    return build.guided(model.config, denoise, model.config.teacher.guidance)
