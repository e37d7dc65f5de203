"""Hostile and broken files: one ConfigError naming the file, no code executed, bounded memory."""

import os
import random

import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.porting.files import foreign_file, read_pickle, read_safetensors, read_torch
from tests.helpers import files, memory
from tests.helpers.hostile import READERS, cases
from tests.helpers.hostile_pickles import CODE, COMMAND, ONE


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_a_hostile_file_is_refused_with_little_memory(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foreign_file, "SMALL_FILE_BYTES", 2**21)  # a tight budget
    data = case.data() if callable(case.data) else case.data
    path = tmp_path / "weights.bin"
    path.write_bytes(data)

    def refusal() -> ConfigError:
        with pytest.raises(ConfigError) as error:
            case.read(path)
        return error.value

    error, peak = memory.peak(refusal)
    assert type(error) is ConfigError
    assert str(error).startswith(f"{path}: ")
    assert case.message in str(error)
    assert len(str(error)) < 1000
    assert str(error).isprintable()
    assert peak < 2 * len(data) + foreign_file.SMALL_FILE_BYTES
    assert os.listdir(tmp_path) == ["weights.bin"]


@pytest.mark.parametrize("size", [0, 10**6, 10**9])
def test_budget_plus_mapped_file_are_at_most_twice_the_file_plus_16_mib(size):
    assert size + foreign_file.Budget(size).left <= 2 * size + 2**24


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__module__)
def test_folders_pipes_and_devices_are_refused(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ConfigError, match="not a regular file; give the path of a weight file"):
            read(path)
    with pytest.raises(ConfigError):
        read("nul\0")
    with pytest.raises(ConfigError, match="missing: No such file or directory; give the path"):
        read(tmp_path / "missing")


def test_code_next_to_a_valid_network_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = {"loss_fn": files.Call("os.system", COMMAND), "x": files.Call("builtins.exec", CODE)}
    path = tmp_path / "net.pkl"
    files.write_network_pickle(path, "Net", {}, {"w": ONE}, others=others)
    assert list(read_pickle.read_network(path).tensors) == ["w"]
    assert os.listdir(tmp_path) == ["net.pkl"]


def test_nonfinite_weights_are_refused(tmp_path):
    path = tmp_path / "net.pkl"
    tensors = {"a.w": np.array([1, np.nan], np.float16), "a.b": ONE}
    files.write_network_pickle(path, "Net", {}, tensors)
    with pytest.raises(ConfigError, match=r"net\.pkl: 1 of 2 tensors hold NaN .*\(a\.w\)"):
        foreign_file.refuse_nonfinite(read_pickle.read_network(path).tensors, path)


def _write_network(path):
    files.write_network_pickle(path, "Net", {"x": 1}, {"a.w": ONE, "b.c.w": ONE.astype(np.float16)})


def _write_zip(path):
    files.write_torch_zip(path, {"a.w": ONE, "b": ONE.astype(np.int8)})


def _write_stream(path):
    files.write_torch_stream(path, {"a.w": ONE, "b": ONE.astype(np.int8)})


def _write_safetensors(path):
    files.write_safetensors(path, {"a.w": ONE, "b": ONE.astype(np.int8)})


KINDS = {
    "network": (_write_network, read_pickle.read_network, read_pickle.Network),
    "zip": (_write_zip, read_torch.read, object),
    "stream": (_write_stream, read_torch.read, object),
    "safetensors": (_write_safetensors, read_safetensors.read, dict),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused(tmp_path, kind):
    write, read, _ = KINDS[kind]
    path = tmp_path / "good"
    write(path)
    read(path)
    data, rng = path.read_bytes(), random.Random(0)
    for length in [0, 1, len(data) - 1, *(rng.randrange(len(data)) for _ in range(50))]:
        path.write_bytes(data[:length])
        with pytest.raises(ConfigError):
            read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_read_or_refused(tmp_path, kind):
    write, read, expected = KINDS[kind]
    path = tmp_path / "good"
    write(path)
    data, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(200):
        position, damaged = rng.randrange(len(data)), bytearray(data)
        damaged[position] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            assert isinstance(read(path), expected)
        except ConfigError:
            refused += 1
    assert refused > 20  # flips hit structure as well as data
