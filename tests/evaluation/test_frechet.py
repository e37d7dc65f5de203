"""Frechet distance against closed forms and SciPy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg

from simjax.errors import ConfigError
from simjax.evaluation import frechet


def gaussian(rng: np.random.Generator, dim: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    factor = rng.normal(size=(dim, rank))
    return rng.normal(size=dim), factor @ factor.T / rank


def test_distance_of_commuting_gaussians():
    # |m|^2 + sum (sqrt a - sqrt b)^2 for diagonal covariances, rotated together.
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    a, b, shift = np.array([1.0, 4, 9, 0, 2]), np.array([4.0, 1, 0, 0, 2]), rng.normal(size=5)
    cov_a, cov_b = (rotation * a) @ rotation.T, (rotation * b) @ rotation.T
    expected = shift @ shift + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet.frechet_distance(np.zeros(5), cov_a, shift, cov_b)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("case", range(20))
def test_distance_equals_that_with_scipys_matrix_root(case):
    rng = np.random.default_rng(case)
    dim = (1, 2, 3, 7, 50)[case % 5]
    (mean_a, cov_a), (mean_b, cov_b) = (gaussian(rng, dim, 2 * dim) for _ in range(2))
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    found = frechet.frechet_distance(mean_a, cov_a, mean_b, cov_b)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_distance_when_there_are_fewer_samples_than_dimensions():
    # Shifting every row changes only the mean, for any rank of the covariance.
    rows = np.random.default_rng(1).normal(size=(6, 40))
    shift = np.full(40, 0.25)
    found = frechet.frechet_distance(*frechet.moments(rows), *frechet.moments(rows + shift))
    np.testing.assert_allclose(found, 40 * 0.25**2, rtol=1e-6)


def test_rounding_errors_in_a_null_space_do_not_accumulate():
    # Orthogonal supports: the root of the product is zero, so the distance is the sum of traces.
    rng = np.random.default_rng(2)
    rotation = np.linalg.qr(rng.normal(size=(200, 200)))[0]
    cov_a, cov_b = (half @ half.T for half in (rotation[:, :100], rotation[:, 100:]))
    zero = np.zeros(200)
    found = frechet.frechet_distance(zero, cov_a, zero, cov_b)
    np.testing.assert_allclose(found, 200, rtol=1e-10)


@pytest.mark.parametrize("rank", [3, 60])
def test_distance_is_bitwise_symmetric(rank):
    rng = np.random.default_rng(3)
    for _ in range(5):
        a, b = (gaussian(rng, 30, rank) for _ in range(2))
        assert frechet.frechet_distance(*a, *b) == frechet.frechet_distance(*b, *a)


def test_distance_is_never_negative():
    rng = np.random.default_rng(4)
    for _ in range(10):
        a = gaussian(rng, 30, 60)
        assert 0 <= frechet.frechet_distance(*a, *a) < 1e-12 * np.trace(a[1])


def test_moments_divide_by_n_minus_ddof():
    mean, covariance = frechet.moments(np.array([[0.0, 0], [2, 4]]))
    np.testing.assert_allclose(mean, [1, 2])
    np.testing.assert_allclose(covariance, [[2, 4], [4, 8]])
    np.testing.assert_allclose(
        frechet.moments(np.array([[0.0, 0], [2, 4]]), ddof=0)[1], [[1, 2], [2, 4]]
    )


def test_moments_of_float16_rows_are_float64():
    rows = np.random.default_rng(5).uniform(300, 310, size=(1000, 2)).astype(np.float16)
    mean, covariance = frechet.moments(rows)
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-9)


def test_one_image_has_no_covariance():
    with pytest.raises(ConfigError, match=r"1 image\(s\) have no covariance; use at least two"):
        frechet.moments(np.ones((1, 4)))


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_moments_are_refused(position, value):
    arguments = [np.zeros(2), np.eye(2), np.zeros(2), np.eye(2)]
    arguments[position].flat[-1] = value
    with pytest.raises(ConfigError, match="not all numbers are finite"):
        frechet.frechet_distance(*arguments)


def test_features_of_two_networks_are_refused():
    with pytest.raises(ConfigError, match="rows of 2 numbers, the second mean: of 3"):
        frechet.frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
