"""Hostile pickles for hostile.py, alone and inside a network, with expected errors."""

import pickle
import struct
from collections import OrderedDict
from typing import Any

import numpy as np

from tests.helpers import files

MARKER = "code_was_run"
COMMAND = f"touch {MARKER}"
CODE = f"open('{MARKER}', 'w')"
ONE = np.ones(4, np.float32)


# Hand-written opcodes of protocol 4.


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def called(module: str, attribute: str, *args: str) -> bytes:
    return name(module, attribute) + b"(" + b"".join(map(text, args)) + b"tR"


def top(opcodes: bytes) -> bytes:
    return b"\x80\x04" + opcodes + b"."


def ema(opcodes: bytes) -> bytes:
    return top(b"}" + text("ema") + opcodes + b"s")


SYSTEM = called("os", "system", COMMAND)
MANY = 2**17

NO_NETWORK = "holds 0 networks"
PICKLES = {
    "system": (top(SYSTEM), "holds an object of os.system"),
    "system as the network": (ema(SYSTEM), NO_NETWORK),
    "system in protocol 2": (b"\x80\x02cos\nsystem\nX\1\0\0\0x\x85R.", "an object of os.system"),
    "exec": (ema(called("builtins", "exec", CODE)), NO_NETWORK),
    "names from the memo": (
        ema(text("os") + b"\x940" + text("system") + b"\x940h\0h\1\x93" + text(COMMAND) + b"\x85R"),
        NO_NETWORK,
    ),
    "getattr chain": (
        ema(name("builtins", "getattr") + name("os", "x") + text("system") + b"\x86R)R"),
        "calls an object of builtins.getattr",
    ),
    "call of a call": (ema(SYSTEM + b")R"), "calls an object of os.system"),
    "call with a list": (ema(name("os", "system") + b"]R"), "with a list"),
    "call of a text": (ema(text("os.system") + b")R"), "calls a str"),
    "attributes of a known function": (
        ema(called("torch", "_utils._rebuild_tensor_v2.__globals__")),
        NO_NETWORK,
    ),
    "copyreg": (
        ema(name("copyreg", "_reconstructor") + name("os", "x") + name("os", "x") + b"N\x87R"),
        NO_NETWORK,
    ),
    "partial": (ema(called("functools", "partial", CODE) + b"(NN}Ntb"), NO_NETWORK),
    "setstate": (
        ema(SYSTEM + b"}" + text("__setstate__") + name("os", "system") + b"sb"),
        NO_NETWORK,
    ),
    "class and dict": (
        ema(SYSTEM + b"}(" + text("__class__") + name("os", "x") + text("__dict__") + b"}ub"),
        NO_NETWORK,
    ),
    "state of a tuple": (ema(b")}b"), "fills a tuple"),
    "state of a class": (ema(name("os", "environ") + b"}b"), "fills os.environ"),
    "items of a text": (ema(text("x") + b"Na"), "fills a str"),
    "keyword construction": (ema(name("os", "system") + b")}\x92"), NO_NETWORK),
    "persistent id": (ema(text("x") + b"Q"), "stored outside it"),
    "text persistent id": (top(b"Px\n"), "opcode 0x50"),
    "inst": (top(b"(ios\nsystem\n"), "opcode 0x69"),
    "obj": (top(b"(" + name("os", "system") + b"o"), "opcode 0x6f"),
    "extension 1": (top(b"\x82\x01"), "opcode 0x82"),
    "extension 2": (top(b"\x83\x01\x01"), "opcode 0x83"),
    "extension 4": (top(b"\x84\x01\x01\x01\x01"), "opcode 0x84"),
    "out-of-band buffer": (top(b"\x97"), "opcode 0x97"),
    "duplication": (top(b"N2"), "opcode 0x32"),
    "protocol 0": (b"cos\nsystem\n(S'x'\ntR.", "protocol 2 or later"),
    "protocol 255": (b"\x80\xffN.", "protocol 255"),
    "memo of 2^31": (top(b"Nr\xff\xff\xff\x7f"), "writes memo entry 2147483647"),
    "memo of nothing": (top(b"h\x07"), "damaged"),
    "bytes of 2^60": (top(b"\x8e" + struct.pack("<Q", 2**60)), "claims 1152921504606846976"),
    "bytearray of 2^62": (top(b"\x96" + struct.pack("<Q", 2**62)), "claims"),
    "bytes of 2^32": (top(b"B\xff\xff\xff\xff"), "claims 4294967295"),
    "text of 2^31": (top(b"X\xff\xff\xff\x7f"), "a text of 2147483647"),
    "text of 2^63": (top(b"\x8d" + struct.pack("<Q", 2**63)), "a text of 9223372036854775808"),
    "text of 2 MiB": (top(b"X\0\0\x20\0" + bytes(2**21)), "a text of 2097152"),
    "text that is not UTF-8": (top(b"\x8c\x02\xff\xff"), "damaged"),
    "frame of 2^64": (top(b"\x95" + b"\xff" * 8 + b"N"), "a frame of 18446744073709551615"),
    "integer of 2^31 bytes": (top(b"\x8b\xff\xff\xff\x7f"), "an integer of 2147483647"),
    "integer of -1 bytes": (top(b"\x8b\xff\xff\xff\xff"), "an integer of 4294967295"),
    "empty stack": (top(b"R"), "damaged"),
    "empty stack at a mark": (top(b"N(\x85"), "damaged"),
    "no mark": (top(b"t"), "damaged"),
    "nothing at all": (top(b""), "damaged"),
    "half a pair": (top(b"}(Nu"), "damaged"),
    "marks in marks": (top(b"(" * 100_000), "nested more than 1000 deep"),
    "tuples in tuples": (top(b")" + b"\x85" * 100_000), "far more objects"),
    "lists in lists": (top(b"]" * 20_000 + b"a" * 19_999), "far more objects"),
    "many nones": (top(b"N" * MANY), "far more objects"),
    "many lists": (top(b"]" * MANY), "far more objects"),
    "many dicts": (top(b"}" * MANY), "far more objects"),
    "many sets": (top(b"\x8f" * MANY), "far more objects"),
    "many memo entries": (top(b"N" + b"\x94" * MANY), "far more objects"),
    "many floats": (top(b"(" + (b"G" + bytes(8)) * MANY + b"l"), "far more objects"),
    "many wide texts": (
        lambda: top((b"X\0\0\x08\0" + "🎲".encode() + b"x" * (2**19 - 4)) * 40),
        "far more objects",
    ),
    "a list that grows from the memo": (top(b"]\x94(" + b"h\0" * MANY + b"e"), "far more objects"),
    "a tuple as a key": (top(b"})\x940h\0h\0\x86\x940h\1h\1\x86Ns"), "a tuple as a key"),
    "colliding keys": (top(b"}\x8a\x09" + b"\xff" * 8 + b"\0Ns"), "a huge integer as a key"),
    "a list as a key": (top(b"}]Ns"), "a list as a key"),
    "a tuple in a set": (top(b"\x8f()\x90"), "a tuple as a key"),
    "a list that holds itself": (top(b"]\x94h\0a"), "holds a list"),
    "a dict that holds itself": (top(b"}\x94" + text("ema") + b"h\0s"), NO_NETWORK),
}


# Valid networks with one part replaced.


def network(**changes: Any) -> files.Call:
    """A small network with replaced attributes."""
    net = files.network("Net", {"x": 1}, {"a.weight": ONE})
    net.args[0]["state"].update(changes)
    return net


def with_parameter(value: Any) -> dict:
    return network(_parameters={"w": value})


def tensor(*args: Any, storage: Any = None) -> files.Call:
    """A tensor in a storage of four float32."""
    storage = files.Storage(ONE) if storage is None else storage
    return files.Call("torch._utils._rebuild_tensor_v2", storage, *args, False, OrderedDict())


def stored(storage: Any) -> dict:
    """A network with a parameter in this storage."""
    return with_parameter(tensor(0, (4,), (1,), storage=storage))


def load_from_bytes(data: Any) -> files.Call:
    return files.Call("torch.storage._load_from_bytes", data)


def doubling(levels: int) -> Any:
    value: Any = ()
    for _ in range(levels):
        value = (value, value)
    return value


def doubling_modules(levels: int) -> files.Object:
    module = files.Object("torch.nn.Module", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    for _ in range(levels):
        state = {"_parameters": {}, "_buffers": {}, "_modules": {"a": module, "b": module}}
        module = files.Object("torch.nn.Module", state)
    return module


def own_child() -> files.Object:
    state: dict = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    module = files.Object("torch.nn.Module", state)
    state["_modules"]["child"] = module
    return module


def ring() -> list:
    value: list = []
    value.append(value)
    return value


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


HEAD = b"".join(pickle.dumps(v, 2) for v in (files.MAGIC, files.VERSION, files.SYSTEM))
GOOD_STREAM = files.stream(files.Storage(ONE))
GIANT = 2**40
NETWORKS = {
    "system in the arguments": (
        network(_init_kwargs={"x": files.Call("os.system", COMMAND)}),
        "os",
    ),
    "a class in the arguments": (network(_init_kwargs={"x": files.Name("os.system")}), "os.system"),
    "arguments that are no dict": (network(_init_kwargs=[1]), "arguments are not recorded"),
    "positional arguments that are a text": (network(_init_args="xx"), "are not recorded"),
    "laughs in the arguments": (network(_init_kwargs={"x": doubling(22)}), "far more objects"),
    "arguments that hold themselves": (network(_init_kwargs={"x": ring()}), "100 deep"),
    "deep arguments": (network(_init_kwargs={"x": nested(150)}), "100 deep"),
    "eval as a tensor": (with_parameter(files.Call("builtins.eval", CODE)), "builtins.eval"),
    "a text as a tensor": (with_parameter("x"), "w is a str"),
    "exec as a module": (
        network(_modules={"a": files.Call("builtins.exec", CODE)}),
        "builtins.exec",
    ),
    "modules that are a list": (network(_modules=[1]), NO_NETWORK),
    "a module in itself": (network(_modules={"a": own_child()}), "contains itself"),
    "modules that double": (network(_modules={"a": doubling_modules(16)}), "far more objects"),
    "deep modules": (network(_modules={"a": doubling_modules(60)}), "more than 50 deep"),
    "a module without a name": (network(_modules={3: None}), "a member with a bad name"),
    "a tensor of two names in one": (network(_parameters={"a.weight": ONE}), "with a bad name"),
    "a parameter and a buffer of one name": (
        network(_parameters={"w": ONE}, _buffers={"w": ONE}),
        "w is a ndarray",
    ),
    "passing buffers that are a number": (
        network(_buffers={"w": ONE}, _non_persistent_buffers_set=3),
        "damaged",
    ),
    "system in a storage": (stored(load_from_bytes(top(SYSTEM))), "not a torch.save file"),
    "system in a storage's stream": (
        stored(load_from_bytes(HEAD + top(SYSTEM) + top(b"]"))),
        "a storage holds an object of os.system",
    ),
    "a stream in a stream": (
        stored(load_from_bytes(HEAD + files.dumps(load_from_bytes(GOOD_STREAM)) + top(b"]"))),
        "a storage holds an object of torch.storage._load_from_bytes",
    ),
    "a storage of text": (stored(load_from_bytes("x")), "a storage is a str"),
    "a storage without bytes": (
        stored(files.Call("torch.storage._load_from_bytes")),
        "damaged",
    ),
    "a tensor in a tensor": (stored(ONE), "has a ndarray as storage"),
    "offset outside": (with_parameter(tensor(1, (4,), (1,))), "the last at 4, needs more"),
    "size outside": (with_parameter(tensor(0, (5,), (1,))), "a tensor of 5 elements"),
    "stride outside": (with_parameter(tensor(0, (2, 2), (3, 1))), "the last at 4"),
    "negative size": (with_parameter(tensor(0, (-4,), (1,))), "is not a nonnegative integer"),
    "two negative sizes": (
        with_parameter(tensor(0, (-2, -2), (1, 1))),
        "is not a nonnegative integer",
    ),
    "negative stride": (with_parameter(tensor(3, (4,), (-1,))), "is not a nonnegative integer"),
    "negative offset": (with_parameter(tensor(-1, (4,), (1,))), "is not a nonnegative integer"),
    "sizes that overflow": (with_parameter(tensor(0, (2**32, 2**32), (1, 1))), "needs more"),
    "a size of 2^64": (with_parameter(tensor(0, (2**64,), (1,))), "is not a nonnegative integer"),
    "a stride that overflows": (with_parameter(tensor(0, (2,), (2**62,))), "needs more"),
    "an offset that overflows": (with_parameter(tensor(2**62, (1,), (1,))), "needs more"),
    "an expanded giant": (with_parameter(tensor(0, (GIANT,), (0,))), "or an expanded view"),
    "an empty giant": (with_parameter(tensor(0, (0, 2**62, 2**62), (0, 0, 0))), "damaged"),
    "true for a size": (with_parameter(tensor(0, (True,), (1,))), "is not a nonnegative integer"),
    "fractional size": (with_parameter(tensor(0, (2.0,), (1,))), "is not a nonnegative integer"),
    "a size that is a list": (with_parameter(tensor(0, [4], (1,))), "has a Storage as storage"),
    "fewer strides than sizes": (with_parameter(tensor(0, (2, 2), (1,))), "damaged"),
    "100 dimensions": (
        with_parameter(tensor(0, (1,) * 100, (1,) * 100)),
        "is not a nonnegative integer",
    ),
    "a tensor built by exec": (
        with_parameter(
            files.Call("torch._tensor._rebuild_from_type_v2", files.Name("builtins.exec"), 1, (), 2)
        ),
        "a tensor is built by builtins.exec",
    ),
    "a tensor without arguments": (
        with_parameter(files.Call("torch._utils._rebuild_tensor_v2")),
        "damaged",
    ),
    "a dict of pairs": (
        network(x=files.Call("collections.OrderedDict", [(doubling(22), 1)])),
        "damaged",
    ),
    "a set of tuples": (network(x=files.Call("builtins.set", [doubling(22)])), "a tuple as a key"),
}
