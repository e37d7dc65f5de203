"""Closed forms of the metrics, and the report's promises."""

import jax
import numpy as np
import pytest

from simjax.data import digits
from simjax.evaluation import evaluate, frechet
from simjax.evaluation.precision_recall import precision_recall


def test_frechet_distance_of_commuting_gaussians():
    # |m|^2 + sum (sqrt a - sqrt b)^2 for diagonal covariances, rotated together.
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    a, b, shift = np.array([1.0, 4, 9, 0, 2]), np.array([4.0, 1, 0, 0, 2]), rng.normal(size=5)
    cov_a, cov_b = (rotation * a) @ rotation.T, (rotation * b) @ rotation.T
    expected = shift @ shift + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet.frechet_distance(np.zeros(5), cov_a, shift, cov_b)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_frechet_distance_when_there_are_fewer_samples_than_dimensions():
    # Shifting every row moves the mean alone, whatever the rank of the covariance.
    rows = np.random.default_rng(1).normal(size=(6, 40))
    shift = np.full(40, 0.25)
    found = frechet.frechet_distance(*frechet.moments(rows), *frechet.moments(rows + shift))
    np.testing.assert_allclose(found, 40 * 0.25**2, rtol=1e-6)


def test_moments_are_unbiased():
    mean, covariance = frechet.moments(np.array([[0.0, 0], [2, 4]]))
    np.testing.assert_allclose(mean, [1, 2])
    np.testing.assert_allclose(covariance, [[2, 4], [4, 8]])


def test_precision_and_recall_count_neighbourhoods():
    # Real rows 0..9 on a line: the third neighbour is at most 3 away (at the ends), 2 inside.
    real = np.arange(10.0)[:, None]
    inside, outside = np.linspace(4, 5, 8)[:, None], np.full((8, 1), 100.0) + np.arange(8)[:, None]
    assert precision_recall(real, inside)[0] == 1.0
    assert precision_recall(real, outside) == (0.0, 0.0)
    precision, recall = precision_recall(real, np.concatenate([inside, outside]))
    assert precision == 0.5
    assert recall == pytest.approx(0.2)  # real 4 and 5 alone lie within 3 / 7 of the dense eight


def test_a_row_at_exactly_the_radius_is_near():
    real = np.array([[0.0], [1], [2], [3]])  # radii 3, 2, 2, 3
    assert precision_recall(real, np.array([[6.0], [6.5], [7], [8]]))[0] == 0.25


@pytest.fixture(scope="module")
def judge() -> evaluate.Judge:
    return evaluate.Judge(*digits.load())


def test_floors_of_the_digits(judge):
    assert judge.classifier.held_out_accuracy > 0.98
    halves, bootstrap = judge.floors(seed=0)
    assert (halves.samples, bootstrap.samples) == (898, 1797)
    assert 0.2 < halves.frechet < 0.35
    assert 0.05 < bootstrap.frechet < 0.1
    assert bootstrap.precision == 1.0


def test_a_gaussian_fit_is_unmasked_by_precision_and_agreement(judge):
    images, labels = digits.load()
    rng = np.random.default_rng(0)
    pixels = images.reshape(len(images), -1)
    fake = rng.multivariate_normal(pixels.mean(0), np.cov(pixels, rowvar=False), len(images))
    row = judge.measure("fit", fake.reshape(images.shape), labels, evaluations=0)
    assert row.frechet < 1.0  # before clipping it is below that of every real sampler
    assert frechet.frechet_distance(*frechet.moments(fake), *frechet.moments(pixels)) < 0.1
    assert row.precision < 0.3
    assert row.class_agreement < 0.3


def test_samples_depend_on_the_key_and_index_alone():
    def draw(batch):
        labels = np.zeros((7, 0), np.float32)
        key = jax.random.key(0)
        drawing = evaluate.Drawing(key, labels, (2, 2, 1), batch)
        return drawing.draw(lambda _, z, y, keys: z, None)[0]

    np.testing.assert_array_equal(draw(3), draw(7))
    assert draw(3).shape == (7, 2, 2, 1)


def test_samplers_that_differ_in_parameters_share_a_program():
    traced = []

    def sampler(params, z, labels, keys):
        traced.append(1)
        return params * z

    drawing = evaluate.Drawing(jax.random.key(0), np.zeros((4, 0), np.float32), (2, 2, 1), 2)
    one, two = (drawing.draw(sampler, np.float32(value))[0] for value in (1, 2))
    np.testing.assert_array_equal(2 * one, two)
    assert len(traced) == 1


def test_the_table_names_counts_and_evaluations():
    row = evaluate.Row("teacher, Heun", 35, 1797, 2.0, 0.154, 0.74, 0.91, 0.98)
    real = evaluate.Row("real", None, 898, 0.0, 0.28)
    head, first, second = evaluate.table([row, real]).splitlines()
    assert " ".join(head.split()) == "evaluations samples Frechet precision recall class samples/s"
    assert first.split()[2:] == ["35", "1797", "0.154", "0.740", "0.910", "0.980", "898"]
    assert second.split()[1:] == ["-", "898", "0.280", "-", "-", "-", "-"]
