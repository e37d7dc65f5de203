"""Precision and recall of points on a line; blocks, devices, ties."""

import jax
import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.evaluation import precision_recall as module
from simjax.evaluation.precision_recall import precision_recall
from simjax.runtime import sharding
from tests.helpers import subprocesses


def by_definition(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[float, float]:
    """Reference implementation: all pairwise distances at once, float64."""

    def distances(a, b):
        return np.sqrt(((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1))

    def near(members, queries):
        radius = np.sort(distances(members, members), 1)[:, k]
        return float((distances(queries, members) <= radius).any(1).mean())

    return near(real, generated), near(generated, real)


def random_sets(n: int = 150, m: int = 211, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(n, dim)), 0.8 * rng.normal(size=(m, dim)) + 0.6
    return (5 + real).astype(np.float32), (5 + generated).astype(np.float32)


def test_manifolds_on_a_line():
    # Real rows 0..9 on a line: the third neighbour is at most 3 away (at the ends), 2 inside.
    real = np.arange(10.0)[:, None]
    inside, outside = np.linspace(4, 5, 8)[:, None], np.full((8, 1), 100.0) + np.arange(8)[:, None]
    assert precision_recall(real, inside)[0] == 1.0
    assert precision_recall(real, outside) == (0.0, 0.0)
    precision, recall = precision_recall(real, np.concatenate([inside, outside]))
    assert precision == 0.5
    assert recall == pytest.approx(0.2)  # only real 4 and 5 are within 3 / 7 of the dense eight


def test_a_row_at_exactly_the_radius_is_inside_and_one_just_beyond_is_not():
    real = np.array([[0.0], [1], [2], [3]])  # radii 3, 2, 2, 3
    assert precision_recall(real, np.array([[6.0], [6.5], [7], [8]]))[0] == 0.25
    assert precision_recall(real, np.array([[6.0001], [6.5], [7], [8]]))[0] == 0.0
    assert precision_recall(real, np.array([[6.5], [-3.0], [7], [8]]))[0] == 0.25


def test_a_row_at_the_radius_is_inside_despite_float32_rounding():
    # Each row four times: all radii are zero, so only equal rows are inside.
    rows = np.random.default_rng(1).uniform(0, 3, size=(40, 2048)).astype(np.float32)
    assert precision_recall(np.tile(rows, (4, 1)), np.tile(rows, (5, 1))) == (1.0, 1.0)
    assert precision_recall(np.tile(rows, (4, 1)), np.tile(rows + 0.01, (5, 1))) == (0.0, 0.0)


def test_a_large_mean_costs_no_accuracy():
    real, generated = random_sets()
    shifted = precision_recall(real.astype(np.float64) + 1e6, generated.astype(np.float64) + 1e6)
    assert shifted == by_definition(real, generated, 3)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [16, 150, 1024])
def test_the_block_size_does_not_matter(monkeypatch, k, block):
    monkeypatch.setattr(module, "BLOCK", block)
    real, generated = random_sets()
    expected = by_definition(real, generated, k)
    assert min(expected) > 0 and max(expected) < 1
    assert precision_recall(real, generated, k=k) == expected


def assert_devices_agree():
    # Blocks of 51 rows become 56 on eight devices; 56 divides neither 150 nor 211.
    module.BLOCK = 51
    sets = random_sets()
    assert len(jax.devices()) == 8
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        assert precision_recall(*sets, mesh=mesh) == by_definition(*sets, 3)
    assert precision_recall(*sets) == by_definition(*sets, 3)


def test_eight_devices_equal_one():
    program = (
        "from tests.evaluation import test_precision_recall as t\n"
        "t.assert_devices_agree()\n"
        "print('equal')"
    )
    assert subprocesses.on_devices(8, program) == "equal\n"


def test_refusals():
    rows = np.random.default_rng(2).normal(size=(5, 3))
    with pytest.raises(ConfigError, match="5 real and 1 generated images: .* k = 3 need at least"):
        precision_recall(rows, rows[:1])
    with pytest.raises(ConfigError, match="3 real and 5 generated images"):
        precision_recall(rows[:3], rows)
    with pytest.raises(ConfigError, match="k = 0"):
        precision_recall(rows, rows, k=0)
    with pytest.raises(ConfigError, match="rows of 3 numbers, generated features: of 2"):
        precision_recall(rows, rows[:, :2])
    with pytest.raises(ConfigError, match="real features: not all numbers are finite"):
        precision_recall(np.full((5, 3), np.nan), rows)
