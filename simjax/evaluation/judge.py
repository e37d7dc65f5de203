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

NO_DATA = "No data.source, so nothing to compare with: only the speed was measured."


@dataclasses.dataclass
class Row:
    """One line of the report; None where something does not apply or was not measured.

    evaluations is network calls per sample.
    """

    name: str
    evaluations: int | None
    samples: int
    seconds: float
    frechet: float | None = None
    precision: float | None = None
    recall: float | None = None
    class_agreement: float | None = None


class Judge:
    """Measures images against the real ones; labels None leaves class agreement out."""

    def __init__(
        self, images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, "n"] | None = None
    ):
        self.real = _pixels(images)
        self.labels = labels
        self.classifier = None if labels is None else Classifier(self.real, labels)

    @property
    def protocol(self) -> str:
        """What the numbers are."""
        text = (
            "Features: pixels in [-1, 1], clipped. Frechet distance with unbiased covariances, "
            f"against {len(self.real)} real images unless said otherwise. Precision and recall "
            "with k = 3."
        )
        if self.classifier is None:
            return text
        return (
            f"{text} Class: agreement of a support vector machine, fitted on half of the real "
            "images, with the label asked for; its accuracy on the other half: "
            f"{self.classifier.held_out_accuracy:.3f}."
        )

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
        labels = np.zeros(len(self.real), int) if self.labels is None else self.labels
        halves = (self.real[first], self.real[second], labels[second])
        bootstrap = (self.real, self.real[again], labels[again])
        return [
            self._row("real: half against half", *halves, None, 0.0),
            self._row("real: drawn with replacement", *bootstrap, None, 0.0),
        ]

    def _row(self, name, real, pixels, labels, evaluations, seconds) -> Row:
        precision, recall = precision_recall.precision_recall(real, pixels)
        agreement = None if self.classifier is None else self.classifier.agreement(pixels, labels)
        return Row(
            name=name,
            evaluations=evaluations,
            samples=len(pixels),
            seconds=seconds,
            frechet=frechet.frechet_distance(*frechet.moments(pixels), *frechet.moments(real)),
            precision=precision,
            recall=recall,
            class_agreement=agreement,
        )


class Drawing:
    """Draws from one sampler after another with the same noise and labels; compiles each once.

    Args:
      key: noise of sample i depends on (key, i) alone.
      labels: of every sample.
      shape: of one image.
      batch: samples at a time.
    """

    def __init__(self, key: Key, labels: Labels, shape: tuple[int, int, int], batch: int):
        self.labels = labels
        self.batch = batch
        self._programs: dict[Callable, Callable] = {}

        @jax.jit
        def noise(index: Array) -> tuple[Images, Array]:
            keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
            return jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 0]), keys[:, 1]

        self._noise = noise

    def draw(
        self, sampler: Callable[[Params, Array, Labels, Array], Images], params: Params
    ) -> tuple[Float[np.ndarray, "n h w c"], float]:
        """Samples of (params, z, labels, keys), and the seconds they took without compilation."""
        count = len(self.labels)
        index = np.arange(-(-count // self.batch) * self.batch) % count  # one compiled shape
        parts = index.reshape(-1, self.batch)
        if sampler not in self._programs:
            lowered = jax.jit(sampler).lower(params, *self._inputs(parts[0]))
            self._programs[sampler] = lowered.compile()
        program = self._programs[sampler]
        start = time.monotonic()
        images = [np.asarray(program(params, *self._inputs(part))) for part in parts]
        return np.concatenate(images)[:count], time.monotonic() - start

    def _inputs(self, part: np.ndarray) -> tuple[Images, Labels, Array]:
        z, noise_keys = self._noise(part)
        return z, self.labels[part], noise_keys


def table(rows: list[Row]) -> str:
    """The rows for a person to read."""
    head = ["", "evaluations", "samples", "Frechet", "precision", "recall", "class", "samples/s"]
    body = [
        [
            row.name,
            "-" if row.evaluations is None else str(row.evaluations),
            str(row.samples),
            *(
                "-" if value is None else f"{value:.3f}"
                for value in (row.frechet, row.precision, row.recall, row.class_agreement)
            ),
            f"{row.samples / row.seconds:.3g}" if row.seconds else "-",
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
