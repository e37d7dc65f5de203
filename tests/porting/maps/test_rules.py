"""Name maps cover all tensors and parameters exactly, and report all mismatches at once."""

import jax
import ml_dtypes
import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.porting.maps import rules

MAP = [
    rules.Rule(r"(\w+)\.weight", r"net/\1/kernel", rules.transposed),
    rules.Rule(r"(\w+)\.bias", r"net/\1/bias"),
    rules.Rule(r"twin\.b", "net/a/bias"),
    rules.Rule(r"(\w+)\.conv", r"net/\1/conv", rules.oihw_to_hwio),
    rules.Rule(r".*\.filter", None),
]
TEMPLATE = {"net": {"a": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}}}
GOOD = {"a.weight": np.arange(6.0).reshape(3, 2), "a.bias": np.ones(3), "a.filter": np.ones(4)}


def test_every_parameter_is_filled_in_our_layout():
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
def test_mismatches_are_named(change, message):
    with pytest.raises(ConfigError) as error:
        rules.apply(MAP, GOOD | change, TEMPLATE)
    assert message in str(error.value)


def test_all_mismatches_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        rules.apply(MAP, {"extra": np.ones(2), "a.bias": np.ones(3)}, TEMPLATE)
    assert "no rule for tensor extra" in str(error.value)
    assert "nothing fills net/a/kernel (2, 3)" in str(error.value)
    assert str(error.value).startswith("2 mismatches between its 2 tensors")


# Two layers whose kernel (in, 3 * out) holds queries, keys and values; one bias, copied per layer.
NAMES = [
    rules.Name("layers.{}.q.weight", "blocks/qkv", rules.LINEAR, part=(0, 3)),
    rules.Name("layers.{}.k.weight", "blocks/qkv", rules.LINEAR, part=(1, 3)),
    rules.Name("layers.{}.v.weight", "blocks/qkv", rules.LINEAR, part=(2, 3)),
    rules.Name("stem.weight", "stem/kernel", rules.CONVOLUTION),
    rules.Name("layers.{}.shared", "shared", copies=True),
]
STACKED = {
    "blocks": {"qkv": np.zeros((2, 4, 15), ml_dtypes.bfloat16)},
    "stem": {"kernel": np.zeros((3, 3, 2, 4), np.float32)},
    "shared": np.zeros(3, np.float32),
}
RULES = [name.rule() for name in NAMES]


def foreign_layers():
    rng = np.random.default_rng(0)
    tensors = {
        f"layers.{layer}.{name}.weight": rng.integers(-9, 9, (5, 4)).astype(np.float32)
        for layer in range(2)
        for name in "qkv"
    }
    tensors["stem.weight"] = rng.normal(size=(4, 2, 3, 3)).astype(np.float32)
    return tensors | {f"layers.{layer}.shared": np.arange(3.0) for layer in range(2)}


def test_layers_are_stacked_and_parts_joined_in_the_templates_dtype():
    tensors = foreign_layers()
    filled = rules.apply(RULES, tensors, STACKED)
    assert filled["blocks"]["qkv"].dtype == ml_dtypes.bfloat16
    for layer in range(2):
        parts = [tensors[f"layers.{layer}.{name}.weight"].T for name in "qkv"]
        found = filled["blocks"]["qkv"][layer].astype(np.float32)
        np.testing.assert_array_equal(found, np.concatenate(parts, axis=1))
    np.testing.assert_array_equal(filled["shared"], np.arange(3))


def test_export_inverts_apply():
    tensors = foreign_layers()
    again = rules.export(NAMES, rules.apply(RULES, tensors, STACKED), depth=2)
    assert again.keys() == tensors.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value.astype(np.float32), tensors[name])
        assert value.flags.c_contiguous


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.2.q.weight": np.ones((5, 4))}, "maps to blocks/qkv[2], which this network"),
        ({"layers.1.v.weight": None}, "100 of 120 elements fill blocks/qkv (2, 4, 15)"),
        ({"layers.0.q.weight": np.ones((6, 4))}, "arrives at blocks/qkv[0] as (4, 6), expected"),
        (
            {"layers.1.shared": np.ones(3)},
            "layers.1.shared differs from the tensor that filled shared",
        ),
        ({"layers.00.q.weight": np.ones((5, 4))}, "maps to blocks/qkv[0], which is filled already"),
        ({"layers.11111.q.weight": np.ones((5, 4))}, "no rule for tensor layers.11111.q.weight"),
    ],
)
def test_mismatches_with_stacked_layers_are_named(change, message):
    tensors = {k: v for k, v in (foreign_layers() | change).items() if v is not None}
    with pytest.raises(ConfigError) as error:
        rules.apply(RULES, tensors, STACKED)
    assert message in str(error.value)


def test_a_template_larger_than_the_file_allocates_no_memory():
    claimed = {"blocks": {"qkv": jax.ShapeDtypeStruct((2, 10**7, 3 * 10**7), np.float32)}}
    with pytest.raises(ConfigError, match="elements|nothing fills|arrives at") as error:
        rules.apply(RULES, foreign_layers(), claimed)
    assert "layers.0.q.weight arrives at blocks/qkv[0] as (4, 5)" in str(error.value)


WORDS = [
    rules.Name("model.{half}.{block}.weight", "net/{half}/{block}/kernel", rules.LINEAR),
    rules.Name("model.{half}.{block}_aux.weight", "net/{half}/{block}/aux/kernel"),
]


def test_a_word_in_braces_is_the_same_in_name_and_path():
    tensors = {
        "model.enc.8x8_in0.weight": np.arange(6.0, dtype=np.float32).reshape(3, 2),
        "model.dec.8x8_up.weight": np.ones((1, 2), np.float32),
    }
    like = {
        "net": {
            "enc": {"8x8_in0": {"kernel": np.zeros((2, 3), np.float32)}},
            "dec": {"8x8_up": {"kernel": np.zeros((2, 1), np.float32)}},
        }
    }
    filled = rules.apply([name.rule() for name in WORDS], tensors, like)
    np.testing.assert_array_equal(filled["net"]["enc"]["8x8_in0"]["kernel"][1], [1, 3, 5])
    again = rules.export(WORDS, filled)
    assert again.keys() == tensors.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value, tensors[name])


def test_a_word_in_braces_has_no_dots_or_slashes():
    tensors = {"model.enc.8x8.norm.weight": np.ones((1, 2))}
    with pytest.raises(ConfigError, match="no rule for tensor model.enc.8x8.norm.weight"):
        rules.apply([name.rule() for name in WORDS], tensors, {})
    assert rules.export(WORDS, {"net": {"enc": {"8x8": {"in": {"kernel": np.ones((1, 2))}}}}}) == {}
