"""TensorFlow Datasets behind the same interface. One test: importing the library takes seconds."""

import numpy as np
import pytest

from simjax import data
from simjax.config import ConfigError


def test_a_mocked_data_set_is_read_and_an_unknown_one_refused(monkeypatch, tmp_path):
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
