"""Name maps cover exactly, and report all that does not fit at once."""

import numpy as np
import pytest

from simjax import config
from simjax.porting import rules

MAP = [
    rules.Rule(r"(\w+)\.weight", r"net/\1/kernel", rules.transposed),
    rules.Rule(r"(\w+)\.bias", r"net/\1/bias"),
    rules.Rule(r"twin\.b", "net/a/bias"),
    rules.Rule(r"(\w+)\.conv", r"net/\1/conv", rules.oihw_to_hwio),
    rules.Rule(r".*\.filter", None),
]
TEMPLATE = {"net": {"a": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}}
GOOD = {"a.weight": np.arange(6.0).reshape(3, 2), "a.bias": np.ones(3), "a.filter": np.ones(4)}


def test_every_parameter_is_filled_in_its_own_layout():
    filled = rules.apply(MAP, GOOD, TEMPLATE)
    np.testing.assert_array_equal(filled["net"]["a"]["kernel"], [[0, 2, 4], [1, 3, 5]])
    assert filled["net"]["a"]["bias"].dtype == np.float32
    assert filled.keys() == {"net"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": np.ones(2)}, "no rule for tensor extra (2,)"),
        ({"b.bias": np.ones(2)}, "b.bias maps to net/b/bias, which this network does not have"),
        ({"a.bias": np.ones(4)}, "a.bias arrives at net/a/bias as (4,), expected (3,)"),
        ({"a.conv": np.ones((2, 2))}, "a.conv (2, 2) cannot be laid out as net/a/conv"),
        ({"twin.b": np.ones(3)}, "twin.b maps to net/a/bias, which is filled already"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(config.ConfigError) as error:
        rules.apply(MAP, GOOD | change, TEMPLATE)
    assert message in str(error.value)


def test_all_problems_come_at_once():
    with pytest.raises(config.ConfigError) as error:
        rules.apply(MAP, {"extra": np.ones(2), "a.bias": np.ones(3)}, TEMPLATE)
    assert "no rule for tensor extra" in str(error.value)
    assert "nothing fills net/a/kernel (2, 3)" in str(error.value)
    assert str(error.value).startswith("2 misfits between its 2 tensors")
