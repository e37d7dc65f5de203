"""TensorFlow Datasets without TensorFlow; with it: tests/with_tensorflow."""

import importlib.util

import pytest

from simjax import data
from simjax.errors import ConfigError


def test_an_unprepared_data_set_without_tensorflow_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else found(name)
    )
    with pytest.raises(ConfigError, match=r'tfds:cifar10 .*pip install "simjax\[tensorboard\]"'):
        data.open("tfds:cifar10")
    with pytest.raises(ConfigError, match="tfds:no_such_set, split 'train': .* not found"):
        data.open("tfds:no_such_set")
