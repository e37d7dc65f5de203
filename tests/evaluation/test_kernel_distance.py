"""KID against closed forms."""

import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.evaluation.kernel_distance import kernel_distance, mmd_squared


def test_two_points_by_hand():
    # In one dimension k(x, y) = (x y + 1)^3. x = 0, 1 and y = 2, 3:
    # k(0, 1) = 1, k(2, 3) = 343; k(x, y): 1, 1, 27, 64, mean 93 / 4.
    x, y = np.array([[0.0], [1]]), np.array([[2.0], [3]])
    np.testing.assert_allclose(mmd_squared(x, y), 1 + 343 - 2 * 93 / 4, rtol=1e-12)


def test_the_kernel_divides_by_the_dimension():
    # Repeating every coordinate doubles x.y and d, so k is unchanged.
    x, y = np.random.default_rng(0).normal(size=(2, 6, 3))
    twice = mmd_squared(np.tile(x, 2), np.tile(y, 2))
    np.testing.assert_allclose(twice, mmd_squared(x, y), rtol=1e-12)


def test_equal_distributions_have_expectation_zero():
    # Mean of unbiased estimates over independent pairs of samples, within 3 standard errors.
    rng = np.random.default_rng(1)
    found = [mmd_squared(*rng.normal(size=(2, 20, 4))) for _ in range(2000)]
    assert np.abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(2000)
    assert min(found) < 0


def test_narrow_gaussians_have_the_discrepancy_of_their_means():
    # With a tiny spread, k is (m m' + 1)^3 for the means m and m'.
    rng = np.random.default_rng(2)
    x, y = 1 + 1e-6 * rng.normal(size=(50, 1)), 2 + 1e-6 * rng.normal(size=(60, 1))
    found = kernel_distance(x, y, seed=0, subsets=3, subset_size=10)
    np.testing.assert_allclose(found, 2.0**3 + 5.0**3 - 2 * 3.0**3, rtol=1e-4)


def test_one_subset_of_all_rows_is_the_plain_estimate():
    x, y = np.random.default_rng(3).normal(size=(2, 30, 4))
    found = kernel_distance(x, y, seed=5, subsets=1)
    np.testing.assert_allclose(found, mmd_squared(x, y), rtol=1e-9)
    again = kernel_distance(x, y, seed=5, subsets=4, subset_size=10)
    assert again == kernel_distance(x, y, seed=5, subsets=4, subset_size=10)
    assert again != kernel_distance(x, y, seed=6, subsets=4, subset_size=10)


def test_refusals():
    rows = np.ones((5, 3))
    with pytest.raises(ConfigError, match="1 generated and 5 real images"):
        kernel_distance(rows[:1], rows, seed=0)
    with pytest.raises(ConfigError, match="rows of 3 numbers, real features: of 2"):
        kernel_distance(rows, rows[:, :2], seed=0)
    with pytest.raises(ConfigError, match="generated features: not all numbers are finite"):
        kernel_distance(np.full((5, 3), np.nan), rows, seed=0)
