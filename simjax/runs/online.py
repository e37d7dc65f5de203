"""Online evaluation: metric curves during training, and the best generator."""

import functools
from typing import Any

import numpy as np
from etils import epath

from simjax.errors import ConfigError
from simjax.evaluation.evaluator import HIGHER_IS_BETTER, Evaluator
from simjax.models import samplers, stored
from simjax.models.model import Model
from simjax.runs import report
from simjax.runtime import checkpoint, processes
from simjax.runtime.monitor import Monitor


class Online:
    """Evaluates the generator's EMA and stores the best one.

    Every evaluation uses the same noise, labels and compiled sampler.

    Args:
      model: the denoiser and the run's config.
      evaluator: metrics with their references; None without a reference.
      directory: run directory; best/STEP holds the best generator so far, with its metric.
      monitor: logs the metrics.
    """

    def __init__(
        self, model: Model, evaluator: Evaluator | None, directory: epath.Path, monitor: Monitor
    ):
        self._model, self._evaluator, self._monitor = model, evaluator, monitor
        self._config = model.config
        self._best = directory / "best"
        options = self._config.evaluation
        self._by = {
            "reference": options.reference or self._config.data.source,
            "limit": options.limit,
            "samples": options.online_samples,
        }
        if options.every and evaluator is None:
            raise ConfigError(
                f"evaluation.every = {options.every}, but there is no reference to compare with: "
                "set evaluation.reference or data.source, or evaluation.every=0."
            )
        classes = report.requested_classes(model, evaluator, options.online_samples)
        self._classes = classes if model.classes else None
        self._drawing = report.drawing(model, classes, seed=0)
        self._sampler = samplers.generated(model, {"generator": model.params})[0].function

    def measure(self, state: Any, step: int) -> None:
        """Evaluates the generator's EMA; stores it if it is the best."""
        batches = self._drawing.draw(self._sampler, state.ema)
        metrics, _ = self._evaluator.measure(batches, self._classes)
        self._monitor.measured(step, metrics)
        if name := self._config.evaluation.best:
            better = processes.is_first() and self._is_better(name, metrics)
            better = bool(processes.from_first(np.int32(better)))
            if better:
                value = metrics.get(name)  # only the first process has metrics
                found = {"step": step, "metric": name, "value": value, "by": self._by}
                stored.store_again(self._best / str(step), self._model, state.ema, found)
            remove = functools.partial(self._remove_others, step if better else None)
            processes.by_first(remove, "only the best is kept")

    def _is_better(self, name: str, metrics: dict[str, float]) -> bool:
        if name not in metrics:
            raise ConfigError(
                f"evaluation.best = {name!r} is not measured; known: {', '.join(metrics)}."
            )
        value = metrics[name]
        kept = checkpoint.steps_in(self._best)
        if not kept:
            return True
        best = checkpoint.load_provenance(self._best / str(kept[-1]))
        if (best["metric"], best.get("by", self._by)) != (name, self._by):
            return True  # the run was resumed with other evaluation settings: not comparable
        is_higher = name.rpartition("/")[2] in HIGHER_IS_BETTER
        return value > best["value"] if is_higher else value < best["value"]

    def _remove_others(self, best: int | None) -> None:
        """Deletes all but the best generator, including partial writes.

        Args:
          best: step of the best one; None for the latest one stored.
        """
        name = str(checkpoint.steps_in(self._best)[-1] if best is None else best)
        for path in self._best.iterdir():
            if path.name != name:
                path.rmtree()
