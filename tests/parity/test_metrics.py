"""FID, Inception Score, KID, precision and recall against SiD's and EDM's functions."""

import re

import numpy as np
import pytest

from simjax.evaluation import frechet, statistics
from simjax.evaluation.inception_score import inception_score
from simjax.evaluation.kernel_distance import kernel_distance, mmd_squared
from simjax.evaluation.precision_recall import precision_recall
from tests.helpers import official

FRECHET_TOLERANCE = 1e-6  # relative, float64
FLOAT32_TOLERANCE = 1e-5  # relative: the references' Inception Score and KID are float32

# (prefix of the recorded moments, ddof of the covariance, name of the recorded distance).
CONVENTIONS = [("edm", 1, "out/edm_fid"), ("sid", 0, "out/fid")]


@pytest.mark.parametrize(("prefix", "ddof", "name"), CONVENTIONS)
def test_frechet_distance(metrics_case, prefix, ddof, name):
    recording = official.read(metrics_case.path)
    real, generated = recording["in/real"], recording["in/gen"]
    mean, covariance = frechet.moments(real, ddof=ddof)
    assert official.rel(mean, recording[f"{prefix}/mu_real"]) <= FRECHET_TOLERANCE
    assert official.rel(covariance, recording[f"{prefix}/sigma_real"]) <= FRECHET_TOLERANCE
    ours = frechet.moments(generated, ddof=ddof)
    distance = frechet.frechet_distance(*ours, mean, covariance)
    assert distance == pytest.approx(float(recording[name]), rel=FRECHET_TOLERANCE)


@pytest.mark.parametrize(("prefix", "ddof", "name"), CONVENTIONS)
def test_frechet_distance_of_streamed_features(metrics_case, prefix, ddof, name):
    recording = official.read(metrics_case.path)
    moments = []
    for rows in (recording["in/real"], recording["in/gen"]):
        stats = statistics.empty(rows.shape[1])
        for part in np.array_split(rows, 3):
            stats = statistics.add(stats, part)
        moments.append(statistics.moments(stats, ddof=ddof))
    assert official.rel(moments[0][1], recording[f"{prefix}/sigma_real"]) <= FRECHET_TOLERANCE
    distance = frechet.frechet_distance(*moments[0], *moments[1])
    assert distance == pytest.approx(float(recording[name]), rel=FRECHET_TOLERANCE)


@pytest.mark.parametrize(("prefix", "ddof", "name"), CONVENTIONS)
def test_frechet_distance_of_singular_covariances(metrics_case, prefix, ddof, name):
    recording = official.read(metrics_case.path)
    n_real, n_generated = recording.json("results")["low_rank_counts"]
    distance = frechet.frechet_distance(
        *frechet.moments(recording["in/gen"][:n_generated], ddof=ddof),
        *frechet.moments(recording["in/real"][:n_real], ddof=ddof),
    )
    expected = float(recording[f"{name}_low_rank"])
    assert distance == pytest.approx(expected, rel=FRECHET_TOLERANCE)


def test_inception_score(metrics_case):
    recording = official.read(metrics_case.path)
    splits = recording.json("results")["hyper"]["is_splits"]
    found = inception_score(recording["in/probs"], splits=splits)
    expected = float(recording["out/is_mean"]), float(recording["out/is_std"])
    assert found == pytest.approx(expected, rel=FLOAT32_TOLERANCE)


def test_kernel_distance(metrics_case):
    recording = official.read(metrics_case.path)
    hyper = recording.json("results")["hyper"]
    real, generated = recording["in/real"], recording["in/gen"]
    found = kernel_distance(
        generated,
        real,
        seed=hyper["kid_numpy_seed"],
        subsets=hyper["kid_subsets"],
        subset_size=hyper["kid_subset_size"],
    )
    assert found == pytest.approx(float(recording["out/kid"]), rel=FLOAT32_TOLERANCE)
    drawn = zip(recording["kid/gen_idx"], recording["kid/real_idx"], strict=True)
    subsets = [mmd_squared(generated[i], real[j]) for i, j in drawn]
    assert found == pytest.approx(np.mean(subsets), rel=1e-12)


def test_precision_and_recall(metrics_case):
    # Distances at the edge of a neighbourhood may round either way: exact up to one sample.
    recording = official.read(metrics_case.path)
    real, generated = recording["in/real"], recording["in/gen_pr"]
    matches = [re.fullmatch(r"out/precision_f32(?:_k(\d+))?", key) for key in recording.arrays]
    found = [match for match in matches if match]
    assert found
    for match in found:
        k = int(match[1] or recording.json("results")["hyper"]["pr_k"])
        assert_within(recording, match[0], precision_recall(real, generated, k=k), samples=1)


def test_precision_and_recall_of_features_in_float16(metrics_case):
    # The reference also rounds distances to float16, simjax does not: up to two samples.
    recording = official.read(metrics_case.path)
    real, generated = (recording[f"in/{name}"].astype(np.float16) for name in ("real", "gen_pr"))
    k = recording.json("results")["hyper"]["pr_k"]
    assert_within(recording, "out/precision_f16", precision_recall(real, generated, k=k), samples=2)


def assert_within(recording, name, found, *, samples):
    expected = [float(recording[key]) for key in (name, name.replace("precision", "recall"))]
    one_sample = np.array([1 / len(recording["in/gen_pr"]), 1 / len(recording["in/real"])])
    errors = np.abs(np.subtract(found, expected))
    assert np.all(errors <= 1.001 * samples * one_sample), (name, found, expected)
