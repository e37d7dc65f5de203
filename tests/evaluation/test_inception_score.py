"""Inception Score against closed forms."""

import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.evaluation.inception_score import inception_score, score_of_logits


def test_uniform_predictions_score_one():
    assert inception_score(np.full((40, 8), 0.125)) == (1.0, 0.0)


def test_confident_predictions_of_all_classes_score_the_class_count():
    one_hot = np.tile(np.eye(5), (20, 1))
    np.testing.assert_allclose(inception_score(one_hot), (5, 0), atol=1e-12)


def test_confident_predictions_of_one_class_score_one():
    assert inception_score(np.tile(np.eye(5)[2], (20, 1))) == (1.0, 0.0)


def test_splits_are_consecutive_and_their_std_is_the_populations():
    # Four splits of one class each, one split of both: scores 1, 1, 1, 1, 2.
    classes = np.repeat([0, 1, 0, 1], 4).tolist() + [0, 1, 0, 1]
    mean, deviation = inception_score(np.eye(2)[classes], splits=5)
    np.testing.assert_allclose((mean, deviation), (1.2, 0.4), rtol=1e-12)


def test_split_boundaries_are_rounded_down():
    # 7 rows in 2 splits: 3 and 4 (bounds 0, 3, 7).
    classes = [0, 0, 0, 1, 2, 1, 2]
    mean, deviation = inception_score(np.eye(3)[classes], splits=2)
    np.testing.assert_allclose((mean, deviation), (1.5, 0.5), rtol=1e-12)


def test_two_samples_by_hand():
    p, q = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    middle = (p + q) / 2
    divergence = [np.sum(x * np.log(x / middle)) for x in (p, q)]
    found, _ = inception_score(np.stack([p, q]), splits=1)
    np.testing.assert_allclose(found, np.exp(np.mean(divergence)), rtol=1e-12)


def test_score_of_logits_applies_a_softmax():
    logits = np.random.default_rng(0).normal(size=(60, 7)) * 3 + 1000
    weights = np.exp(logits - 1000)
    expected = inception_score(weights / weights.sum(1, keepdims=True))
    np.testing.assert_allclose(score_of_logits(logits), expected, rtol=1e-12)


def test_float32_rows_are_summed_in_float64():
    weights = np.random.default_rng(1).uniform(size=(5000, 100))
    probabilities = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    expected = inception_score(probabilities.astype(np.float64))
    np.testing.assert_allclose(inception_score(probabilities), expected, rtol=1e-12)


def test_refusals():
    with pytest.raises(ConfigError, match=r"1 image\(s\) cannot be split into 10; use more"):
        inception_score(np.full((1, 8), 0.125))
    with pytest.raises(
        ConfigError, match="minimum is 0.3 and row sums differ from 1 by up to 0.2; .* logits"
    ):
        inception_score(np.tile([0.3, 0.5], (10, 1)))
    with pytest.raises(ConfigError, match="minimum is -0.5"):
        inception_score(np.tile([-0.5, 1.5], (10, 1)))
    with pytest.raises(ConfigError, match="class probabilities: not all numbers are finite"):
        inception_score(np.full((20, 2), np.nan))
    with pytest.raises(ConfigError, match="logits: not all numbers are finite"):
        score_of_logits(np.full((20, 2), np.inf))
