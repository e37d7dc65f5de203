"""Metrics of images against references, in one or more feature spaces.

Metrics are named SPACE/METRIC: "inception/fid", "pixels/frechet", "classifier/frechet". One number
alone misleads (a Gaussian fitted to pixels scores well in Frechet distance), so precision and
recall are reported beside it, and the sample count in every row. Called from simjax/runs/report.py.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from simjax.evaluation import frechet, statistics
from simjax.evaluation.features import Extracted, Extractor
from simjax.evaluation.inception_score import score_of_logits
from simjax.evaluation.kernel_distance import kernel_distance
from simjax.evaluation.precision_recall import precision_recall
from simjax.evaluation.reference import Reference
from simjax.typing import Int

KERNEL_SEED = 0  # selects the subsets of KID; our choice, the same for every row
Pixels = UInt8[np.ndarray, "n h w c"]


@dataclasses.dataclass
class Row:
    """One line of a report.

    Attributes:
      evaluations: NFE; None for real images.
      seconds: wall time of sampling; None if unknown.
    """

    name: str
    evaluations: int | None
    samples: int
    seconds: float | None
    metrics: dict[str, float]


class Space(NamedTuple):
    """A feature space and the reference in it."""

    extractor: Extractor
    reference: Reference


class Sample(NamedTuple):
    """Features of all images in one space, with their statistics."""

    statistics: statistics.Statistics
    extracted: Extracted
    classes: Int[np.ndarray, "n"] | None  # classes that the images were conditioned on


Metric = Callable[[Space, Sample], dict[str, float]]


def distance_of_moments(space: Space, sample: Sample) -> dict[str, float]:
    """FID (Inception) or Frechet distance (other spaces); unbiased covariances."""
    name = "fid" if space.extractor.name == "inception" else "frechet"
    ours = statistics.moments(sample.statistics)
    reference = space.reference
    distance = frechet.frechet_distance(*ours, reference.mean, reference.covariance)
    return {name: distance}


def distance_of_kernels(space: Space, sample: Sample) -> dict[str, float]:
    """KID; empty if the reference has only moments, no features."""
    if space.reference.features is None:
        return {}
    ours, real = sample.extracted.features, space.reference.features
    return {"kid": kernel_distance(ours, real, seed=KERNEL_SEED)}


def coverage(space: Space, sample: Sample) -> dict[str, float]:
    """Improved precision and recall, k = 3; empty without reference features."""
    if space.reference.features is None:
        return {}
    precision, recall = precision_recall(space.reference.features, sample.extracted.features)
    return {"precision": precision, "recall": recall}


def scores(space: Space, sample: Sample) -> dict[str, float]:
    """Inception Score: mean and standard deviation over ten splits."""
    if space.extractor.name != "inception" or len(sample.extracted.features) < 10:
        return {}
    mean, deviation = score_of_logits(sample.extracted.logits)
    return {"inception_score": mean, "inception_score_std": deviation}


def agreement(space: Space, sample: Sample) -> dict[str, float]:
    """Fraction of samples classified as the class they were conditioned on."""
    if space.extractor.name != "classifier" or sample.classes is None:
        return {}
    read = sample.extracted.logits.argmax(1)
    return {"class_agreement": float(np.mean(read == sample.classes))}


METRICS: dict[str, Metric] = {
    "frechet": distance_of_moments,
    "kernel": distance_of_kernels,
    "precision_recall": coverage,
    "inception_score": scores,
    "class_agreement": agreement,
}


HIGHER_IS_BETTER = ("precision", "recall", "inception_score", "class_agreement")


class Evaluator:
    """Computes METRICS, selected by name, in every space."""

    def __init__(self, spaces: Sequence[Space], metrics: Sequence[str] = tuple(METRICS)):
        self.spaces = tuple(spaces)
        self.metrics = tuple(metrics)

    def measure(
        self, batches: Iterable[Pixels], classes: Int[np.ndarray, "n"] | None = None
    ) -> tuple[dict[str, float], int]:
        """Metrics by "SPACE/METRIC", and the number of images.

        Only features stay in memory, not the images.

        Args:
          classes: classes that the images were conditioned on, for class_agreement.

        Raises:
          ConfigError: fewer than two images, or features that are not finite.
        """
        taken: list[list[Extracted]] = [[] for _ in self.spaces]
        summed = [None] * len(self.spaces)
        count = 0
        for images in batches:
            count += len(images)
            for i, space in enumerate(self.spaces):
                extracted = space.extractor.extract(images)
                taken[i].append(extracted)
                before = summed[i] or statistics.empty(extracted.features.shape[1])
                summed[i] = statistics.add(before, extracted.features)
        metrics = {}
        for space, parts, total in zip(self.spaces, taken, summed, strict=True):
            sample = Sample(total, _joined(parts), None if classes is None else classes[:count])
            metrics |= self._measured(space, sample)
        return metrics, count

    def floors(self, seed: int) -> list[Row]:
        """Metrics of real images: half against half, and a bootstrap sample."""
        rows = []
        for space in self.spaces:
            real = space.reference.features
            if real is None:
                continue
            rng = np.random.default_rng(seed)
            first, second = np.array_split(rng.permutation(len(real)), 2)
            again = rng.integers(len(real), size=len(real))
            half = dataclasses.replace(space.reference, **_moments_of(real[first]))
            for name, rest, reference in (
                ("real: half against half", second, half),
                ("real: drawn with replacement", again, space.reference),
            ):
                rows.append(self._floor(name, space._replace(reference=reference), real[rest]))
        return _merged(rows)

    def protocol(self) -> dict[str, Any]:
        """Everything that the metrics depend on, by space; for JSON."""
        return {
            space.extractor.name: {
                "distance": space.extractor.frechet,
                "extractor": space.extractor.protocol,
                "reference": {
                    "name": space.reference.name,
                    "images": space.reference.count,
                    "sha256": space.reference.sha256,
                    "protocol": space.reference.protocol,
                },
            }
            for space in self.spaces
        }

    def _floor(self, name: str, space: Space, rows: np.ndarray) -> Row:
        total = statistics.add(statistics.empty(rows.shape[1]), rows)
        sample = Sample(total, Extracted(rows, None), None)
        only = Evaluator([space], [m for m in self.metrics if m not in ("inception_score",)])
        return Row(name, None, len(rows), None, only._measured(space, sample))

    def _measured(self, space: Space, sample: Sample) -> dict[str, float]:
        found = {}
        for name in self.metrics:
            found |= METRICS[name](space, sample)
        return {f"{space.extractor.name}/{name}": value for name, value in found.items()}


def table(rows: Sequence[Row]) -> str:
    """Text tables of the rows, one table per feature space.

    >>> row = Row("generator", 1, 1000, 2.0, {"pixels/frechet": 0.25})
    >>> [line.split() for line in table([row]).splitlines()]
    [['pixels', 'NFE', 'samples', 'frechet', 'samples/s'],
     ['generator', '1', '1000', '0.250', '500']]
    """
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    spaces = list(dict.fromkeys(name.partition("/")[0] for name in names)) or [""]
    return "\n\n".join(
        _one_table(space, rows, [name for name in names if name.partition("/")[0] == space])
        for space in spaces
    )


def _one_table(space: str, rows: Sequence[Row], names: Sequence[str]) -> str:
    columns = [name.partition("/")[2] for name in names]
    lines = [[space, "NFE", "samples", *columns, "samples/s"]]
    for row in rows:
        numbers = (f"{row.metrics[name]:.3f}" if name in row.metrics else "-" for name in names)
        evaluations = "-" if row.evaluations is None else str(row.evaluations)
        speed = f"{row.samples / row.seconds:.3g}" if row.seconds else "-"
        lines.append([row.name, evaluations, str(row.samples), *numbers, speed])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])])
        for name, *numbers in lines
    )


def _joined(parts: list[Extracted]) -> Extracted:
    logits = None
    if parts[0].logits is not None:
        logits = np.concatenate([part.logits for part in parts])
    return Extracted(np.concatenate([part.features for part in parts]), logits)


def _moments_of(features: np.ndarray) -> dict[str, Any]:
    total = statistics.add(statistics.empty(features.shape[1]), features)
    mean, covariance = statistics.moments(total)
    return {"mean": mean, "covariance": covariance, "features": features, "count": len(features)}


def _merged(rows: list[Row]) -> list[Row]:
    """Merges rows of the same name, which hold metrics of different spaces."""
    merged: dict[str, Row] = {}
    for row in rows:
        if row.name in merged:
            merged[row.name].metrics |= row.metrics
        else:
            merged[row.name] = row
    return list(merged.values())
