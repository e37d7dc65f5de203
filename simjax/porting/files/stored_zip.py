"""Members of an uncompressed zip archive, as views. Called from read_torch.py.

Python's zipfile is not used: it copies what it reads, builds its table of contents before any
check, and accepts members that overlap or share a name. Format: PKWARE APPNOTE 6.3.
"""

import itertools
import struct
from collections.abc import Sequence

from simjax.errors import ConfigError
from simjax.porting.files.foreign_file import DOWNLOAD_AGAIN, Budget, shown

END = struct.Struct("<4s4H2LH")  # end of central directory (the table of contents)
LOCATOR = struct.Struct("<4sLQL")  # zip64 locator of the following
END_64 = struct.Struct("<4sQ2H2L4Q")  # zip64 end of central directory
ENTRY = struct.Struct("<4s6H3L5H2L")  # central directory header of a member
HEADER = struct.Struct("<4s5H3L2H")  # local file header, before a member's content
ENTRY_COST = 1024  # upper bound of the bytes of Python objects per member
ENCRYPTED = 0x2041  # any of three flags
IN_64_BITS = 0xFFFFFFFF  # the field's value is in the zip64 extra field


def members(data: memoryview, budget: Budget) -> dict[str, memoryview]:
    """The content of each member, by name.

    Raises:
      ConfigError: a member is compressed, encrypted, overlapping or duplicated, its name points
        outside the archive, or its size points outside the file.
    """
    count, table, end = _table(data)
    position = table
    contents: dict[str, memoryview] = {}
    spans = [(table, end, "")]
    for _ in range(count):
        budget.spend(ENTRY_COST)
        name, size, header, position = _entry(data, position, budget)
        if name in contents:
            raise ConfigError(f"two members are named {shown(name)}; {DOWNLOAD_AGAIN}")
        start = _content_start(data, header, name)
        contents[name] = data[start : start + size]
        spans.append((header, start + size, name))
    if position != end:
        raise ConfigError(f"its table of contents has another length than stated; {DOWNLOAD_AGAIN}")
    for (_, stop, name), (next_start, _, _) in itertools.pairwise(sorted(spans)):
        if stop > next_start:
            raise ConfigError(f"member {shown(name)} overlaps the next one; {DOWNLOAD_AGAIN}")
    return contents


def _table(data: memoryview) -> tuple[int, int, int]:
    """Number of members, and start and end of the table of contents."""
    signature, *_, count, size, start, _ = END.unpack(data[-END.size :])
    if signature != b"PK\5\6":
        raise ConfigError(f"the archive has no table of contents: cut short; {DOWNLOAD_AGAIN}")
    locator = data[-END.size - LOCATOR.size : -END.size]
    if locator[:4] == b"PK\6\7":
        _, _, position, _ = LOCATOR.unpack(locator)
        signature, *_, count, size, start = END_64.unpack_from(data, position)
        if signature != b"PK\6\6":
            raise ConfigError(f"the archive has no table of contents: damaged; {DOWNLOAD_AGAIN}")
    if start + size > len(data):
        raise ConfigError(f"its table of contents lies outside the file; {DOWNLOAD_AGAIN}")
    return count, start, start + size


def _entry(data: memoryview, position: int, budget: Budget) -> tuple[str, int, int, int]:
    """A member's name, size and header position, and the next entry's position."""
    signature, _, _, flags, method, *_, packed, size, named, extra, comment, _, _, _, header = (
        ENTRY.unpack_from(data, position)
    )
    if signature != b"PK\1\2":
        raise ConfigError(f"its table of contents is damaged; {DOWNLOAD_AGAIN}")
    position += ENTRY.size
    budget.spend(4 * named)
    name = str(data[position : position + named], "utf-8")
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or ":" in name or {"", ".", ".."} & set(parts):
        raise ConfigError(
            f"a member is named {shown(name)}, which points outside the archive; do not use this "
            "file"
        )
    if flags & ENCRYPTED:
        raise ConfigError(f"member {shown(name)} is encrypted: save it without a password")
    position += named
    size, packed, header = _wide(data[position : position + extra], (size, packed, header))
    if method or packed != size:
        raise ConfigError(f"member {shown(name)} is compressed: write it with torch.save")
    return name, size, header, position + extra + comment


def _wide(extra: memoryview, fields: Sequence[int]) -> Sequence[int]:
    """The fields, with 64-bit values from the zip64 extra field (kind 1)."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])
            fields = [next(wide)[0] if field == IN_64_BITS else field for field in fields]
        extra = extra[4 + length :]
    return fields


def _content_start(data: memoryview, header: int, name: str) -> int:
    signature, *_, named, extra = HEADER.unpack_from(data, header)
    start = header + HEADER.size
    if signature != b"PK\3\4" or data[start : start + named] != name.encode():
        raise ConfigError(
            f"member {shown(name)} is not at the position in the table of contents; "
            f"{DOWNLOAD_AGAIN}"
        )
    return start + named + extra
