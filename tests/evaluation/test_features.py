"""Feature spaces: any number of images on any devices, and the protocol of each space."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from simjax import data
from simjax.data.dataset import in_memory
from simjax.errors import ConfigError
from simjax.evaluation import features
from simjax.evaluation import images as image_files
from simjax.evaluation.features import Extracted
from simjax.evaluation.inception import Weights
from tests.helpers import subprocesses


@pytest.fixture(autouse=True)
def cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits():
    return data.open("digits")


def some(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, channels), np.uint8)


def quiet(text: str) -> None:
    """Log callback of tests that ignore the log."""


def linear(batch: int) -> features.Extractor:
    """A cheap linear extractor whose features differ between rows."""
    weight = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)

    def forward(params, images):
        x = images.reshape(len(images), -1).astype(jnp.float32) @ params
        return Extracted(x, 2 * x[:, :3])

    return features.batched(forward, weight, batch)


def assert_linear(extract, count: int) -> None:
    images = some(count)
    weight = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)
    expected = images.reshape(count, 16).astype(np.float32) @ weight
    found = extract(images)
    assert (found.features.shape, found.logits.shape) == ((count, 5), (count, 3))
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.logits, 2 * expected[:, :3], rtol=1e-5, atol=1e-3)


def test_pixels_are_flattened_and_scaled_to_data_units():
    space = features.pixels()
    images = some(3, channels=3)
    found = space.extract(images)
    assert found.logits is None
    np.testing.assert_array_equal(found.features, data.to_unit(images).reshape(3, 48), strict=True)
    assert (found.features.min(), found.features.max()) >= (-1, -1)
    assert space.extract(some(0)).features.shape == (0, 16)
    assert (space.name, space.frechet) == ("pixels", "Frechet distance, pixels")


@pytest.mark.parametrize("batch", [1, 8])
def test_features_do_not_depend_on_the_batch_size(batch):
    extract = linear(batch)
    for count in (0, 1, 7, 8, 9, 20):
        assert_linear(extract, count)


def test_one_batch_shape_is_compiled_for_any_number_of_images():
    traces = []

    def forward(params, images):
        traces.append(images.shape)
        return Extracted(images.reshape(len(images), -1) * params, None)

    extract = features.batched(forward, np.float32(2), 8)
    for count in (3, 8, 21):
        assert extract(some(count)).logits is None
    assert traces == [(8, 4, 4, 1)]


def test_extractors_accept_only_uint8():
    for extract in (linear(8), features.pixels().extract):
        with pytest.raises(TypeCheckError):
            extract(np.zeros((2, 4, 4, 1), np.float32))


def assert_eight_devices_agree():
    # A batch of 10 becomes 16, two rows per device; 37 is not divisible by 8.
    for count in (3, 37):
        assert_linear(linear(10), count)
    traces = []

    def forward(params, images):
        traces.append(len(images))
        return Extracted(images.reshape(len(images), -1) * params, None)

    features.batched(forward, np.float32(1), 10)(some(1))
    assert traces == [16]


def test_eight_devices_equal_one():
    program = (
        "from tests.evaluation import test_features as t\n"
        "t.assert_eight_devices_agree()\n"
        "print('equal')"
    )
    assert subprocesses.on_devices(8, program) == "equal\n"


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle in the file was executed",))


def classified(dataset, indices, space) -> float:
    found = space.extract(image_files.as_bytes(dataset.read(indices)))
    assert found.features.shape == (len(indices), 128)
    assert (found.features >= 0).all()
    return np.mean(found.logits.argmax(1) == dataset.labels[indices])


def test_the_classifier_generalises_to_held_out_digits(digits):
    space = features.classifier(digits, say=quiet)
    order = np.random.default_rng(0).permutation(digits.size)
    accuracy = classified(digits, order[899:], space)
    assert 0.95 < accuracy < classified(digits, order[:899], space)
    assert space.protocol["held_out_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert (space.protocol["fitted_on"], space.protocol["held_out"]) == (899, 898)
    assert space.frechet == "Frechet distance, classifier"


def test_the_classifier_is_determined_by_its_seed(digits, tmp_path, monkeypatch):
    first = features.classifier(digits, say=quiet)
    monkeypatch.setenv("SIMJAX_CACHE", str(tmp_path / "elsewhere"))
    assert features.classifier(digits, say=quiet).protocol == first.protocol
    other = features.classifier(digits, seed=1, say=quiet).protocol
    assert other["weights_sha256"] != first.protocol["weights_sha256"]


def test_a_cached_classifier_is_not_trained_again(digits, monkeypatch):
    said = []
    first = features.classifier(digits, say=said.append)
    assert said == ["digits: training a classifier on 899 images"]
    monkeypatch.delattr(features, "MLPClassifier")
    again = features.classifier(digits, say=pytest.fail)
    assert again.protocol == first.protocol
    images = image_files.as_bytes(digits.read(np.arange(20)))
    for a, b in zip(first.extract(images), again.extract(images), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_classifier_is_trained_again(digits, tmp_path):
    first = features.classifier(digits, say=quiet)
    (path,) = (tmp_path / "cache" / "classifiers").iterdir()
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    damages = {
        "truncated": lambda: path.write_bytes(whole[:-100]),
        "flipped": lambda: path.write_bytes(whole[:9999] + b"?" + whole[10_000:]),
        "shape": lambda: np.savez(path, **(arrays | {"bias_1": np.zeros(3, np.float32)})),
        "type": lambda: np.savez(path, **(arrays | {"bias_1": np.zeros(128)})),
        "pickle": lambda: np.savez(path, **(arrays | {"bias_1": np.array([Bomb()], object)})),
        "missing": lambda: np.savez(path, mean=arrays["mean"]),
    }
    for damage in damages.values():
        damage()
        said = []
        assert features.classifier(digits, say=said.append).protocol == first.protocol
        assert "is damaged" in said[0]
        assert "training the classifier again" in said[0]
        assert path.read_bytes() == whole


def test_two_classes_have_two_logits(digits):
    chosen = digits.labels < 2
    two = in_memory("two", digits.load()[chosen], digits.labels[chosen], 2)
    space = features.classifier(two, say=quiet)
    assert space.protocol["held_out_accuracy"] > 0.95
    found = space.extract(image_files.as_bytes(two.load()))
    assert found.logits.shape == (two.size, 2)
    assert np.mean(found.logits.argmax(1) == two.labels) > 0.95


def test_data_without_usable_classes_is_refused(digits, tmp_path, monkeypatch):
    images = digits.load()[:40]
    with pytest.raises(ConfigError, match="bare has no labels, .* choose the features 'pixels'"):
        features.classifier(in_memory("bare", images, None, 0), say=quiet)
    with pytest.raises(ConfigError, match="1 of 11 classes have no image among the 899"):
        features.classifier(in_memory("gap", digits.load(), digits.labels, 11), say=quiet)
    with pytest.raises(ConfigError, match="of 1 classes .* expected at least two classes"):
        features.classifier(in_memory("one", images, np.zeros(40, np.int32), 1), say=quiet)
    space = features.classifier(digits, say=quiet)
    with pytest.raises(
        ConfigError, match=r"shape \(4, 4, 1\), expected \(8, 8, 1\), .* trained on"
    ):
        space.extract(some(2))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIMJAX_CACHE", str(tmp_path / "file"))
    message = "cannot be used: .*; set SIMJAX_CACHE to a writable folder"
    with pytest.raises(ConfigError, match=message):
        features.classifier(digits, say=quiet)


class Outputs:
    """Outputs of a network cheaper than Inception."""

    def __init__(self, images):
        self.features = images.reshape(len(images), -1).astype(jnp.float32)
        self.logits_without_bias = self.features[:, :3]
        self.logits = self.logits_without_bias + 1


def test_the_inception_space_uses_logits_without_bias_and_records_its_protocol(monkeypatch):
    calls = []

    def load(source, *, sha256, say):
        calls.append((source, sha256))
        return Weights(np.float32(2), "ab" * 32, source)

    def extractor(dtype):
        calls.append(dtype)
        return lambda params, images: Outputs(images * params)

    monkeypatch.setattr(features.inception_weights, "load", load)
    monkeypatch.setattr(features.inception_network, "extractor", extractor)
    space = features.inception(batch=4, say=quiet)
    assert calls == [("inception-fid", "6726825d"), jnp.float32]
    found, flat = space.extract(some(6)), 2.0 * some(6).reshape(6, -1)
    np.testing.assert_array_equal(found.features, flat)
    np.testing.assert_array_equal(found.logits, flat[:, :3])
    assert (space.name, space.frechet) == ("inception", "FID")
    protocol = space.protocol
    assert (protocol["weights_sha256"], protocol["dtype"]) == ("ab" * 32, "float32")
    assert "299x299" in protocol["resize"]
    assert protocol["dimension"] == 2048
    half = features.inception("w.pth", "", dtype="bfloat16", say=quiet)
    assert calls[2:] == [("w.pth", ""), jnp.bfloat16]
    assert half.protocol == protocol | {"dtype": "bfloat16"}


def test_every_protocol_is_json_and_only_inception_is_fid(digits, monkeypatch):
    monkeypatch.setattr(
        features.inception_weights, "load", lambda *_, **__: Weights(np.zeros(1), "ab", "")
    )
    spaces = [features.pixels(), features.inception(), features.classifier(digits, say=quiet)]
    assert {space.name for space in spaces} == features.EXTRACTORS.keys()
    assert [space.name for space in spaces if "FID" in space.frechet] == ["inception"]
    for space in spaces:
        assert json.loads(json.dumps(space.protocol)) == space.protocol
        assert "127.5" in space.protocol["images"]
