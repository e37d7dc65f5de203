"""Data sets of TensorFlow Datasets, mocked and prepared."""

import os
import subprocess
import sys

import numpy as np
import pytest

from simjax import data
from simjax.errors import ConfigError


def test_a_mocked_data_set_is_read_and_an_unknown_one_raises(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with tfds.testing.mock_data(num_examples=5):
        found = data.open("tfds:cifar10", split="test")
        expected = list(tfds.data_source("cifar10", split="test"))
        assert (found.size, found.shape, found.label_dim) == (5, (32, 32, 3), 10)
        assert found.load().dtype == np.uint8
        chosen = np.array([4, 1])
        np.testing.assert_array_equal(
            found.read(chosen), [expected[index]["image"] for index in chosen]
        )
        assert list(found.labels) == [example["label"] for example in expected]
        with pytest.raises(ConfigError, match="tfds:imdb_reviews has features .* image None"):
            data.open("tfds:imdb_reviews")
    with pytest.raises(ConfigError, match="tfds:no_such_set, split 'train': .* not found"):
        data.open("tfds:no_such_set")


def test_a_prepared_data_set_is_read_without_tensorflow(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    def examples(*_):
        return ((n, {"id": str(n), "image": image, "label": n}) for n, image in enumerate(images))

    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    kind = tfds.builder_cls("cifar10")
    monkeypatch.setattr(kind, "_split_generators", lambda *_: {"train": examples()})
    tfds.builder("cifar10", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "images.npy")],
        env=os.environ | {"TFDS_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "images.npy")
    assert sorted(map(bytes, found)) == sorted(map(bytes, images))  # shuffled when prepared


READ = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(  # hides tensorflow
    lambda cls, name, *others: None if name.startswith("tensorflow.") or name == "tensorflow"
    else find(name, *others)
)
import numpy
from simjax import data
found = data.open("tfds:cifar10")
assert sorted(found.labels) == list(range(6)), found.labels
numpy.save(sys.argv[1], found.load())
"""
