"""References: from data and files, cached, refused if the features differ."""

import dataclasses
import hashlib
import json
import zipfile

import numpy as np
import pytest

from simjax import data
from simjax.data.dataset import in_memory
from simjax.errors import ConfigError
from simjax.evaluation import features, images, reference, statistics
from simjax.evaluation.features import Extracted, Extractor
from tests.helpers.file_server import Site, serve


@pytest.fixture(autouse=True)
def cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def digits():
    return data.open("digits")


def some(count: int = 1100) -> np.ndarray:
    """Random images, more than two batches by default."""
    return np.random.default_rng(0).integers(0, 256, (count, 2, 2, 1), np.uint8)


def quiet(text: str) -> None:
    """Log callback of tests that ignore the log."""


PROTOCOL = {
    "features": "inception",
    "dimension": 3,
    "resize": "bilinear",
    "dtype": "float32",
    "weights_sha256": "ab",
}


def small(images_):
    return Extracted(images_.reshape(len(images_), -1)[:, :3].astype(np.float32) / 255, None)


INCEPTION = Extractor("inception", "FID", PROTOCOL, small)  # three features instead of 2048


def of_dataset(dataset, extractor=INCEPTION, **options):
    return reference.of_dataset(dataset, extractor, **({"say": quiet} | options))


def of_file(path, extractor=INCEPTION, **options):
    return reference.of_file(str(path), extractor, **({"say": quiet} | options))


def forbidden(extractor: Extractor) -> Extractor:
    """Same protocol, but fails when features are computed."""
    return dataclasses.replace(extractor, extract=lambda _: pytest.fail("features were computed"))


def assert_equal(a: reference.Reference, b: reference.Reference, *but: str) -> None:
    for field in dataclasses.fields(a):
        if field.name not in but:
            np.testing.assert_equal(getattr(a, field.name), getattr(b, field.name), field.name)


def test_the_digits_are_compared_as_bytes(digits):
    found = of_dataset(digits, features.pixels(), split="train")
    rows = data.to_unit(images.as_bytes(digits.load())).reshape(1797, 64)
    np.testing.assert_array_equal(found.features, rows, strict=True)
    np.testing.assert_allclose(found.mean, rows.mean(0, dtype=np.float64), atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), atol=1e-5)
    np.testing.assert_array_equal(found.labels, digits.labels)
    assert (found.name, found.count) == ("digits", 1797)
    assert found.protocol == {
        "extractor": features.pixels().protocol,
        "data": digits.fingerprint(),
        "count": 1797,
        "ddof": 1,
        "split": "train",
    }


def test_a_limit_selects_the_first_images(digits):
    found = of_dataset(digits, features.pixels(), limit=600)
    whole = of_dataset(digits, features.pixels(), limit=10_000)
    assert (found.count, whole.count, found.protocol["count"]) == (600, 1797, 600)
    np.testing.assert_array_equal(found.features, whole.features[:600])
    np.testing.assert_array_equal(found.labels, digits.labels[:600])
    np.testing.assert_allclose(found.mean, whole.features[:600].mean(0), atol=1e-5)


def test_a_cached_reference_is_not_computed_again():
    dataset = in_memory("images", some(), None, 0)
    said = []
    first = of_dataset(dataset, say=said.append)
    assert said == ["images: inception features of 1100 images"]
    copy = in_memory("copy", some(), None, 0)
    again = of_dataset(copy, forbidden(INCEPTION), limit=1100, say=pytest.fail)
    assert_equal(first, again, "name")
    assert (again.name, again.labels) == ("copy", None)


def test_other_data_extractors_and_limits_are_not_taken_from_the_cache(digits):
    dataset = in_memory("images", some(), None, 0)
    first = of_dataset(dataset)
    half = dataclasses.replace(INCEPTION, protocol=PROTOCOL | {"dtype": "bfloat16"})
    others = [
        of_dataset(dataset, half),
        of_dataset(dataset, limit=1099),
        of_dataset(in_memory("images", some()[::-1], None, 0)),
        of_dataset(in_memory("images", some(), np.arange(1100) % 2, 2)),
    ]
    assert len({first.sha256, *(other.sha256 for other in others)}) == 5


@pytest.mark.parametrize("field", ["count", "mean", "covariance", "features", "labels", "protocol"])
def test_the_checksum_covers_everything_but_the_name(field):
    found = of_dataset(in_memory("images", some(9), np.arange(9) % 2, 2))
    value = getattr(found, field)
    changed = dataclasses.replace(found, **{field: {} if field == "protocol" else 2 * value})
    assert reference._hashed(changed).sha256 != reference._hashed(found).sha256


def test_a_damaged_cache_entry_is_computed_again(cache_directory):
    dataset = in_memory("images", some(), np.arange(1100) % 7, 7)
    first = of_dataset(dataset)
    (path,) = (cache_directory / "references").iterdir()
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    middle = len(whole) // 2
    statistics_only = {name: arrays[name] for name in ("mu", "sigma", "count", "protocol")}
    damages = {
        "truncated": lambda: path.write_bytes(whole[:-100]),
        "flipped": lambda: path.write_bytes(whole[:middle] + b"????" + whole[middle + 4 :]),
        "shape": lambda: np.savez(path, **(arrays | {"features": arrays["features"][1:]})),
        "type": lambda: np.savez(path, **(arrays | {"features": np.zeros((1100, 3))})),
        "labels": lambda: np.savez(path, **(arrays | {"labels": arrays["labels"][1:]})),
        "another": lambda: np.savez(path, **(arrays | {"protocol": np.array('{"count": 2}')})),
        "no features": lambda: np.savez(path, **statistics_only),
    }
    for damage in damages.values():
        damage()
        said = []
        assert_equal(of_dataset(dataset, say=said.append), first)
        assert said[0].startswith(str(path))
        assert said[0].endswith("Computing it again.")
        assert_equal(of_dataset(dataset, forbidden(INCEPTION)), first)


def test_sets_without_a_covariance_are_refused(digits):
    for limit in (0, 1):
        with pytest.raises(ConfigError, match=rf"digits: {limit} image\(s\) have no covariance"):
            of_dataset(digits, limit=limit)
    large = dataclasses.replace(
        INCEPTION, extract=lambda x: Extracted(np.zeros((len(x), 12_289), np.float32), None)
    )
    with pytest.raises(ConfigError, match="12289 features per image, expected at most 12288"):
        of_dataset(digits, large)


def test_an_npz_of_images_is_a_reference(tmp_path):
    path = tmp_path / "VIRTUAL_images.npz"
    np.savez(path, arr_0=some(), mu=np.zeros(2048), sigma=np.eye(2048))  # ADM's file has both
    said = []
    found = of_file(path, say=said.append)
    assert said[0] == f"{path}: using only its images; its mu and sigma are of another extractor"
    expected = of_dataset(in_memory("images", some(), None, 0))
    assert_equal(found, expected, "name", "sha256")
    assert found.name == str(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert of_file(path, limit=50).count == 50
    images.write_npz(path, some(), np.arange(1100) % 3)
    np.testing.assert_array_equal(of_file(path, say=quiet).labels, np.arange(1100) % 3)


def saved(path, protocol=None, dim: int = 3):
    stats = statistics.add(statistics.empty(dim), np.eye(9, dim, dtype=np.float32))
    if protocol is None:  # as EDM's fid.py writes it
        mean, covariance = statistics.moments(stats)
        np.savez(path, mu=mean, sigma=covariance)
    else:
        mean, covariance = statistics.moments(stats, ddof=0)
        text = json.dumps(protocol | {"ddof": 0})
        np.savez(path, mu=mean, sigma=covariance, count=stats.count, protocol=text)
    return stats


def test_statistics_of_the_same_features_are_a_reference(tmp_path):
    path = tmp_path / "ref.npz"
    stats = saved(path, {"extractor": PROTOCOL, "data": "cd"})
    found = of_file(path, say=pytest.fail)
    mean, covariance = statistics.moments(stats, ddof=0)
    np.testing.assert_array_equal(found.mean, mean)
    np.testing.assert_array_equal(found.covariance, covariance)
    assert (found.count, found.features, found.labels) == (9, None, None)
    assert found.protocol == {"extractor": PROTOCOL, "data": "cd", "ddof": 0}
    assert (found.name, found.sha256) == (str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_cache_entry_is_a_reference_file(cache_directory):
    first = of_dataset(in_memory("images", some(), np.arange(1100) % 7, 7))
    (path,) = (cache_directory / "references").iterdir()
    found = of_file(path, forbidden(INCEPTION))
    assert_equal(found, first, "name", "sha256", "protocol")
    assert found.protocol | {"split": None} == first.protocol


def test_statistics_without_a_protocol_are_assumed_inceptions_with_a_log_line(tmp_path):
    path = tmp_path / "edm.npz"
    saved(path)
    said = []
    found = of_file(path, say=said.append)
    assert found.protocol == {"extractor": "reference of unknown protocol"}
    assert found.count is None
    assert said == [f"{path}: reference of unknown protocol; assuming FID statistics"]
    with pytest.raises(ConfigError, match="does not record its features.* are 'pixels'"):
        of_file(path, features.pixels())


def test_statistics_of_another_dimension_are_refused(tmp_path):
    path = tmp_path / "ref.npz"
    for protocol in (None, {"extractor": PROTOCOL}):
        saved(path, protocol, dim=4)
        with pytest.raises(ConfigError, match="statistics of 4 features, but inception has 3"):
            of_file(path)


@pytest.mark.parametrize("field", ["features", "resize", "dtype", "weights_sha256"])
def test_statistics_of_other_features_are_refused(tmp_path, field):
    path = tmp_path / "ref.npz"
    saved(path, {"extractor": PROTOCOL | {field: "other"}})
    message = (
        f"ref.npz was computed with other .*\n  {field}: 'other' -> '{PROTOCOL[field]}'\nCompute"
    )
    with pytest.raises(ConfigError, match=message):
        of_file(path)


def test_statistics_with_an_unknown_protocol_are_refused(tmp_path):
    saved(tmp_path / "ref.npz", {"made by": "hand"})
    with pytest.raises(ConfigError, match=r"made by: 'hand' -> '\(absent\)'"):
        of_file(tmp_path / "ref.npz")
    saved(tmp_path / "ref.npz", {"extractor": "by hand"})
    with pytest.raises(ConfigError, match="computed with other features"):
        of_file(tmp_path / "ref.npz")


def test_invalid_reference_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="absent.npz does not exist"):
        of_file(tmp_path / "absent.npz")
    path = tmp_path / "ref.npz"
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(ConfigError, match="ref.npz is not a file of feature statistics"):
        of_file(path)
    path.write_text("<html>")
    with pytest.raises(ConfigError, match="ref.npz is not a file of feature statistics"):
        of_file(path)
    np.savez(path, arr_0=some() / 255)
    with pytest.raises(ConfigError, match="arr_0: float64 of shape"):
        of_file(path)
    saved(path)
    with pytest.raises(ConfigError, match=f"has sha256 .*, expected {'0' * 64}"):
        of_file(path, sha256="0" * 64)


def test_a_url_is_fetched_once(tmp_path):
    saved(tmp_path / "edm.npz")
    with serve(Site((tmp_path / "edm.npz").read_bytes())) as site:
        first = of_file(site.url)
        assert_equal(of_file(site.url), first)
        assert len(site.requests) == 1
    assert (first.name, len(first.mean)) == (site.url, 3)


def test_a_source_is_a_data_set_or_a_file(tmp_path, digits):
    found = reference.of("digits", features.pixels(), limit=100, say=quiet)
    assert (found.name, found.count, found.protocol["split"]) == ("digits", 100, "train")
    images.write_npz(tmp_path / "a.npz", some())
    found = reference.of(str(tmp_path / "a.npz"), INCEPTION, limit=100, say=quiet)
    assert (found.name, found.count) == (str(tmp_path / "a.npz"), 100)
    with pytest.raises(ConfigError, match="zip:.*: no such file"):
        reference.of(f"zip:{tmp_path}/b.zip", INCEPTION, say=quiet)
    with pytest.raises(ConfigError, match="has no split 'test'"):
        reference.of("digits", INCEPTION, split="test", say=quiet)
    with pytest.raises(ConfigError, match=f"expected {'0' * 64}"):
        reference.of(str(tmp_path / "a.npz"), INCEPTION, sha256="0" * 64, say=quiet)


def test_a_folder_or_a_zip_of_images_is_a_reference(tmp_path):
    made = some(9)
    images.write_folder(tmp_path / "folder", [made])
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((tmp_path / "folder").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "folder"))
    expected = of_dataset(in_memory("images", made, None, 0))
    for name in ("folder", "images.zip"):
        found = reference.of(str(tmp_path / name), INCEPTION, say=quiet)
        assert_equal(found, expected, "name", "sha256", "protocol")
        assert found.name == str(tmp_path / name)
        assert found.protocol["data"] == expected.protocol["data"]
    with serve(Site((tmp_path / "images.zip").read_bytes())) as site:
        assert reference.of(site.url, INCEPTION, say=quiet).count == 9


def test_a_run_is_refused_as_a_folder_of_images(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a run or a model, expected a folder of images"):
        reference.of(str(tmp_path), INCEPTION, say=quiet)
