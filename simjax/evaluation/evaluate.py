"""The report of a run: teacher and generator measured the same way, beside floors from real data.

On the digits the feature space is the pixels themselves, and no number here is an FID. A Gaussian
fitted to the pixels would score well in Frechet distance alone, so precision, recall and class
agreement always stand beside it, and every row has its sample count.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from simjax.evaluation import frechet, precision_recall
from simjax.evaluation.class_agreement import Classifier
from simjax.typing import Array, Float, Images, Int, Key, Labels, Params

PROTOCOL = (
    "Features: pixels in [-1, 1], clipped. Frechet distance with unbiased covariances, against all "
    "real images unless said otherwise. Precision and recall with k = 3. Class: agreement of a "
    "support vector machine, fitted on half of the real images, with the label asked for"
)


@dataclasses.dataclass
class Row:
    """One line of the report; evaluations is network calls per sample, None for real data."""

    name: str
    evaluations: int | None
    samples: int
    frechet: float
    precision: float
    recall: float
    class_agreement: float
    seconds: float


class Judge:
    """Measures images against the real ones."""

    def __init__(self, images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, "n"]):
        self.real = _pixels(images)
        self.labels = labels
        self._moments = frechet.moments(self.real)
        self.classifier = Classifier(self.real, labels)

    def measure(
        self,
        name: str,
        images: Float[np.ndarray, "m h w c"],
        labels: Int[np.ndarray, "m"],
        *,
        evaluations: int | None,
        seconds: float = 0.0,
    ) -> Row:
        """A row for images that were asked to be `labels`."""
        pixels = _pixels(images)
        return self._row(name, self.real, pixels, labels, evaluations, seconds)

    def floors(self, seed: int) -> list[Row]:
        """What real data scores: one half against the other, and a bootstrap of the whole."""
        rng = np.random.default_rng(seed)
        first, second = np.array_split(rng.permutation(len(self.real)), 2)
        again = rng.integers(len(self.real), size=len(self.real))
        halves = (self.real[first], self.real[second], self.labels[second])
        bootstrap = (self.real, self.real[again], self.labels[again])
        return [
            self._row("real: half against half", *halves, None, 0.0),
            self._row("real: drawn with replacement", *bootstrap, None, 0.0),
        ]

    def _row(self, name, real, pixels, labels, evaluations, seconds) -> Row:
        precision, recall = precision_recall.precision_recall(real, pixels)
        return Row(
            name=name,
            evaluations=evaluations,
            samples=len(pixels),
            frechet=frechet.frechet_distance(*frechet.moments(pixels), *frechet.moments(real)),
            precision=precision,
            recall=recall,
            class_agreement=self.classifier.agreement(pixels, labels),
            seconds=seconds,
        )


def draw_samples(
    sampler: Callable[[Params, Array, Labels], Images],
    params: Params,
    key: Key,
    labels: Labels,
    shape: tuple[int, int, int],
    batch: int,
) -> tuple[Float[np.ndarray, "n h w c"], float]:
    """len(labels) samples, whose z depends on (key, index) alone, and the seconds they took.

    Compilation is not counted.
    """
    draw_z = jax.jit(jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape)))
    count = len(labels)
    index = np.arange(-(-count // batch) * batch) % count  # whole batches: one compiled shape
    parts = index.reshape(-1, batch)
    compiled = jax.jit(sampler).lower(params, draw_z(parts[0]), labels[parts[0]]).compile()
    start = time.monotonic()
    images = [np.asarray(compiled(params, draw_z(part), labels[part])) for part in parts]
    return np.concatenate(images)[:count], time.monotonic() - start


def table(rows: list[Row]) -> str:
    """The rows for a person to read."""
    head = ["", "evaluations", "samples", "Frechet", "precision", "recall", "class", "samples/s"]
    body = [
        [
            row.name,
            "-" if row.evaluations is None else str(row.evaluations),
            str(row.samples),
            f"{row.frechet:.3f}",
            f"{row.precision:.3f}",
            f"{row.recall:.3f}",
            f"{row.class_agreement:.3f}",
            f"{row.samples / row.seconds:.0f}" if row.seconds else "-",
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

    def padded(line: list[str]) -> str:
        name, *numbers = line
        cells = (x.rjust(w) for x, w in zip(numbers, widths[1:], strict=True))
        return "  ".join([name.ljust(widths[0]), *cells])

    return "\n".join(padded(line) for line in [head, *body])


def _pixels(images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n d"]:
    return np.clip(np.asarray(images), -1, 1).reshape(len(images), -1)
