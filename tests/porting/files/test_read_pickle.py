"""NVIDIA's network pickles: names, order, values and arguments are read; no code is executed."""

import ml_dtypes
import numpy as np
import pytest

from simjax.errors import ConfigError
from simjax.porting.files import read_pickle
from tests.helpers import files

ARGUMENTS = {
    "img_resolution": 32,
    "label_dim": 10,
    "use_fp16": False,
    "model_type": "SongUNet",
    "sigma_max": float("inf"),
    "channel_mult": [2, 2, 2],
    "resample_filter": (1, 1),
    "options": {"eps": 1e-6, "bias": None},
}
RNG = np.random.default_rng(0)
TENSORS = {
    "scale": RNG.standard_normal(3, np.float32),
    "model.map_noise.freqs": RNG.standard_normal(4, np.float32),
    "model.map_layer0.weight": RNG.standard_normal((4, 4)).astype(np.float16),
    "model.map_layer0.bias": RNG.standard_normal(4, np.float32),
    "model.enc.32x32_conv.weight": RNG.standard_normal((4, 3, 3, 3), np.float32),
    "model.enc.32x32_conv.bias": RNG.standard_normal(4).astype(ml_dtypes.bfloat16),
    "model.enc.32x32_conv.resample_filter": np.full((1, 1, 2, 2), 0.25, np.float32),
    "model.dec.32x32_block0.count": np.array(5, np.int64),
}
BUFFERS = ("model.map_noise.freqs", "model.enc.32x32_conv.resample_filter")


def same(got, expected):
    assert list(got) == list(expected)
    for name in got:
        assert got[name].dtype == expected[name].dtype, name
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name, strict=True)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_network_is_read_exactly(tmp_path, protocol):
    path = tmp_path / "net.pkl"
    others = {
        "loss_fn": files.Call("torch_utils.persistence._reconstruct_persistent_obj", {"state": {}}),
        "augment_pipe": None,
        "dataset_kwargs": {"path": "cifar10.zip"},
    }
    files.write_network_pickle(
        path, "EDMPrecond", ARGUMENTS, TENSORS, buffers=BUFFERS, others=others, protocol=protocol
    )
    network = read_pickle.read_network(path)
    assert network.class_name == "EDMPrecond"
    assert network.arguments == ARGUMENTS
    assert network.positional == ()
    same(network.tensors, TENSORS)


def test_module_source_is_not_executed(tmp_path):
    path, marker = tmp_path / "net.pkl", tmp_path / "marker"
    source = f"open({str(marker)!r}, 'w').close()\n" * 1000
    files.write_network_pickle(path, "EDMPrecond", {}, TENSORS, module_source=source)
    read_pickle.read_network(path)
    assert not marker.exists()


def test_parameters_come_before_buffers_before_children(tmp_path):
    names = ["a.deep.weight", "own_buffer", "a.weight", "own_parameter", "a.b_buffer"]
    tensors = {name: np.full(2, i, np.float32) for i, name in enumerate(names)}
    files.write_network_pickle(
        tmp_path / "net.pkl", "Net", {}, tensors, buffers=("own_buffer", "a.b_buffer")
    )
    order = ["own_parameter", "own_buffer", "a.weight", "a.b_buffer", "a.deep.weight"]
    network = read_pickle.read_network(tmp_path / "net.pkl")
    same(network.tensors, {name: tensors[name] for name in order})


def test_non_persistent_buffers_and_missing_parts_are_left_out(tmp_path):
    tensors = {"a.weight": np.ones(2), "a.cache": np.ones(3), "a.kept": np.ones(1)}
    options = {"buffers": ("a.kept",), "passing_buffers": ("a.cache",)}
    files.write_network_pickle(tmp_path / "net.pkl", "Net", {}, tensors, **options)
    network = read_pickle.read_network(tmp_path / "net.pkl")
    assert list(network.tensors) == ["a.weight", "a.kept"]
    without_bias = files.network("Net", {}, {"a.weight": np.ones(2)})
    without_bias.args[0]["state"]["_parameters"]["bias"] = None
    without_bias.args[0]["state"]["_modules"]["skip"] = None
    (tmp_path / "none.pkl").write_bytes(files.dumps({"ema": without_bias}))
    assert list(read_pickle.read_network(tmp_path / "none.pkl").tensors) == ["a.weight"]


def test_views_share_a_storage_and_a_tensor_may_have_two_names(tmp_path):
    base = RNG.standard_normal((4, 6)).astype(np.float32)
    tensors = {"a.w": base, "b.transposed": base.T, "c.part": base[1:3, ::2], "d.again": base}
    path = tmp_path / "net.pkl"
    files.write_network_pickle(path, "Net", {}, tensors)
    network = read_pickle.read_network(path)
    same(network.tensors, tensors)
    assert np.shares_memory(network.tensors["a.w"], network.tensors["b.transposed"])
    assert path.stat().st_size < 2 * base.nbytes + 8000  # stored once


def test_tensors_are_views_of_the_file(tmp_path):
    files.write_network_pickle(tmp_path / "net.pkl", "Net", {}, {"w": np.ones(3, np.float32)})
    tensor = read_pickle.read_network(tmp_path / "net.pkl").tensors["w"]
    assert not tensor.flags.owndata
    assert not tensor.flags.writeable


def test_positional_arguments_are_separate(tmp_path):
    files.write_network_pickle(tmp_path / "net.pkl", "Net", {"b": 2}, {}, positional=(32, "x"))
    network = read_pickle.read_network(tmp_path / "net.pkl")
    assert (network.positional, network.arguments) == ((32, "x"), {"b": 2})


def test_the_ema_network_is_preferred(tmp_path):
    def net(value):
        return files.network("Net", {"value": value}, {"w": np.ones(1)})

    def chosen(contents):
        (tmp_path / "net.pkl").write_bytes(files.dumps(contents))
        return read_pickle.read_network(tmp_path / "net.pkl").arguments["value"]

    assert chosen({"G": net(1), "G_ema": net(2), "ema": net(3)}) == 3
    assert chosen({"G": net(1), "D": net(2), "G_ema": net(3)}) == 3
    assert chosen({"epoch": 3, "net": net(1)}) == 1
    assert chosen(net(4)) == 4
    for contents in ({"G": net(1), "D": net(2)}, {"ema": None, "net": net(1)}):
        with pytest.raises(ConfigError, match=r"net\.pkl: holds . networks, none under ema or G_"):
            chosen(contents)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"epoch": 3, "loss": files.Name("a.Loss")}, "; it has: epoch (a int), loss (a.Loss)"),
        ([1, 2], "holds a list, expected a dict of networks"),
        ({}, "holds 0 networks"),
    ],
)
def test_the_error_for_a_file_without_a_network_lists_its_contents(tmp_path, contents, message):
    (tmp_path / "net.pkl").write_bytes(files.dumps(contents))
    with pytest.raises(ConfigError) as error:
        read_pickle.read_network(tmp_path / "net.pkl")
    assert message in str(error.value)


@pytest.mark.parametrize("value", [files.Name("a.b"), {1, 2}, b"bytes", np.ones(2)])
def test_arguments_that_are_not_plain_values_are_refused(tmp_path, value):
    files.write_network_pickle(tmp_path / "net.pkl", "Net", {"x": [value]}, {"w": np.ones(1)})
    with pytest.raises(ConfigError, match="its constructor.s arguments: .* is not a plain value"):
        read_pickle.read_network(tmp_path / "net.pkl")
