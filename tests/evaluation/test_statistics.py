"""Streaming moments for any batch size and device count; refusal of invalid files."""

import io
import json
import pickle

import jax
import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.evaluation import frechet, statistics
from simjax.runtime import sharding
from tests.helpers import subprocesses

TOLERANCE = 1e-6  # relative to the largest entry


def features(count: int = 1003, dim: int = 24) -> np.ndarray:
    """Correlated, positive, far from zero: harder than pooled activations."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim))
    return (np.abs(mixed) + 20).astype(np.float32)


def streamed(rows: np.ndarray, batch: int, devices: int = 1) -> statistics.Statistics:
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    stats = statistics.empty(rows.shape[1])
    for start in range(0, len(rows), batch):
        stats = statistics.add(stats, rows[start : start + batch], mesh=mesh)
    return stats


def assert_moments_of(stats: statistics.Statistics, rows: np.ndarray, tolerance=TOLERANCE):
    rows = np.asarray(rows, np.float64)
    assert stats.count == len(rows)
    for ddof in (0, 1):
        mean, covariance = statistics.moments(stats, ddof=ddof)
        expected = np.cov(rows, rowvar=False, ddof=ddof)
        assert np.abs(mean - rows.mean(0)).max() <= tolerance * np.abs(rows.mean(0)).max()
        assert np.abs(covariance - expected).max() <= tolerance * np.abs(expected).max()
    np.testing.assert_array_equal(statistics.moments(stats)[1], covariance)  # the default is 1


@pytest.mark.parametrize("batch", [1, 2, 64, 1002, 1003])
def test_moments_are_those_of_the_whole_set(batch):
    rows = features()[:200] if batch == 1 else features()
    assert_moments_of(streamed(rows, batch), rows)


def test_a_large_mean_costs_no_precision():
    far = np.concatenate([features(), features() - 500])  # batches with distant means
    assert_moments_of(streamed(far, 1003), far)
    # Plain float32 sums of 20000 rows are off by 1e-5: at offset 1e5, the mean by 1e-2 of the std.
    for offset in (1e4, 1e5):
        rows = np.random.default_rng(1).normal(size=(20000, 2)) + offset
        assert_moments_of(streamed(rows.astype(np.float32), 20000), rows.astype(np.float32))


def assert_devices_agree():
    # 1003 rows in batches of 102: neither is divisible by 8.
    rows = features()
    assert len(jax.devices()) == 8
    for stats in (streamed(rows, 102, 8), statistics.add(statistics.empty(24), rows)):
        assert_moments_of(stats, rows)


def test_eight_devices_equal_one():
    program = (
        "from tests.evaluation import test_statistics as t\n"
        "t.assert_devices_agree()\n"
        "print('equal')"
    )
    assert subprocesses.on_devices(8, program) == "equal\n"


def test_padding_is_ignored_even_if_nan():
    rows = features(40)
    padded = np.concatenate([rows, np.full((24, 24), np.nan, np.float32)])
    stats = statistics.add(statistics.empty(24), padded, count=40)
    assert_moments_of(stats, rows)
    assert statistics.add(stats, padded, count=0) is stats


def test_merging_equals_adding():
    rows = features()
    parts = statistics.merge(streamed(rows[:300], 100), streamed(rows[300:], 100))
    assert_moments_of(parts, rows)
    nothing = statistics.empty(24)
    assert statistics.merge(nothing, nothing).count == 0
    assert_moments_of(statistics.merge(nothing, parts), rows)
    assert_moments_of(statistics.merge(parts, nothing), rows)


def test_streamed_moments_give_the_same_frechet_distance():
    a, b = features(), features()[:, ::-1]
    direct = frechet.frechet_distance(*frechet.moments(a), *frechet.moments(b))
    moments = [statistics.moments(streamed(rows, 100)) for rows in (a, b)]
    np.testing.assert_allclose(
        frechet.frechet_distance(*moments[0], *moments[1]), direct, rtol=1e-6
    )


def test_refusals_while_adding():
    stats = statistics.empty(24)
    with pytest.raises(ConfigError, match="rows of 23 numbers, those before it: of 24"):
        statistics.add(stats, features()[:, :23])
    bad = features()
    bad[7, 3] = np.nan
    with pytest.raises(ConfigError, match="a batch of features: not all numbers are finite"):
        statistics.add(stats, bad)
    with pytest.raises(ConfigError, match="count = 1004 for a batch of 1003 rows"):
        statistics.add(stats, features(), count=1004)


@pytest.mark.parametrize("ddof", [0, 1])
def test_one_image_has_no_covariance(ddof):
    stats = statistics.add(statistics.empty(24), features(1))
    with pytest.raises(ConfigError, match=r"1 image\(s\) have no covariance; use at least two"):
        statistics.moments(stats, ddof=ddof)


def test_count_and_protocol_are_read_if_present(tmp_path):
    text = json.dumps({"features": "pixels", "ddof": 0})
    np.savez(tmp_path / "ours.npz", mu=np.ones(3), sigma=np.eye(3), count=9, protocol=text)
    found = statistics.load(tmp_path / "ours.npz")
    np.testing.assert_array_equal(found.mean, np.ones(3))
    assert (found.count, found.protocol) == (9, {"features": "pixels", "ddof": 0})


def test_edms_files_have_neither_count_nor_protocol(tmp_path):
    np.savez(tmp_path / "edm.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3))
    found = statistics.load(tmp_path / "edm.npz")
    assert (found.count, found.protocol) == (None, {})
    assert found.mean.dtype == np.float64


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle in the file was executed",))


def archive(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


SKEW = np.array([[1.0, 0.1], [0.0, 1.0]])
BAD = {
    "text": (b"mu, sigma", "is not a file of feature statistics"),
    "pickle": (pickle.dumps(Bomb()), "is not a file of feature statistics"),
    "objects": (
        archive(mu=np.array([Bomb()], object), sigma=np.eye(1)),
        "is not a file of feature statistics",
    ),
    "truncated": (archive(mu=np.zeros(2), sigma=np.eye(2))[:-30], "is not a file of feature"),
    "nothing inside": (archive(mean=np.zeros(2)), "expected an .npz of arrays mu and sigma"),
    "words": (archive(mu=np.array(["1"]), sigma=np.eye(1)), "is not a file of feature"),
    "protocol": (archive(mu=np.zeros(2), sigma=np.eye(2), protocol="{"), "JSONDecodeError"),
    "shapes": (archive(mu=np.zeros(2), sigma=np.eye(3)), r"mu has shape \(2,\) and sigma \(3, 3\)"),
    "a number": (archive(mu=np.zeros(()), sigma=np.zeros(())), "mu has shape"),
    "no dimension": (archive(mu=np.zeros(0), sigma=np.zeros((0, 0))), "mu has shape"),
    "not finite": (archive(mu=np.zeros(1), sigma=np.full((1, 1), np.nan)), "not all numbers are"),
    "not symmetric": (archive(mu=np.zeros(2), sigma=SKEW), "is not a covariance"),
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_files_are_refused(tmp_path, kind):
    content, message = BAD[kind]
    (tmp_path / "ref.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        statistics.load(tmp_path / "ref.npz")
    assert "ref.npz" in str(raised.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="absent.npz is not a file of feature statistics"):
        statistics.load(tmp_path / "absent.npz")
