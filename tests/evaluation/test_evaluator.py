"""Values and names of the metrics of an Evaluator, by feature space."""

import numpy as np
import pytest

from simjax import data
from simjax.evaluation import features, frechet, reference
from simjax.evaluation.evaluator import METRICS, Evaluator, Row, Space, table
from simjax.runtime.monitor import to_uint8


def space_of(name: str, rows: np.ndarray, *, logits=None, keep=True) -> Space:
    """A space whose features are the raw pixels and whose reference is `rows`."""

    def extract(images):
        flat = images.reshape(len(images), -1).astype(np.float32)
        return features.Extracted(flat, None if logits is None else logits(flat))

    extractor = features.Extractor(name, "a distance", {"features": "numbers"}, extract)
    mean, covariance = frechet.moments(rows.astype(np.float32))
    kept = rows.astype(np.float32) if keep else None
    real = reference.Reference("rows", len(rows), mean, covariance, kept, None, {}, "0" * 64)
    return Space(extractor, real)


def images(count: int, shift: int = 0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(50, 150, (count, 2, 2, 1)).astype(np.uint8) + np.uint8(shift)


def flat(pictures: np.ndarray) -> np.ndarray:
    return pictures.reshape(len(pictures), -1)


def test_a_shift_changes_only_the_mean():
    space = space_of("pixels", flat(images(40)))
    parts = np.array_split(images(40, shift=3), 3)
    metrics, count = Evaluator([space], ["frechet"]).measure(parts)
    assert count == 40
    assert metrics == {"pixels/frechet": pytest.approx(4 * 3**2, rel=1e-5)}


def test_only_inceptions_distance_is_called_fid():
    names = set()
    for space in ("inception", "pixels", "classifier"):
        evaluator = Evaluator([space_of(space, flat(images(40)))], ["frechet"])
        names |= set(evaluator.measure([images(40)])[0])
    assert names == {"inception/fid", "pixels/frechet", "classifier/frechet"}


def test_a_reference_of_statistics_gives_only_frechet_distances():
    space = space_of("pixels", flat(images(40)), keep=False)
    evaluator = Evaluator([space], tuple(METRICS))
    assert set(evaluator.measure([images(40)])[0]) == {"pixels/frechet"}
    assert evaluator.floors(seed=0) == []


def test_equal_sets_have_full_precision_and_recall():
    evaluator = Evaluator([space_of("pixels", flat(images(40)))], ["precision_recall", "kernel"])
    metrics, _ = evaluator.measure([images(40)])
    assert metrics["pixels/precision"] == metrics["pixels/recall"] == 1.0
    assert metrics["pixels/kid"] < 0  # unbiased: equal sets are closer than two independent draws


def test_agreement_is_with_the_class_conditioned_on():
    def read(rows):  # class 1 where the first number is above 100
        return np.stack([100 - rows[:, 0], rows[:, 0] - 100], axis=1)

    space = space_of("classifier", flat(images(40)), logits=read)
    pictures = images(40)
    right = (pictures[:, 0, 0, 0] > 100).astype(np.int32)
    evaluator = Evaluator([space], ["class_agreement"])
    wrong = np.where(np.arange(40) < 10, 1 - right, right)
    assert evaluator.measure([pictures], right)[0] == {"classifier/class_agreement": 1.0}
    assert evaluator.measure([pictures], wrong)[0] == {"classifier/class_agreement": 0.75}
    assert evaluator.measure([pictures])[0] == {}


def test_the_inception_score_of_confident_balanced_predictions_is_the_class_count():
    def read(rows):
        return 100.0 * np.eye(4, dtype=np.float32)[np.arange(len(rows)) % 4]

    space = space_of("inception", flat(images(40)), logits=read)
    metrics, _ = Evaluator([space], ["inception_score"]).measure([images(40)])
    assert metrics["inception/inception_score"] == pytest.approx(4, rel=1e-6)
    assert metrics["inception/inception_score_std"] == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def digits() -> tuple[Evaluator, np.ndarray, np.ndarray]:
    dataset = data.open("digits")
    extractor = features.pixels()
    real = reference.of_dataset(dataset, extractor, limit=None, say=print)
    evaluator = Evaluator([Space(extractor, real)], ["frechet", "precision_recall"])
    return evaluator, data.to_unit(dataset.load()), dataset.labels


def test_floors_of_the_digits(digits):
    halves, bootstrap = digits[0].floors(seed=0)
    assert (halves.samples, bootstrap.samples) == (898, 1797)
    assert 0.2 < halves.metrics["pixels/frechet"] < 0.35
    assert 0.05 < bootstrap.metrics["pixels/frechet"] < 0.1
    assert bootstrap.metrics["pixels/precision"] == 1.0


def test_precision_exposes_a_gaussian_fit(digits):
    evaluator, pictures, _ = digits
    rng = np.random.default_rng(0)
    pixels = pictures.reshape(len(pictures), -1)
    fake = rng.multivariate_normal(pixels.mean(0), np.cov(pixels, rowvar=False), len(pixels))
    metrics, _ = evaluator.measure([to_uint8(fake.reshape(pictures.shape))])
    assert metrics["pixels/frechet"] < 1.0  # before clipping, lower than that of any sampler
    assert frechet.frechet_distance(*frechet.moments(fake), *frechet.moments(pixels)) < 0.1
    assert metrics["pixels/precision"] < 0.3


def test_there_is_a_table_for_each_space():
    row = Row("teacher, Heun", 35, 1797, 2.0, {"pixels/frechet": 0.154, "inception/fid": 0.91})
    real = Row("real", None, 898, None, {"pixels/frechet": 0.28})
    pixels, inception = table([row, real]).split("\n\n")
    head, first, second = pixels.splitlines()
    assert head.split() == ["pixels", "NFE", "samples", "frechet", "samples/s"]
    assert first.split()[2:] == ["35", "1797", "0.154", "898"]
    assert second.split()[1:] == ["-", "898", "0.280", "-"]
    assert inception.splitlines()[0].split()[3] == "fid"
    assert inception.splitlines()[2].split()[3] == "-"


def test_a_row_without_metrics_still_has_its_speed():
    head, row = table([Row("generator", 1, 100, 4.0, {})]).splitlines()
    assert head.split() == ["NFE", "samples", "samples/s"]
    assert row.split() == ["generator", "1", "100", "25"]
