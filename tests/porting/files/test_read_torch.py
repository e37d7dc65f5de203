"""torch.save files, zip and stream: arrays are read exactly, as views of the file."""

import collections
import zipfile

import ml_dtypes
import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.porting.files import foreign_file, placeholders, read_torch
from tests.helpers import files

WRITERS = [files.write_torch_zip, files.write_torch_stream]
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16]
DTYPES += [np.int8, np.uint8, np.bool_]


def same(got: np.ndarray, expected: np.ndarray):
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_exactly(tmp_path, write, dtype):
    array = (np.arange(24).reshape(2, 3, 4) - 11).astype(dtype)
    write(tmp_path / "w.pt", {"w": array, "scalar": array[1, 1, 1], "none": array[:0]})
    got = read_torch.read(tmp_path / "w.pt")
    same(got["w"], array)
    same(got["none"], array[:0])


@pytest.mark.parametrize("write", WRITERS)
def test_views_share_their_storage(tmp_path, write):
    base = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    tensors = collections.OrderedDict(
        whole=base,
        transposed=base.T,
        part=base[2:4, 1::3],
        again=base,
        point=base[3, 5:6].reshape(()),
    )
    write(tmp_path / "w.pt", {"state_dict": tensors, "epoch": 3})
    got = read_torch.read(tmp_path / "w.pt")
    assert got["epoch"] == 3
    assert list(got["state_dict"]) == list(tensors)
    for name, array in tensors.items():
        same(got["state_dict"][name], array)
    assert np.shares_memory(got["state_dict"]["whole"], got["state_dict"]["part"])


@pytest.mark.parametrize("write", WRITERS)
def test_arrays_are_read_only_views(tmp_path, write):
    write(tmp_path / "w.pt", {"w": np.ones((3, 3), np.float32)})
    array = read_torch.read(tmp_path / "w.pt")["w"]
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 2


@pytest.mark.parametrize("write", WRITERS)
def test_parameters_sizes_and_objects_are_read(tmp_path, write):
    write(
        tmp_path / "w.pt",
        {
            "p": files.Parameter(np.ones(2, np.float32)),
            "size": files.Call("torch.Size", (2, 3)),
            "dtype": files.Name("torch.float32"),
            "args": files.Call("argparse.Namespace", state={"lr": 0.1}),
        },
    )
    got = read_torch.read(tmp_path / "w.pt")
    same(got["p"], np.ones(2, np.float32))
    assert got["size"] == (2, 3)
    assert got["dtype"] == placeholders.Name("torch.float32")
    assert got["args"].state == {"lr": 0.1}


@pytest.mark.parametrize("write", WRITERS)
def test_attributes_of_a_state_dict_and_of_a_tensor_are_dropped(tmp_path, write):
    class StateDict(collections.OrderedDict):
        def __reduce_ex__(self, protocol):
            items = iter(list(self.items()))
            return files.Name("collections.OrderedDict"), (), {"_metadata": {}}, None, items

    array = np.arange(4, dtype=np.float32)
    storage = files.Storage(array)
    args = (storage, 1, (2,), (2,), False, collections.OrderedDict())
    marked = files.Call(
        "torch._tensor._rebuild_from_type_v2",
        files.Name("torch._utils._rebuild_tensor_v2"),
        files.Name("torch.Tensor"),
        args,
        {"foo": 1},
    )
    write(tmp_path / "w.pt", StateDict(a=array, b=marked))
    got = read_torch.read(tmp_path / "w.pt")
    same(got["a"], array)
    same(got["b"], array[1::2])


def test_nonfinite_tensors_are_refused_by_name(tmp_path):
    tensors = {"good": np.ones(2), "bad": np.array([1, np.nan]), "worse": np.array([np.inf])}
    tensors |= {"count": np.array([3]), "half": np.array([-np.inf], ml_dtypes.bfloat16)}
    with pytest.raises(ConfigError) as error:
        foreign_file.refuse_nonfinite(tensors, "w.pt")
    assert "w.pt: 3 of 5 tensors hold NaN or infinity (bad, worse, half)" in str(error.value)
    foreign_file.refuse_nonfinite({"good": np.ones(2), "count": np.array([3])}, "w.pt")


def test_the_archives_root_folder_may_have_any_name(tmp_path):
    files.write_torch_zip(tmp_path / "w.pt", {"w": np.ones(1)}, root="PixArt-XL-2/x")
    same(read_torch.read(tmp_path / "w.pt")["w"], np.ones(1))


def test_other_zip_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(ConfigError, match=r"w\.pt: a zip archive with 0 data\.pkl"):
        read_torch.read(tmp_path / "w.pt")
