"""Config serialisation: round trip, and configs of earlier versions."""

import json

import pytest

from simjax import config
from simjax.errors import ConfigError
from tests.helpers.configs import load


def test_round_trip_through_json():
    for name in ("digits", "cifar10"):
        options = load(name)
        assert config.from_dict(json.loads(json.dumps(config.to_dict(options)))) == options


def test_removed_fields_are_read_if_their_value_is_still_supported():
    options = load("digits")
    earlier = config.to_dict(options) | {"mode": "distill", "share_samples": False}
    assert config.from_dict(earlier) == options


@pytest.mark.parametrize("field", [{"share_samples": True}, {"mode": "port"}, {"nothing": 1}])
def test_unknown_fields_are_refused(field):
    (name,) = field
    with pytest.raises(
        ConfigError, match=f"Config has no field {name}; was it written by another version"
    ):
        config.from_dict(config.to_dict(load("digits")) | field)
