"""Files written by torch are read back exactly."""

import copy
import inspect
import pickle
import sys
import types

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from simjax.porting.files import foreign_file, read_pickle, read_safetensors, read_torch

PERSISTENCE = "torch_utils.persistence"
DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


def same(got: np.ndarray, tensor: torch.Tensor):
    assert got.dtype == DTYPES[tensor.dtype]
    assert got.shape == tuple(tensor.shape)
    wide = torch.float64 if tensor.is_floating_point() else torch.int64
    np.testing.assert_array_equal(got.astype(np.float64), tensor.detach().to(wide).numpy())


def save_zip(value, path):
    torch.save(value, path)


def save_stream(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


SAVES = pytest.mark.parametrize("save", [save_zip, save_stream])


@SAVES
@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_dtypes(tmp_path, save, dtype):
    tensor = (torch.arange(24).reshape(2, 3, 4) - 11).to(dtype)
    save({"w": tensor, "scalar": tensor[1, 1, 1], "empty": tensor[:0]}, tmp_path / "w.pt")
    got = read_torch.read(tmp_path / "w.pt")
    same(got["w"], tensor)
    same(got["scalar"], tensor[1, 1, 1])
    same(got["empty"], tensor[:0])


@SAVES
def test_views_and_shared_storages(tmp_path, save):
    base = torch.randn(6, 8)
    tensors = {
        "base": base,
        "transposed": base.T,
        "part": base[2:4, 1::3],
        "again": base,
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "diagonal": base.diagonal(),
    }
    save(tensors, tmp_path / "w.pt")
    got = read_torch.read(tmp_path / "w.pt")
    for name, tensor in tensors.items():
        same(got[name], tensor)
    assert np.shares_memory(got["base"], got["part"])


@SAVES
def test_a_training_state(tmp_path, save):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    marked = torch.randn(3)
    marked.foo = "bar"
    state = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 1,
        "size": torch.Size([2, 3]),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "marked": marked,
        "dtype": torch.float32,
    }
    save(state, tmp_path / "w.pt")
    got = read_torch.read(tmp_path / "w.pt")
    assert list(got["model"]) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        same(got["model"][name], tensor)
    same(got["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    same(got["parameter"], state["parameter"])
    same(got["marked"], marked)
    assert got["size"] == (2, 3)
    assert got["step"] == 1
    assert got["dtype"].full == "torch.float32"


@SAVES
def test_many_small_tensors_are_within_the_object_limit(tmp_path, save):
    state = {f"block{n}.weight": torch.full((2,), n) for n in range(2000)}
    save(state, tmp_path / "w.pt")
    got = read_torch.read(tmp_path / "w.pt")
    same(got["block1999.weight"], state["block1999.weight"])


def test_safetensors(tmp_path):
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"format": "pt"})
    got = read_safetensors.read(tmp_path / "w.safetensors")
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        same(got[name], tensor)


@pytest.fixture
def persistent(monkeypatch):
    """A class decorator that pickles instances with their source, like NVIDIA's persistence."""
    module = types.ModuleType(PERSISTENCE)

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("only written, never called")

    _reconstruct_persistent_obj.__module__ = PERSISTENCE
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, PERSISTENCE, module)
    source = inspect.getsource(sys.modules[__name__])

    def decorate(kind):
        class Persistent(kind):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self._init_args = copy.deepcopy(args)
                self._init_kwargs = copy.deepcopy(kwargs)

            def __reduce__(self):
                fields = [*super().__reduce__(), None, None, None][:5]
                meta = {
                    "type": "class",
                    "version": 6,
                    "module_src": source,
                    "class_name": kind.__name__,
                    "state": fields[2],
                }
                return _reconstruct_persistent_obj, (meta,), None, *fields[3:]

        return Persistent

    return decorate


def small_networks(persistent) -> torch.nn.Module:
    """A network with ModuleDicts, buffers, missing biases and tied weights, like EDM's."""

    @persistent
    class Block(torch.nn.Module):
        def __init__(self, channels, bias=True):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(channels, channels, 3, 3))
            self.bias = torch.nn.Parameter(torch.randn(channels)) if bias else None
            self.register_buffer("resample_filter", torch.ones(1, 1, 2, 2))
            self.register_buffer("cache", torch.ones(3), persistent=False)
            self.register_buffer("absent", None)
            self.norm = torch.nn.BatchNorm2d(channels)

    @persistent
    class SongUNet(torch.nn.Module):
        def __init__(self, img_resolution, channel_mult=(1, 2)):
            super().__init__()
            self.enc = torch.nn.ModuleDict(
                {f"{img_resolution}x{img_resolution}_block{n}": Block(4, n > 0) for n in range(2)}
            )
            self.dec = torch.nn.ModuleDict({"16bit": Block(channels=2).half()})
            self.tied = torch.nn.Linear(4, 4)
            self.tied.weight = self.enc[f"{img_resolution}x{img_resolution}_block1"].norm.weight

    @persistent
    class EDMPrecond(torch.nn.Module):
        def __init__(self, img_resolution, use_fp16=False, sigma_max=float("inf"), **kwargs):
            super().__init__()
            self.sigma_max = sigma_max
            self.model = SongUNet(img_resolution=img_resolution, **kwargs)

    return EDMPrecond(img_resolution=8, use_fp16=True, channel_mult=[2, 2])


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_persistent_network(tmp_path, persistent, protocol, monkeypatch):
    net = small_networks(persistent).eval().requires_grad_(False)
    contents = {"ema": net, "loss_fn": None, "augment_pipe": None, "dataset_kwargs": {"path": "x"}}
    path = tmp_path / "net.pkl"
    with open(path, "wb") as file:
        pickle.dump(contents, file, protocol=protocol)
    monkeypatch.setattr(foreign_file, "SMALL_FILE_BYTES", 2**20)
    got = read_pickle.read_network(path)
    assert got.class_name == "EDMPrecond"
    assert got.arguments == {"img_resolution": 8, "use_fp16": True, "channel_mult": [2, 2]}
    assert list(got.tensors) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        same(got.tensors[name], tensor)


def test_a_plain_module(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"net": net}))
    got = read_pickle.read_network(path)
    assert (got.class_name, got.arguments) == ("Sequential", {})
    assert list(got.tensors) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        same(got.tensors[name], tensor)
