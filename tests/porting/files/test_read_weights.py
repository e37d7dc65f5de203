"""Weight files, sharded indices and folders are read completely, or one error names all faults."""

import collections
import json
import os
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as library

from simjax.errors import ConfigError
from simjax.porting.files import foreign_file, read_weights
from simjax.porting.files.read_weights import read, unwrapped
from tests.helpers import files, memory, subprocesses

A = {"a.w": np.arange(6, dtype=np.float32).reshape(2, 3), "a.b": np.ones(3, np.float16)}
B = {"b.w": np.array([1.5, -2], ml_dtypes.bfloat16), "b.n": np.array(7, np.int64)}
TENSORS = A | B
MAP = dict.fromkeys(A, "one.bin") | dict.fromkeys(B, "two.bin")
SHARDS = {"one.bin": A, "two.bin": B}


def same(got, expected):
    assert list(got) == list(expected)
    for name in got:
        assert got[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(got[name], expected[name], strict=True)
        assert not got[name].flags.owndata
        assert not got[name].flags.writeable


def write_safetensors(path, tensors):
    library.save_file(tensors, path)


def write_index(folder, weight_map, shards, name="model.safetensors.index.json"):
    """An index and its shards, of either format."""
    for shard, tensors in shards.items():
        write = write_safetensors if shard.endswith(".safetensors") else files.write_torch_zip
        write(folder / shard, tensors)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / name).write_text(json.dumps(index))
    return folder / name


def refused(path) -> str:
    with pytest.raises(ConfigError) as error:
        read(path)
    return str(error.value)


# One file.


WRITERS = {
    "safetensors": write_safetensors,
    "zip": files.write_torch_zip,
    "stream": files.write_torch_stream,
}


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt", "pth", "ckpt", ""])
@pytest.mark.parametrize("kind", WRITERS)
def test_the_format_is_detected_from_the_content_not_the_suffix(tmp_path, kind, suffix):
    path = tmp_path / f"w.{suffix}"
    WRITERS[kind](path, TENSORS)
    found = read(str(path))
    same({name: found.tensors[name] for name in TENSORS}, TENSORS)
    assert found.tensors.keys() == TENSORS.keys()
    assert (found.config, found.files, found.key) == (None, [path], "")


def test_sims_student_is_read_without_name_prefixes(tmp_path):
    path = tmp_path / "student.pt"
    tensors = collections.OrderedDict((f"module.{name}", one) for name, one in TENSORS.items())
    files.write_torch_zip(path, {"ema": tensors})
    found = read(path)
    same(found.tensors, TENSORS)
    assert found.key == "ema"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module." * 2])
@pytest.mark.parametrize("kind", [*WRITERS, "index", "folder", "epochs"])
def test_prefixes_of_ddp_and_torch_compile_are_stripped(tmp_path, kind, prefix):
    wrapped = {prefix + name: tensor for name, tensor in TENSORS.items()}
    path = tmp_path / "model.safetensors"
    if kind == "index":
        homes = dict.fromkeys(wrapped, "one.bin")
        path = write_index(tmp_path, homes, {"one.bin": wrapped})
    elif kind == "epochs":
        files.write_torch_zip(path, {"model": wrapped, "epoch": 3})
    else:
        WRITERS.get(kind, write_safetensors)(path, wrapped)
    found = read(tmp_path if kind == "folder" else path).tensors
    same({name: found[name] for name in TENSORS}, TENSORS)
    assert found.keys() == TENSORS.keys()


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("first", "second"), [("module.", ""), ("_orig_mod.module.", "module.")])
def test_prefixes_on_only_some_tensors_are_refused(tmp_path, kind, first, second):
    path = tmp_path / "w"
    WRITERS[kind](path, {f"{first}a": A["a.w"], f"{second}b": A["a.b"]})
    message = refused(path)
    assert message.startswith(f"{path}: ") and "inside the wrapper" in message
    assert f"{first}a" in message and f"{second}b" in message


@pytest.mark.parametrize("content", [b"", b"\0" * 20, b"{}", b"12345678{", b"12345678[]"])
def test_unknown_formats_are_refused(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    assert refused(tmp_path / "w.pt").startswith(f"{tmp_path / 'w.pt'}: ")


def test_pipes_and_missing_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")
    assert "No such file or directory" in refused(tmp_path / "missing.pt")
    assert "No such file or directory" in refused(tmp_path / "missing.index.json")
    assert "nul" in refused("nul\0")


# Training checkpoints around a state dict.


@pytest.mark.parametrize(
    ("value", "key", "expected"),
    [
        (A, "", A),
        ({"state_dict": A}, "state_dict", A),
        ({"model": A, "epoch": 3}, "model", A),
        ({"ema": A}, "ema", A),
        ({"model": B, "ema": A, "opt": {"state": {0: A}}, "args": None}, "ema", A),
        ({"state_dict": B, "state_dict_ema": A, 0: "x"}, "state_dict_ema", A),
        ({"ema": None, "model": A}, "model", A),
        ({"ema": {}, "model": A}, "model", A),
        ({"model": "DiT-XL/2", "state_dict": A}, "state_dict", A),
        ({"model": A["a.w"]}, "", {"model": A["a.w"]}),  # a tensor of that name
    ],
)
def test_the_state_dict_of_a_checkpoint_is_found(value, key, expected):
    tensors, taken = unwrapped(value, "w.pt")
    assert taken == key
    assert list(tensors) == list(expected)
    assert all(tensors[name] is expected[name] for name in expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([A["a.w"]], "holds a list; expected tensors by name"),
        (A["a.w"], "holds a ndarray; expected"),
        ({}, "holds a dict of 0 tensors; expected"),
        (
            {"net": A, "epoch": 3},
            "holds a dict of 0 tensors, net (a dict), epoch (a int); expected",
        ),
        (A | {"step": 3}, "holds a dict of 2 tensors, step (a int); expected"),
        ({0: A["a.w"]}, "holds a dict of 0 tensors, a int (a ndarray); expected"),
        ({"ema": A, "w": A["a.w"]}, "holds a dict of 1 tensors, ema (a dict); expected"),
        ({"model": A, "state_dict": B}, "0 tensors, model (a dict), state_dict (a dict); expected"),
        ({"ema": A, "state_dict_ema": B}, "ema (a dict), state_dict_ema (a dict); expected"),
        ({"ema": A | {"decay": 0.9}, "model": A}, "its ema holds a dict of 2 tensors, decay (a f"),
        ({"ema": {0: A["a.w"]}}, "its ema holds a dict of 0 tensors, a int (a ndarray)"),
        ({"model": {"model": A}}, "its model holds a dict of 0 tensors, model (a dict)"),
        ({"\x1b[1m" + "k" * 999: 1}, "0 tensors, \\x1b[1m" + "k" * 76 + " (a int); expected"),
        ({str(n): n for n in range(999)}, "7 (a int), ...; expected"),
    ],
)
def test_other_contents_are_refused_and_described(value, message):
    with pytest.raises(ConfigError) as error:
        unwrapped(value, "w.pt")
    assert str(error.value).startswith("w.pt: ")
    assert message in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


# An index and its shards.


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_in_the_order_of_the_index(tmp_path, suffix):
    one, two = (f"model-0000{number}-of-00002.{suffix}" for number in (1, 2))
    homes = {"b.n": two, "a.b": one, "b.w": two, "a.w": one}
    path = write_index(tmp_path, homes, {one: A, two: B}, f"model.{suffix}.index.json")
    found = read(path)
    same(found.tensors, {name: TENSORS[name] for name in homes})
    assert (found.config, found.key) == (None, "")
    assert found.files == [path, tmp_path / two, tmp_path / one]


def test_a_shards_format_is_detected_from_its_content(tmp_path):
    path = write_index(tmp_path, MAP, {"one.bin": A})
    write_safetensors(tmp_path / "two.bin", B)
    same(read(path).tensors, TENSORS)


def test_shards_that_are_links_are_followed(tmp_path):
    """As in the Hugging Face Hub's cache, where every file is a symbolic link."""
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    write_index(tmp_path / "blobs", MAP, SHARDS)
    for name in ("model.safetensors.index.json", *SHARDS):
        (snapshot / name).symlink_to(tmp_path / "blobs" / name)
    same(read(snapshot).tensors, TENSORS)


def test_all_problems_of_shards_are_reported_at_once(tmp_path):
    shards = {
        "one.safetensors": A | {"stray": A["a.w"], "twice": A["a.w"], "unlisted twice": A["a.w"]},
        "two.safetensors": B | {"twice": A["a.w"], "unlisted twice": A["a.w"]},
    }
    homes = {
        "a.w": "two.safetensors",
        "a.b": "one.safetensors",
        "b.w": "two.safetensors",
        "b.n": "missing.safetensors",
        "lost": "one.safetensors",
        "gone": "also_missing.bin",
        "twice": "two.safetensors",
        "cut": "damaged.safetensors",
        "out": "../../etc/passwd",
    }
    path = write_index(tmp_path, homes, shards)
    (tmp_path / "damaged.safetensors").write_bytes((tmp_path / "one.safetensors").read_bytes()[:-1])
    lines = refused(path).splitlines()
    assert lines[0] == f"{path}: 10 problems with its shards:"
    expected = [
        f"{tmp_path}/missing.safetensors: No such file or directory",
        f"{tmp_path}/also_missing.bin: No such file or directory",
        f"{tmp_path}/damaged.safetensors: ",
        "shard ../../etc/passwd: not a plain file name",
        "lost is not in one.safetensors",
        "a.w is in one.safetensors, expected only in two.safetensors",
        "stray is in one.safetensors, but not in the index",
        "twice is in two.safetensors, one.safetensors, expected only in two.safetensors",
        "unlisted twice is in two.safetensors, one.safetensors, but not in the index",
        "b.n is in two.safetensors, expected only in missing.safetensors",
    ]
    problems = [line.removeprefix("  ") for line in lines[1:-1]]
    assert len(problems) == len(expected)
    for beginning in expected:
        assert sum(problem.startswith(beginning) for problem in problems) == 1, beginning


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../w.bin", "sub/w.bin", "sub\\w.bin", "/w.bin", "~", "C:w.bin"),
        *("w.bin\0", "w.bin\n", " w.bin", ".w.bin", "\u2025/w.bin", "x" * 201, "w" + "/../w.bin"),
    ],
)
def test_shard_names_that_are_paths_are_refused(tmp_path, name):
    """Some of these paths lead to a valid file, which must not be read."""
    inside = tmp_path / "folder"
    (inside / "sub").mkdir(parents=True)
    (inside / "w").mkdir()
    for place in (
        tmp_path / "w.bin",
        inside / "w.bin",
        inside / ".w.bin",
        inside / "sub" / "w.bin",
    ):
        files.write_torch_zip(place, A)
    path = write_index(inside, dict.fromkeys(A, name), {})
    message = refused(path)
    assert f"{path}: 1 problems with its shards:\n  shard " in message
    assert "not a plain file name" in message
    message = refused(write_index(inside, dict.fromkeys(A, str(tmp_path / "w.bin")), {}))
    assert "not a plain file name" in message


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ({"ema": A}, "holds a dict of 0 tensors, ema (a dict); expected tensors by name"),
        (A | {"epoch": 3}, "holds a dict of 2 tensors, epoch (a int); expected tensors"),
        ([1], "holds a list; expected tensors"),
    ],
)
def test_a_shard_must_hold_only_tensors(tmp_path, shard, message):
    path = write_index(tmp_path, dict.fromkeys(A, "w.bin"), {"w.bin": shard})
    assert f"{tmp_path / 'w.bin'}: {message}" in refused(path)


JSON = {
    "a list": (b'["a"]', "it is a list, not a dict"),
    "two of one name": (b'{"weight_map": {"a": "w", "a": "v"}}', "two entries of one name"),
    "two maps": (b'{"weight_map": {"a": "w"}, "weight_map": {"a": "w"}}', "two entries of one"),
    "deep lists": (b"[" * 40_000 + b"]" * 40_000, "damaged"),
    "deeper lists": (b"[" * 100_000 + b"]" * 100_000, "far more objects"),
    "deep dicts": (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "damaged"),
    "many numbers": (b"[" + b"1," * 900_000 + b"1]", "far more objects"),
    "long text and many lists": (
        b'["' + b"x" * 1_900_000 + b'"' + b",[]" * 26_000 + b"]",
        "far more objects",
    ),
    "too large": (b" " * (read_weights.LARGEST_JSON + 1), "bytes of JSON, expected at most"),
    "no JSON": (b"weights", "damaged"),
    "no text": (b'{"\xff": 1}', "damaged"),
    "a giant number": (b'{"a": ' + b"9" * 10_000 + b"}", "damaged"),
    "a web page": (b"<!doctype html><p>404", "a web page, not weights"),
    "nothing": (b"", "an empty file"),
}
MAPS = {
    "no index": (b'{"a": 1}', "its weight_map is a NoneType, expected tensor: file"),
    "a list for a map": (b'{"weight_map": ["a"]}', "its weight_map is a list"),
    "an empty map": (b'{"weight_map": {}}', "its weight_map is a dict"),
    "a number for a file": (b'{"weight_map": {"a": "w", "b\\n": 3}}', "maps b\\n to a int"),
    "a list for a file": (b'{"weight_map": {"a": ["w"]}}', "maps a to a list"),
}
INDEX = "model.safetensors.index.json"
CASES = [(INDEX, *case) for case in (JSON | MAPS).values()]
CASES += [("config.json", *case) for case in JSON.values()]


@pytest.mark.parametrize(("name", "content", "message"), CASES, ids=range(len(CASES)))
def test_hostile_json_is_refused_with_little_memory(tmp_path, name, content, message):
    if name == "config.json":
        write_safetensors(tmp_path / "model.safetensors", A)
    (tmp_path / name).write_bytes(content)
    found, peak = memory.peak(refused, tmp_path)
    assert found.startswith(f"{tmp_path / name}: ")
    assert message in found
    assert found.isprintable()
    assert len(found) < 1000
    assert peak < foreign_file.SMALL_FILE_BYTES + 2 * len(content)


# A folder.


CONFIG = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256], "x": None}


def fill(folder, names, *, config=CONFIG):
    """Writes weights under each name, with its index as their only tensor; indices get a shard."""
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for number, name in enumerate(names):
        tensors = {"w": np.full(1, number)}
        if name.endswith(".json"):
            write_index(
                folder, {"w": f"shard-{number}.bin"}, {f"shard-{number}.bin": tensors}, name
            )
        else:
            write = write_safetensors if name.endswith("s") else files.write_torch_zip
            write(folder / name, tensors)


@pytest.mark.parametrize(
    "names",  # the first is expected
    [
        ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"],
        ["diffusion_pytorch_model.bin", "flax_model.msgpack"],
        ["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"],
        ["pytorch_model.bin", "pytorch_model.fp16.bin"],
        ["pytorch_model.bin", "model.fp16.safetensors"],  # full precision is preferred
        ["pytorch_model.bin", "model.safetensors.index.fp16.json"],
        ["model.fp16.safetensors", "pytorch_model.fp16.bin"],
        ["diffusion_pytorch_model.non_ema.bin"],
        ["model.safetensors.index.json", "pytorch_model.bin.index.json", "model.fp16.bin"],
        ["diffusion_pytorch_model.safetensors.index.json"],
        ["pytorch_model.bin.index.json", "model-00001-of-00002.safetensors"],
        ["diffusion_pytorch_model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.bin"],
    ],
)
def test_the_preferred_weights_of_a_folder_are_read(tmp_path, names):
    fill(tmp_path, names)
    found = read(tmp_path)
    np.testing.assert_array_equal(found.tensors["w"], [0])
    assert found.config == CONFIG
    expected = ["config.json", names[0]]
    if names[0].endswith(".json"):
        expected.append("shard-0.bin")
    assert found.files == [tmp_path / name for name in expected]


def test_a_folder_without_a_config_is_read(tmp_path):
    fill(tmp_path, ["model.safetensors"], config=None)
    found = read(tmp_path)
    assert found.config is None
    assert found.files == [tmp_path / "model.safetensors"]


def test_the_state_dict_of_a_folders_checkpoint_is_found(tmp_path):
    files.write_torch_zip(tmp_path / "pytorch_model.bin", {"model": A, "ema": B})
    found = read(tmp_path)
    same(found.tensors, B)
    assert found.key == "ema"


@pytest.mark.parametrize(
    "names",
    [
        ["diffusion_pytorch_model.safetensors", "model.safetensors"],
        ["model.safetensors", "model.safetensors.index.json"],
        ["diffusion_pytorch_model.bin", "pytorch_model.bin"],
        ["model.ema.safetensors", "model.fp16.safetensors"],
    ],
)
def test_ambiguous_weights_are_refused_by_name(tmp_path, names):
    fill(tmp_path, names)
    expected = f"{tmp_path}: weights in {', '.join(sorted(names))}: give the path of one"
    assert refused(tmp_path).startswith(expected)


def test_the_error_for_a_folder_without_weights_lists_its_contents(tmp_path):
    assert "holds nothing; expected model.safetensors" in refused(tmp_path)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json\x1b").write_text("{}")
    message = refused(tmp_path)
    assert f"{tmp_path}: holds model_index.json\\x1b, transformer; expected" in message
    assert "give one of its folders, e.g. transformer" in message
    for number in range(20):
        (tmp_path / f"0{number}.txt").touch()
    assert "014.txt, 015.txt, ...; expected" in refused(tmp_path)


def test_problems_of_config_and_shards_are_reported_at_once(tmp_path):
    write_index(tmp_path, MAP | {"c": "three.bin"}, SHARDS)
    (tmp_path / "config.json").write_text("[]")
    message = refused(tmp_path)
    assert f"{tmp_path}/config.json: it is a list, not a dict" in message
    assert f"{tmp_path}/three.bin: No such file" in message


# Memory.


PROGRAM = r"""
import resource, sys
import numpy as np
from simjax.porting.files import read_weights; from simjax.porting.maps import rules

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

def allow(bytes_more):  # the kernel limits private writable memory: an upper bound on the peak
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + bytes_more, hard))

slack, rows, columns = 60 * 2**20, int(sys.argv[2]), int(sys.argv[3])
start = status("RssAnon")
allow(slack)
weights = read_weights.read(sys.argv[1])
read = status("RssAnon") - start
total = sum(tensor.nbytes for tensor in weights.tensors.values())
touched = sum(float(tensor.sum()) for tensor in weights.tensors.values())

like = np.broadcast_to(np.zeros((), np.float16), (len(weights.tensors), columns, rows))
start = status("RssAnon")
allow(like.nbytes + slack)
to = [rules.Rule(r"layer(?P<layer>\d+)", "kernel", rules.transposed)]
params = rules.apply(to, weights.tensors, {"kernel": like})
applied = status("RssAnon") - start
print(total, read, touched, like.nbytes, applied, float(params["kernel"].sum(dtype=float)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_reading_copies_nothing_and_filling_a_network_copies_once(tmp_path, suffix):
    """200 MB in 4 shards; the network has half precision, so half as much memory."""
    rows, columns, layers = 1250, 2000, 20
    shards, homes = {}, {}
    for number in range(4):
        name = f"model-0000{number + 1}-of-00004.{suffix}"
        mine = range(number * 5, number * 5 + 5)
        shards[name] = {f"layer{n}": np.full((rows, columns), n, np.float32) for n in mine}
        homes |= dict.fromkeys(shards[name], name)
    write_index(tmp_path, homes, shards)
    program = f"import sys; sys.argv[1:] = {[str(tmp_path), str(rows), str(columns)]!r}\n{PROGRAM}"
    numbers = [float(word) for word in subprocesses.on_devices(1, program).split()]
    total, read_bytes, touched, copy, applied, filled = numbers
    assert total == 4 * rows * columns * layers == 200e6
    assert touched == filled == rows * columns * sum(range(layers))
    assert read_bytes < 60 * 2**20
    assert copy <= applied < copy + 60 * 2**20
