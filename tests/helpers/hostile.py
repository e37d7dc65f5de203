"""Hostile and corrupt files for test_hostile.py: bytes, reader, expected error."""

import functools
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

from simjax.porting.files import read_pickle, read_safetensors, read_torch
from tests.helpers import files
from tests.helpers.hostile_pickles import (
    HEAD,
    NETWORKS,
    ONE,
    PICKLES,
    SYSTEM,
    doubling,
    name,
    text,
    top,
)


class Case(NamedTuple):
    """A file's bytes, its reader, and a part of the expected error message."""

    id: str
    read: Callable
    data: bytes | Callable[[], bytes]
    message: str


# Streams and archives of torch.save.


def storage_id(
    tag: str = "storage",
    kind: bytes = name("torch", "FloatStorage"),
    key: bytes = text("0"),
    count: bytes = b"K\x04",
    more: bytes = b"",
) -> bytes:
    return b"(" + text(tag) + kind + key + text("cpu") + count + more + b"tQ"


def torch_stream(value: bytes, keys: Any = ("0",), count: int = 4, system: Any = None) -> bytes:
    constants = (files.MAGIC, files.VERSION, system or files.SYSTEM)
    head = b"".join(pickle.dumps(constant, 2) for constant in constants)
    return head + value + pickle.dumps(keys, 2) + struct.pack("<q", count) + ONE.tobytes()


def raw_zip(*members: tuple, count: int | None = None) -> bytes:
    """A zip archive of members (name, content, {field: false value})."""
    body, table = b"", b""
    for member, content, *lies in members:
        lie = dict(*lies)
        offset, encoded = lie.get("offset", len(body)), member.encode()
        size = lie.get("size", len(content))
        flags, method = lie.get("flags", 0), lie.get("method", 0)
        common = (flags, method, 0, 0, 0, lie.get("packed", size), size)
        inside = lie.get("inside", member).encode()
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *common, len(inside), 0)
        body += inside + content
        extra = lie.get("extra", b"")
        lengths = (len(encoded), len(extra), 0, 0, 0)
        table += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *common, *lengths, 0, offset)
        table += encoded + extra
    count = len(members) if count is None else count
    sizes = (count, count, len(table), len(body))
    return body + table + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *sizes, 0)


def archive(
    value: bytes = top(storage_id()), *more: tuple, content: bytes = ONE.tobytes()
) -> bytes:
    return raw_zip(("a/data.pkl", value), ("a/data/0", content), *more)


def member(**lies: Any) -> bytes:
    return raw_zip(("a/data.pkl", top(storage_id())), ("a/data/0", ONE.tobytes(), lies))


def deflated() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("a/data.pkl", top(storage_id(count=b"J\0\0\0\x01")))
        bomb.writestr("a/data/0", bytes(2**26))
    return file.getvalue()


def inner_member() -> bytes:
    """A member inside another one's content, both listed in the central directory."""
    value, inner = top(storage_id()), raw_zip(("a/data/0", ONE.tobytes()))
    inside = {"offset": len("a/data.pkl") + 30 + len(value)}
    return raw_zip(("a/data.pkl", value + inner), ("a/data/0", b"", {"size": 16} | inside))


REFERENCES = {
    "another tag": (storage_id(tag="module"), "reference torch does not write"),
    "a short id": (text("storage") + b"\x85Q", "reference is a tuple, expected"),
    "a long id": (storage_id(more=b"NN"), "reference is a tuple, expected"),
    "a text for an id": (text("storage") + b"Q", "reference is a str, expected"),
    "an unknown storage": (storage_id(kind=name("os", "system")), "is of os.system; known"),
    "a text for a class": (storage_id(kind=text("x")), "is of a str; known"),
    "a call for a class": (storage_id(kind=SYSTEM), "is of an object of os.system; known"),
    "a number for a key": (storage_id(key=b"K\0"), "reference torch does not write"),
    "a key that is not there": (storage_id(key=text("../0")), "storage"),
    "a negative count": (storage_id(count=b"J\xff\xff\xff\xff"), "reference torch does not write"),
    "a count of 2^56": (storage_id(count=b"\x8a\x08" + struct.pack("<q", 2**56)), "expected"),
    "a count of 2^200": (storage_id(count=b"\x8a\x1a" + bytes(25) + b"\1"), "torch does not write"),
    "true for a count": (storage_id(count=b"\x88"), "reference torch does not write"),
    "another count": (storage_id(count=b"K\5"), "expected 5"),
    "another dtype": (storage_id(kind=name("torch", "DoubleStorage")), "expected 4 x 8"),
    "a view of a storage": (storage_id(more=b"]"), "reference torch does not write"),
    "a dict for a storage": (
        storage_id() + b"0" + name("torch._utils", "_rebuild_tensor_v2") + b"(}K\0)))}tR",
        "has a dict as storage",
    ),
    "self-containing list": (b"]\x94h\0a0" + storage_id() + b"0h\0", "100 deep"),
    "self-containing dict": (b"}\x94" + storage_id() + b"0Nh\0s", "100 deep"),
    "deep tuples": (storage_id() + b"\x85" * 200, "100 deep"),
    "laughs": (storage_id() + b"".join(b"\x94h%c\x86" % n for n in range(22)), "far more objects"),
}
STREAMS = {
    "wrong magic": (pickle.dumps(3, 2), "not a torch.save file"),
    "wrong version": (pickle.dumps(files.MAGIC, 2) + pickle.dumps(1002, 2), "not a torch.save"),
    "magic alone": (pickle.dumps(files.MAGIC, 2), "damaged"),
    "big-endian": (
        torch_stream(top(storage_id()), system={"little_endian": False}),
        "written on a big-endian",
    ),
    "system without an order": (torch_stream(top(storage_id()), system=[1]), "big-endian"),
    "system that is a call": (HEAD[:21] + top(SYSTEM), "big-endian"),
    "keys that are a dict": (torch_stream(top(storage_id()), keys={"0": 1}), "no list of storages"),
    "keys that are tuples": (torch_stream(top(storage_id()), keys=[doubling(22)]), "no list of"),
    "keys twice": (torch_stream(top(storage_id()), keys=["0", "0"]), "differs from those that"),
    "a key too many": (torch_stream(top(storage_id()), keys=["0", "1"]), "differs from those that"),
    "no keys": (torch_stream(top(storage_id()), keys=[]), "differs from those that"),
    "another number written": (torch_stream(top(storage_id()), keys=["0"], count=5), "expected 4"),
    "a negative number written": (
        torch_stream(top(storage_id()), keys=["0"], count=-1),
        "expected 4",
    ),
    "a storage of two kinds": (
        torch_stream(top(storage_id() + storage_id(kind=name("torch", "LongStorage"))), ["0"]),
        "has two dtypes or sizes",
    ),
    "a tar archive": (b"sys_info" + bytes(1000), "protocol 2 or later"),
}
ZIPS = {
    "deflated": (deflated, "compressed"),
    "encrypted": (member(flags=1), "encrypted"),
    "strongly encrypted": (member(flags=0x40), "encrypted"),
    "packed smaller": (member(packed=4), "compressed"),
    "a method without packing": (member(method=99), "compressed"),
    "a size outside": (member(size=2**31), "overlaps the next one"),
    "a size of 2^63": (
        member(size=2**32 - 1, packed=2**32 - 1, extra=struct.pack("<2H2Q", 1, 16, 2**63, 2**63)),
        "overlaps the next one",
    ),
    "a size that is missing": (member(size=2**32 - 1, packed=2**32 - 1), "overlaps the"),
    "half a wide size": (
        member(size=2**32 - 1, packed=2**32 - 1, extra=struct.pack("<2HQ", 1, 8, 2**63)),
        "damaged",
    ),
    "a size too small": (member(size=12), "has 12 bytes, expected 4 x 4"),
    "an offset outside": (member(offset=2**31), "damaged"),
    "an offset of another member": (member(offset=0), "is not at the position"),
    "another name inside": (member(inside="a/data/1"), "is not at the position"),
    "one member in another": (inner_member, "overlaps the next one"),
    "parent folder": (archive(top(b"N"), ("a/../../x", b"")), "points outside the archive"),
    "absolute path": (archive(top(b"N"), ("/etc/passwd", b"")), "points outside the archive"),
    "backslashes": (archive(top(b"N"), ("..\\x", b"")), "points outside the archive"),
    "drive": (archive(top(b"N"), ("C:x", b"")), "points outside the archive"),
    "escape sequence": (archive(top(b"N"), ("a/\x1b[2J", b"")), "points outside the archive"),
    "duplicate": (
        archive(top(b"N"), ("a/data.pkl", top(SYSTEM))),
        "two members are named a/data.pkl",
    ),
    "two pickles": (archive(top(b"N"), ("b/data.pkl", top(SYSTEM))), "2 data.pkl inside"),
    "no pickle": (raw_zip(("a/x", b"")), "0 data.pkl inside"),
    "big-endian archive": (archive(top(b"N"), ("a/byteorder", b"big")), "big-endian"),
    "too many members declared": (raw_zip(("a/data.pkl", top(b"N")), count=2**16 - 1), "damaged"),
    "too few members declared": (
        raw_zip(("a/data.pkl", top(b"N")), ("x", b""), count=1),
        "another length than stated",
    ),
    "very many members": (
        lambda: raw_zip(*((f"{n}", b"") for n in range(3_000))),
        "far more objects",
    ),
    "no table": (archive()[:-30], "no table of contents"),
    "a comment at the end": (archive() + b"comment", "no table of contents"),
    "a table outside": (archive()[:-6] + b"\xff\xff\xff\x7f\0\0", "outside the file"),
    "a wide table outside": (
        archive()[:-22] + struct.pack("<4sLQL", b"PK\6\7", 0, 2**60, 1) + archive()[-22:],
        "damaged",
    ),
    "a storage that is missing": (raw_zip(("a/data.pkl", top(storage_id()))), "not in the archive"),
    "the signature alone": (b"PK\3\4", "damaged"),
}


# safetensors.


def safetensors(header: bytes, contents: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + contents


def entries(**tensors: tuple[int, int]) -> bytes:
    """A header of float32 vectors at these offsets."""
    header = {
        name: {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
        for name, (begin, end) in tensors.items()
    }
    return json.dumps(header).encode()


SAFETENSORS = {
    "a header of 2^63 bytes": (safetensors(b"{}", length=2**63), "a header of 9223372036854775808"),
    "a header past the end": (safetensors(b"{}", length=3), "a header of 3 bytes"),
    "half a length": (b"\2\0", "a header of 2 bytes"),
    "a header that is no JSON": (safetensors(b"\x80\x04N."), "damaged"),
    "a header that is a list": (safetensors(b"[]"), "is a list, not a dict"),
    "a header that is cut": (safetensors(entries(a=(0, 4))[:-3], bytes(4)), "damaged"),
    "deep brackets": (safetensors(b"[" * 20_000 + b"]" * 20_000), "damaged"),
    "many lists": (safetensors(b"[" + b"[]," * 20_000 + b"[]]"), "far more objects"),
    "many dicts": (safetensors(b"[" + b"{}," * 20_000 + b"{}]"), "far more objects"),
    "many keys": (
        lambda: safetensors(json.dumps({str(n): n for n in range(8_000)}).encode()),
        "far more objects",
    ),
    "many numbers": (safetensors(b"[" + b"1," * 60_000 + b"1]"), "far more objects"),
    "a giant number": (safetensors(b'{"a":' + b"9" * 100_000 + b"}"), "damaged"),
    "an entry that is a number": (safetensors(b'{"a":3}'), "lacks a dtype"),
    "two of one name": (safetensors(b'{"a":1,"a":2}'), "two entries of one name"),
    "overlap": (safetensors(entries(a=(0, 8), b=(4, 12)), bytes(12)), "a gap of -4 bytes before b"),
    "a gap": (safetensors(entries(a=(0, 4), b=(8, 12)), bytes(12)), "a gap of 4 bytes before b"),
    "bytes at the end": (
        safetensors(entries(a=(0, 4)), bytes(12)),
        "a gap of 8 bytes before its end",
    ),
    "negative offsets": (safetensors(entries(a=(-4, 4)), bytes(8)), "are not lists of nonnegative"),
    "backwards": (safetensors(entries(a=(8, 4)), bytes(8)), "are not lists of nonnegative"),
    "outside": (safetensors(entries(a=(0, 4000)), bytes(8)), "lies at 0 to 4000 of 8"),
    "a shape with NaN": (
        safetensors(entries(a=(0, 4)).replace(b"[1]", b"[NaN]"), bytes(4)),
        "are not lists of nonnegative",
    ),
}
ANY_READER = {
    "a web page": (b"\n <!DOCTYPE html><title>404</title>", "a web page, not weights"),
    "a web page without a type": (b"<HTML><body>", "a web page, not weights"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    "nothing": (b"", ": an empty file; "),
    "zeros": (bytes(1000), ""),
    "noise": (random.Random(0).randbytes(5000), ""),
}
READERS = (read_pickle.read_network, read_torch.read, read_safetensors.read)


def cases() -> list[Case]:
    """Every case of the tables above; references in both containers, stream and zip."""
    net, torch, safe = READERS
    found = [Case(k, net, data, m) for k, (data, m) in PICKLES.items()]
    for key, (value, message) in NETWORKS.items():
        found.append(Case(key, net, functools.partial(files.dumps, {"ema": value}), message))
    for key, (value, message) in REFERENCES.items():
        found.append(Case(f"stream: {key}", torch, torch_stream(top(value), ["0"]), message))
        found.append(Case(f"zip: {key}", torch, archive(top(value)), message))
    found += [Case(f"stream: {k}", torch, data, m) for k, (data, m) in STREAMS.items()]
    found += [Case(f"zip: {k}", torch, data, m) for k, (data, m) in ZIPS.items()]
    found += [Case(f"safetensors: {k}", safe, data, m) for k, (data, m) in SAFETENSORS.items()]
    for key, (data, message) in ANY_READER.items():
        found += [Case(f"{reader.__module__}: {key}", reader, data, message) for reader in READERS]
    return found
