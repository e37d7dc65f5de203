"""The restricted unpickler builds plain values as Python's does, and placeholders for the rest."""

import collections
import pickle

import pytest

from simjax.errors import ConfigError
from simjax.porting.files import placeholders, unpickle
from simjax.porting.files.foreign_file import Budget
from tests.helpers import files

PLAIN = {
    "numbers": [0, 1, 255, 256, 65535, 65536, -1, -(2**31), 2**31, -(2**63), 2**200, 1.5, -0.0],
    "constants": (None, True, False),
    "texts": ["", "a", "é", "一", "x" * 300, "y" * 70_000],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "nested": {"a": [{"b": ({}, [])}], 3: None, None: 1},
    "sets": {1, "two", 3},
    "long": list(range(3000)),
    "ordered": collections.OrderedDict(a=1, b=2),
}


def load(data: bytes, table=placeholders.CONTAINERS, persistent=None):
    return unpickle.load(memoryview(data), 0, table, Budget(len(data)), persistent)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("write", [pickle.dumps, files.dumps])
def test_plain_values_are_read_exactly(protocol, write):
    data = write(PLAIN, protocol)
    value, position = load(data + b"rest")
    assert value == PLAIN
    assert list(value["ordered"]) == ["a", "b"]
    assert position == len(data)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_are_views_of_the_data(protocol):
    data = pickle.dumps([b"abc", b"x" * 300, b"y" * 100_000], protocol)
    value, _ = load(data)
    assert [len(view) for view in value] == [3, 300, 100_000]
    assert bytes(value[0]) == b"abc"
    assert all(view.obj is data for view in value)


def test_bytes_of_protocol_5_bytearrays_are_views_too():
    value, _ = load(pickle.dumps(bytearray(b"abc"), 5))
    assert bytes(value) == b"abc"


def test_shared_and_recursive_containers_keep_their_identity():
    inner, outer = [1], []
    outer += [inner, inner, outer]
    value, _ = load(pickle.dumps(outer, 4))
    assert value[0] is value[1]
    assert value[2] is value
    recursive = ([],)
    recursive[0].append(recursive)  # pickled with POP, as the tuple contains itself
    value, _ = load(pickle.dumps(recursive, 4))
    assert value[0][0] is value


@pytest.mark.parametrize("protocol", [2, 4])
def test_names_and_calls_become_placeholders(protocol):
    value, _ = load(files.dumps([files.Name("os.path.join"), len], protocol), {})
    module = {2: "__builtin__", 4: "builtins"}[protocol]
    assert value[0] == placeholders.Name("os.path.join")
    assert value[1].full in (f"{module}.len", "builtins.len")
    call, _ = load(files.dumps(files.Call("os.system", "false", state={"a": 1}), protocol), {})
    assert (call.name, call.args, call.state) == ("os.system", ("false",), {"a": 1})
    new, _ = load(files.dumps(files.Object("torch.nn.Linear", {"bias": None}), protocol), {})
    assert (new.name, new.args, new.state) == ("torch.nn.Linear", (), {"bias": None})


class Keywords:
    def __getnewargs_ex__(self):
        return (1,), {"two": 2}


def test_keyword_construction_becomes_a_placeholder():
    value, _ = load(pickle.dumps(Keywords(), 4), {})
    assert value.name.endswith("test_unpickle.Keywords")
    assert value.args == ((1,), {"two": 2})


def test_a_name_in_the_table_calls_our_function():
    table = {"math.hypot": lambda x, y: ("called", x, y)}
    assert load(files.dumps(files.Call("math.hypot", 3, 4)), table)[0] == ("called", 3, 4)


def test_items_of_placeholder_lists_and_dicts_are_dropped():
    class Listed(list):
        def __reduce_ex__(self, protocol):
            return files.Name("a.List"), (), None, iter(self), iter({"k": 1}.items())

    value, _ = load(files.dumps(Listed([1, 2])), {})
    assert (value.name, value.args, value.state) == ("a.List", (), None)


def test_dicts_of_foreign_classes_become_plain_dicts():
    class Easy(dict):
        def __reduce_ex__(self, protocol):
            return files.Name("dnnlib.util.EasyDict"), (), {}, None, iter(self.items())

    value, _ = load(files.dumps(Easy(a=1, b=Easy(c=2))))
    assert value == {"a": 1, "b": {"c": 2}}
    assert type(value) is type(value["b"]) is dict


def test_persistent_ids_are_resolved_by_the_callback():
    class Pickler(files._TorchPickler):
        def persistent_id(self, obj):
            return ("tag", 7) if obj == "outside" else None

    class Sink(list):
        write = list.append

    sink = Sink()
    Pickler(sink, 2).dump(["outside", "inside"])
    data = b"".join(sink)
    assert load(data, persistent=lambda identity: identity)[0] == [("tag", 7), "inside"]
    with pytest.raises(ConfigError, match="stored outside it"):
        load(data)


def test_a_pickle_bomb_is_rejected_cheaply():
    with pytest.raises(ConfigError, match="writes memo entry 2147483647 after 0 others"):
        load(b"\x80\x02Nr\xff\xff\xff\x7f.")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cos\nsystem\n.", "protocol 2 or later"),
        (b"\x80\x06N.", "protocol 6"),
        (b"\x80\x02ios\nsystem\n.", "opcode 0x69"),
        (b"\x80\x02\x82\x01.", "opcode 0x82"),
        (b"\x80\x04\x95" + b"\xff" * 8 + b"N.", "frame of"),
        (b"\x80\x04\x8e" + b"\0" * 7 + b"\x10.", "claims"),
        (b"\x80\x02N", "claims 1 bytes"),
        (b"\x80\x02c" + b"a" * 2000, "name without an end"),
        (b"\x80\x04NN\x93.", "with an invalid name"),
        (b"\x80\x02}(K\x01tNs.", "a tuple as a key"),
        (b"\x80\x02}\x8a\x09" + b"\xff" * 8 + b"\x00Ns.", "huge integer as a key"),
        (b"\x80\x02NNb.", "fills a NoneType"),
        (b"\x80\x02NNR.", "calls a NoneType with a NoneType"),
    ],
)
def test_malformed_pickles_raise_specific_errors(data, message):
    with pytest.raises(ConfigError, match=message):
        load(data)


def test_shared_containers_become_trees_and_bombs_exceed_the_budget():
    budget = Budget(0)
    shared = [1]
    tree = placeholders.untangled({"a": (shared, shared)}, int | str, "it", budget)
    assert tree == {"a": ([1], [1])}
    assert tree["a"][0] is not tree["a"][1]
    bomb = ()
    for _ in range(24):
        bomb = (bomb, bomb)
    with pytest.raises(ConfigError, match="far more objects"):
        placeholders.untangled(bomb, int, "it", Budget(0))
    ring = []
    ring.append(ring)
    with pytest.raises(ConfigError, match="more than 100 deep"):
        placeholders.untangled(ring, int, "it", Budget(0))
    with pytest.raises(ConfigError, match="it: a.b.C is not a plain value"):
        placeholders.untangled([placeholders.Name("a.b.C")], int, "it", Budget(0))


def test_deep_nesting_without_marks_is_rejected():
    value, _ = load(b"\x80\x02)" + b"\x85" * 50_000 + b".")
    with pytest.raises(ConfigError, match="more than 100 deep"):
        placeholders.untangled(value, int, "it", Budget(0))
