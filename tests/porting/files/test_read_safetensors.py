"""safetensors files are read exactly, in order, as views."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as library

from simjax.errors import ConfigError
from simjax.porting.files import read_safetensors
from tests.helpers import files

TENSORS = {
    "z.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.half": np.array([1.5, -2], np.float16),
    "b.brain": np.array([[1.5], [-2]], ml_dtypes.bfloat16),
    "count": np.array(7, np.int64),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float64),
    "bytes": np.array([1, 255], np.uint8),
    "wide": np.array([2**63 + 5], np.uint64),
}


def same(got, expected):
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(got[name], expected[name], strict=True)


def test_tensors_are_read_exactly(tmp_path):
    files.write_safetensors(tmp_path / "w.safetensors", TENSORS)
    got = read_safetensors.read(tmp_path / "w.safetensors")
    same(got, TENSORS)
    assert list(got) == list(TENSORS)
    assert not got["z.weight"].flags.owndata


def test_files_of_the_safetensors_library_are_read_exactly(tmp_path):
    library.save_file(TENSORS, tmp_path / "w.safetensors", metadata={"format": "np"})
    same(read_safetensors.read(tmp_path / "w.safetensors"), TENSORS)


def test_the_safetensors_library_reads_the_tests_files(tmp_path):
    files.write_safetensors(tmp_path / "w.safetensors", TENSORS)
    same(library.load_file(tmp_path / "w.safetensors"), TENSORS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F8_E4M3"}, "w has an unsupported dtype; known: F64"),
        ({"dtype": ["F32"]}, "w has an unsupported dtype; known: F64"),
        ({"shape": [3]}, "w lies at 0 to 8 of 8 bytes, expected 3 x 4"),
        ({"shape": [-1, -2]}, "shape or offsets are not lists of nonneg"),
        ({"shape": [2.0]}, "shape or offsets are not lists of nonneg"),
        ({"shape": [True, 2]}, "shape or offsets are not lists of nonneg"),
        ({"shape": [1] * 65 + [2]}, "shape or offsets are not lists of nonneg"),
        ({"shape": [2**64, 0]}, "shape or offsets are not lists of nonneg"),
        ({"shape": [1], "data_offsets": [4, 8]}, "a gap of 4 bytes before w, expected 0"),
        ({"shape": [1], "data_offsets": [0, 4]}, "a gap of 4 bytes before its end, expec"),
        ({"data_offsets": [0, 8, 8]}, "damaged"),
        ({"data_offsets": [8, 16]}, "w lies at 8 to 16 of 8"),
        ({"extra": 1}, "w lacks a dtype"),
    ],
)
def test_inconsistent_entries_are_refused_by_name(tmp_path, change, message):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change
    text = json.dumps({"w": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ConfigError) as error:
        read_safetensors.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
