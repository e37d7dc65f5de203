"""The Frechet distance against NVlabs/edm; precision and recall against SiD; same features."""

import re

import numpy as np
import pytest

from simjax.evaluation import frechet
from simjax.evaluation.precision_recall import precision_recall

from . import official

FRECHET_TOLERANCE = 1e-6  # relative, float64


def test_frechet_distance(metrics_case):
    recording = official.read(metrics_case.path)
    real, generated = recording["in/real"], recording["in/gen"]
    mean, covariance = frechet.moments(real)
    assert official.rel(mean, recording["edm/mu_real"]) <= FRECHET_TOLERANCE
    assert official.rel(covariance, recording["edm/sigma_real"]) <= FRECHET_TOLERANCE
    distance = frechet.frechet_distance(*frechet.moments(generated), mean, covariance)
    assert distance == pytest.approx(float(recording["out/edm_fid"]), rel=FRECHET_TOLERANCE)


def test_frechet_distance_of_singular_covariances(metrics_case):
    recording = official.read(metrics_case.path)
    n_real, n_generated = recording.json("results")["low_rank_counts"]
    distance = frechet.frechet_distance(
        *frechet.moments(recording["in/gen"][:n_generated]),
        *frechet.moments(recording["in/real"][:n_real]),
    )
    expected = float(recording["out/edm_fid_low_rank"])
    assert distance == pytest.approx(expected, rel=FRECHET_TOLERANCE)


def test_precision_and_recall(metrics_case):
    # Distances at the edge of a neighbourhood round either way: exact to one sample.
    recording = official.read(metrics_case.path)
    real, generated = recording["in/real"], recording["in/gen_pr"]
    matches = [re.fullmatch(r"out/precision_f32(?:_k(\d+))?", key) for key in recording.arrays]
    found = [match for match in matches if match]
    assert found
    for match in found:
        k = int(match[1] or recording.json("results")["hyper"]["pr_k"])
        precision, recall = precision_recall(real, generated, k=k)
        names = match[0], match[0].replace("precision", "recall")
        expected = [float(recording[name]) for name in names]
        one_sample = np.array([1 / len(generated), 1 / len(real)])
        errors = np.abs(np.subtract([precision, recall], expected))
        assert np.all(errors <= 1.001 * one_sample), (k, precision, recall, expected)
