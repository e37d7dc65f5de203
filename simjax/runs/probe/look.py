"""Samples, calibration curves and one-step samples of a teacher."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simjax import config as c
from simjax.diffusion.families import FAMILIES
from simjax.errors import ConfigError
from simjax.evaluation import calibration
from simjax.evaluation.calibration import Curves
from simjax.models import build, samplers
from simjax.models.model import Model
from simjax.runs import report
from simjax.runtime import sharding
from simjax.typing import Condition, Denoise, Float, Images, PerExample

SIGMA_INITS = (0.5, 1.0, 2.0)  # multiples of the proposed sigma_init that are drawn
PICTURES = 10  # images per row of the figure


def conditions(model: Model, count: int, prompts: Sequence[str] = ()) -> Condition:
    """Conditions of `count` samples: prompts, the run's captions, or classes.

    Raises:
      ConfigError: a text-to-image model without captions, or prompts without an encoder.
    """
    if prompts:
        if model.read is None:
            name = type(model.config.network).__name__
            raise ConfigError(f"{name} reads no prompts; leave them out, or pass the encoder.")
        cond = model.read(prompts)
        rows = np.arange(count) % len(prompts)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], cond)
    if model.config.network.condition.reads_prompts and model.captions is None:
        raise ConfigError(
            "the probe of a text-to-image model needs captions: pass prompts and their encoder, "
            "or probe a run directory, which contains its captions."
        )
    classes = np.arange(count, dtype=np.int32) % max(model.classes, 1)
    return jax.tree.map(np.asarray, model.conditions(classes))


class Look:
    """Samples and curves of a model and its corrections, from fixed noise.

    Compiled programs are cached per denoiser; calls that differ only in parameters share them.

    Args:
      model: the teacher.
      cond: conditions of all samples, numpy.
      levels: number of noise levels in the curves.
    """

    def __init__(self, model: Model, cond: Condition, levels: int, seed: int):
        given = len(jax.tree.leaves(cond)[0])
        self.batch = sharding.rounded_up(min(model.config.evaluation.batch, given), model.mesh)
        self.count = -(-given // self.batch) * self.batch
        self.rows = np.arange(self.count) % given
        self.cond = jax.tree.map(lambda leaf: leaf[self.rows], cond)
        self.levels, self.seed = levels, seed
        plain = dataclasses.replace(model, decode=lambda samples: samples)
        self._drawing = report.drawing_of(plain, self.cond, self.count, seed)
        self._made: dict[tuple[Any, ...], Any] = {}

    def drawn(
        self, model: Model, steps: int, *, first: bool = False
    ) -> Float[np.ndarray, "n h w c"] | None:
        """Samples of the model's own sampler, data units; None if not finite.

        Args:
          first: draw only the first batch.
        """
        sampler = self._kept(model, steps, lambda: samplers.many_steps(model, steps))
        batches = self._drawing.images(sampler.function, model.params)
        try:
            return next(batches) if first else np.concatenate(list(batches))
        except ConfigError:
            return None

    def curves(
        self, model: Model, x0: Float[np.ndarray, "n h w c"], *, trace: bool = True
    ) -> Curves:
        """The model's curves on samples x0, all of them or one batch."""
        program = self._program(model, trace)
        mean = x0.mean(0, keepdims=True)
        sigmas = calibration.levels(float(x0.std()), self.levels)
        eps = calibration.matched_noise(x0, self.seed)
        found = []
        for sigma in sigmas:
            level = np.full(self.batch, sigma, np.float32)
            parts = [
                program(model.params, mean, *_placed(model, x0[rows], eps[rows], level, cond))
                for rows, cond in self._batches(len(x0))
            ]
            parts = [sharding.to_host(part) for part in parts]
            found.append({name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
        sums = {name: np.stack([each[name] for each in found]) for name in found[0]}
        return calibration.curves(sigmas, sums, x0, predicts_noise=_predicts_noise(model.config))

    def denoised(
        self, model: Model, xt: Float[np.ndarray, "n h w c"], sigma: float, cond: Condition
    ) -> Float[np.ndarray, "n h w c"]:
        """D of any number of examples at one noise level, data units."""
        denoise = self._kept(model, "denoised", lambda: jax.jit(called(model)))
        level = np.full(self.batch, sigma, np.float32)
        found = []
        for start in range(0, len(xt), self.batch):
            rows = np.arange(start, start + self.batch) % len(xt)
            some, of_some = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (xt, cond))
            inputs = _placed(model, some.astype(np.float32), level, of_some)
            found.append(sharding.to_host(denoise(model.params, *inputs)))
        return np.concatenate(found)[: len(xt)]

    def pictures(
        self, model: Model, x0: Float[np.ndarray, "n h w c"], sigma_init: float
    ) -> dict[str, Float[np.ndarray, "n h w c"]]:
        """Images by name: the teacher's samples, and one-step samples per sigma_init.

        One step is drawn at the proposed sigma_init, half of it and twice it.
        """
        count = min(self.count, PICTURES)
        cond = jax.tree.map(lambda leaf: leaf[:count], self.cond)
        z = np.random.default_rng(self.seed).standard_normal((count, *x0.shape[1:]))
        found = {"teacher": model.decode(x0[:count])}
        for sigma in (times * sigma_init for times in SIGMA_INITS):
            images = self.denoised(model, sigma * z, sigma, cond)
            found[f"sigma_init = {sigma:.3g}"] = model.decode(images)
        return found

    def _program(self, model: Model, trace: bool) -> Callable:
        """Compiled `calibration.statistics` of the model."""

        def program(params, mean, x0, eps, sigma, cond):
            def at(xt: Images, sigma: PerExample, cond: Condition) -> Images:
                return called(model)(params, xt, sigma, cond)

            return calibration.statistics(at, x0, eps, sigma, cond, mean, trace=trace)

        return self._kept(model, ("curves", trace), lambda: jax.jit(program))

    def _kept(self, model: Model, what: Any, make: Callable[[], Any]) -> Any:
        """Caches the result of `make` per denoiser, guidance and `what`."""
        key = model.denoise, model.config.teacher.guidance, what
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _batches(self, count: int) -> Iterator[tuple[slice, Condition]]:
        """Slices of `count` samples by batch, with their conditions."""
        for start in range(0, count, self.batch):
            rows = slice(start, start + self.batch)
            yield rows, jax.tree.map(lambda leaf, rows=rows: leaf[rows], self.cond)


def called(model: Model) -> Denoise:
    """D with the model's sharding and guidance."""
    denoise = build.on_devices(model.denoise, model.mesh, model.config)
    return build.guided(model.config, denoise, model.config.teacher.guidance)


def _predicts_noise(config: c.Config) -> bool:
    """Whether D's error grows with sigma, as with eps prediction."""
    family = FAMILIES[config.teacher.precondition].precondition(config.teacher.sigma_data)
    high = 1e3 * config.teacher.sigma_data
    return bool(abs(family(jnp.full(1, high)).c_out[0]) > 0.1 * high)


def _placed(model: Model, *trees: Any) -> Any:
    where = sharding.batch_split(model.mesh)
    return jax.tree.map(lambda leaf: sharding.placed(leaf, where), trees)
