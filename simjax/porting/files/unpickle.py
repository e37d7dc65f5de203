"""A restricted unpickler that never imports or calls anything from the file.

It implements the opcodes that Python 3 writes for protocols 2 to 5 (documented in the standard
library's `pickletools`). Classes and functions become `Name`s and calls become `Foreign` records;
only names in a table are replaced by functions of ours. Lengths are checked against the remaining
bytes, and every object is charged to the file's Budget, before anything is allocated. Python's own
unpickler does neither: one byte of a file can make it allocate gigabytes. Called from the readers
in this folder.
"""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from simjax.errors import ConfigError
from simjax.porting.files.foreign_file import DOWNLOAD_AGAIN, Budget
from simjax.porting.files.placeholders import (
    BYTES_COST,
    CONTAINER_COST,
    ENTRY_COST,
    NUMBER_COST,
    POINTER_COST,
    SET_COST,
    TEXT_COST,
    Foreign,
    Name,
    Table,
    described,
    hashable,
)

# Our choices, several times the values in published files.
LONGEST_TEXT = 2**20  # bytes; a module's source is some 100 KB
LONGEST_NAME = 256  # characters of a module or a class
LONGEST_INTEGER = 255  # bytes
MOST_MARKS = 1000


def load(
    data: memoryview,
    start: int,
    table: Table,
    budget: Budget,
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Reads the pickle at data[start:].

    >>> import pickle
    >>> data = pickle.dumps({"lr": 0.1, "run": print}, protocol=4)
    >>> load(memoryview(data), 0, {}, Budget(len(data)))[0]
    {'lr': 0.1, 'run': Name(full='builtins.print')}

    Args:
      table: our function for each name; it is called with the file's arguments, whose number and
        types are untrusted.
      persistent: callback from a persistent id to its object; None rejects such ids.

    Returns:
      The value, in which bytes are views of `data`, and the position after it. Containers may
      contain themselves and share members: traverse them with `untangled`.

    Raises:
      ConfigError: with the problem but not the file; other exceptions for damaged bytes.
    """
    if data[start] != PROTOCOL_OPCODE:
        raise ConfigError("does not hold a pickle of protocol 2 or later; " + DOWNLOAD_AGAIN)
    machine = _Machine(data, start, table, budget, persistent)
    return machine.run(), machine.position


class _Machine:
    """State of a run: the stack, the stacks below MARKs, the memo."""

    def __init__(self, data, start, table, budget, persistent):
        self.data, self.position = data, start
        self.table, self.budget, self.persistent = table, budget, persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: list[Any] = []

    def run(self) -> Any:
        while (code := self.unsigned(1)) != STOP_OPCODE:
            operation, argument = OPERATIONS.get(code, (None, None))
            if operation is None:
                raise ConfigError(
                    f"its pickle has the opcode {code:#04x} at byte {self.position - 1}, which "
                    "Python 3 does not write; if it comes from Python 2, load and save it with "
                    f"Python 3, else {DOWNLOAD_AGAIN}"
                )
            self.budget.spend(POINTER_COST)
            operation(self, argument)
        return self.stack.pop()

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, as a view."""
        end = self.position + count
        if not 0 <= count <= len(self.data) - self.position:
            raise ConfigError(
                f"its pickle claims {count} bytes at byte {self.position}, where "
                f"{len(self.data) - self.position} remain: the file is cut short; {DOWNLOAD_AGAIN}"
            )
        taken, self.position = self.data[self.position : end], end
        return taken

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def push(self, value: Any, cost: int = 0) -> None:
        self.budget.spend(cost)
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items


# One function per opcode or family of opcodes; its argument is the second entry in OPERATIONS.


def _protocol(machine: _Machine, _):
    version = machine.unsigned(1)
    if not 2 <= version <= 5:
        raise ConfigError(f"its pickle has protocol {version}, expected 2 to 5: save it again")


def _frame(machine: _Machine, _):
    length = machine.unsigned(8)
    if length > len(machine.data) - machine.position:
        raise ConfigError(f"its pickle has a frame of {length} bytes: cut short; {DOWNLOAD_AGAIN}")


def _constant(machine: _Machine, value):
    machine.push(value)


def _new(machine: _Machine, kind):
    machine.push(kind(), SET_COST if kind is set else CONTAINER_COST)


def _unsigned(machine: _Machine, size):
    machine.push(machine.unsigned(size), NUMBER_COST)


def _signed(machine: _Machine, size):
    machine.push(int.from_bytes(machine.take(size), "little", signed=True), NUMBER_COST)


def _long(machine: _Machine, size):
    length = machine.unsigned(size)
    if length > LONGEST_INTEGER:
        raise ConfigError(f"its pickle has an integer of {length} bytes; {DOWNLOAD_AGAIN}")
    machine.budget.spend(2 * length)
    _signed(machine, length)


def _float(machine: _Machine, _):
    machine.push(struct.unpack(">d", machine.take(8))[0], NUMBER_COST)


def _bytes(machine: _Machine, size):
    machine.push(machine.take(machine.unsigned(size)), BYTES_COST)


def _text(machine: _Machine, size):
    length = machine.unsigned(size)
    if length > LONGEST_TEXT:
        raise ConfigError(f"its pickle has a text of {length} bytes; {DOWNLOAD_AGAIN}")
    machine.budget.spend(TEXT_COST + 4 * length)
    machine.push(str(machine.take(length), "utf-8"))


def _mark(machine: _Machine, _):
    if len(machine.marked) >= MOST_MARKS:
        raise ConfigError(f"its pickle is nested more than {MOST_MARKS} deep; {DOWNLOAD_AGAIN}")
    machine.budget.spend(CONTAINER_COST)
    machine.marked.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine, _):
    machine.stack.pop() if machine.stack else machine.since_mark()


def _pop_mark(machine: _Machine, _):
    machine.since_mark()


def _tuple(machine: _Machine, length):
    machine.budget.spend(CONTAINER_COST)
    items = [machine.stack.pop() for _ in range(length)]
    machine.push(tuple(reversed(items)))


def _tuple_since_mark(machine: _Machine, _):
    items = machine.since_mark()
    machine.push(tuple(items), CONTAINER_COST + POINTER_COST * len(items))


def _frozenset(machine: _Machine, _):
    items = machine.since_mark()
    machine.budget.spend(SET_COST + ENTRY_COST * len(items))
    machine.push(frozenset(map(hashable, items)))


def _append(machine: _Machine, _):
    item = machine.stack.pop()
    _extend(machine, [item])


def _appends(machine: _Machine, _):
    _extend(machine, machine.since_mark())


def _set_item(machine: _Machine, _):
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine, [key, value])


def _set_items(machine: _Machine, _):
    _update(machine, machine.since_mark())


def _add_items(machine: _Machine, _):
    items = machine.since_mark()
    machine.budget.spend(ENTRY_COST * len(items))
    _top(machine, set).update(map(hashable, items))


def _extend(machine: _Machine, items: list):
    machine.budget.spend(POINTER_COST * len(items))
    target = _top(machine, (list, Foreign))
    if isinstance(target, list):
        target.extend(items)


def _update(machine: _Machine, items: list):
    machine.budget.spend(ENTRY_COST * len(items))
    target = _top(machine, (dict, Foreign))
    if isinstance(target, dict):
        target.update(zip(map(hashable, items[::2]), items[1::2], strict=True))


def _put(machine: _Machine, size):
    index = machine.unsigned(size)
    if index != len(machine.memo):
        raise ConfigError(
            f"its pickle writes memo entry {index} after {len(machine.memo)} others, which "
            f"Python's pickler does not; {DOWNLOAD_AGAIN}"
        )
    _memoize(machine, None)


def _memoize(machine: _Machine, _):
    machine.budget.spend(POINTER_COST)
    machine.memo.append(machine.stack[-1])


def _get(machine: _Machine, size):
    machine.push(machine.memo[machine.unsigned(size)])


def _global(machine: _Machine, _):
    _push_name(machine, _line(machine), _line(machine))


def _stack_global(machine: _Machine, _):
    name, module = machine.stack.pop(), machine.stack.pop()
    _push_name(machine, module, name)


def _reduce(machine: _Machine, _):
    args, name = machine.stack.pop(), machine.stack.pop()
    _call(machine, name, args)


def _new_object_with_keywords(machine: _Machine, _):
    keywords, args, name = (machine.stack.pop() for _ in range(3))
    _call(machine, name, (args, keywords))


def _build(machine: _Machine, _):
    """Sets a Foreign's state; drops the attributes of dicts and arrays."""
    state = machine.stack.pop()
    target = _top(machine, (Foreign, dict, np.ndarray))
    if isinstance(target, Foreign):
        target.state = state


def _persistent(machine: _Machine, _):
    if machine.persistent is None:
        raise ConfigError(
            "its pickle refers to arrays stored outside it: it was extracted from a torch.save "
            "file; give that file"
        )
    machine.push(machine.persistent(machine.stack.pop()), 2 * BYTES_COST)


def _call(machine: _Machine, name, args):
    if not isinstance(name, Name) or not isinstance(args, tuple):
        raise ConfigError(
            f"its pickle calls {described(name)} with {described(args)}; {DOWNLOAD_AGAIN}"
        )
    function = machine.table.get(name.full)
    if function is None:
        machine.push(Foreign(name.full, args), CONTAINER_COST)
        return
    lengths = (len(arg) for arg in args if isinstance(arg, list | tuple | dict))
    machine.budget.spend(CONTAINER_COST + ENTRY_COST * (len(args) + sum(lengths)))
    machine.push(function(*args))


def _line(machine: _Machine) -> str:
    line, found, _ = bytes(machine.data[machine.position :][: 4 * LONGEST_NAME]).partition(b"\n")
    if not found:
        raise ConfigError(f"its pickle has a name without an end; {DOWNLOAD_AGAIN}")
    machine.position += len(line) + 1
    return line.decode()


def _push_name(machine: _Machine, *parts):
    if any(not isinstance(part, str) or len(part) > LONGEST_NAME for part in parts):
        raise ConfigError(f"its pickle has a class with an invalid name; {DOWNLOAD_AGAIN}")
    machine.push(Name(".".join(parts)), CONTAINER_COST + TEXT_COST + 4 * sum(map(len, parts)))


def _top(machine: _Machine, kinds):
    """The top of the stack; raises unless it has a given type."""
    target = machine.stack[-1]
    if not isinstance(target, kinds):
        raise ConfigError(f"its pickle fills {described(target)}; {DOWNLOAD_AGAIN}")
    return target


PROTOCOL_OPCODE, STOP_OPCODE = 0x80, ord(".")

OPERATIONS: dict[int, tuple[Callable[[_Machine, Any], None], Any]] = {
    0x80: (_protocol, None),
    0x95: (_frame, None),
    ord("N"): (_constant, None),
    0x88: (_constant, True),
    0x89: (_constant, False),
    ord(")"): (_constant, ()),
    ord("]"): (_new, list),
    ord("}"): (_new, dict),
    0x8F: (_new, set),
    ord("K"): (_unsigned, 1),
    ord("M"): (_unsigned, 2),
    ord("J"): (_signed, 4),
    0x8A: (_long, 1),
    0x8B: (_long, 4),
    ord("G"): (_float, None),
    ord("C"): (_bytes, 1),
    ord("B"): (_bytes, 4),
    0x8E: (_bytes, 8),
    0x96: (_bytes, 8),
    0x8C: (_text, 1),
    ord("X"): (_text, 4),
    0x8D: (_text, 8),
    ord("("): (_mark, None),
    ord("0"): (_pop, None),
    ord("1"): (_pop_mark, None),
    0x85: (_tuple, 1),
    0x86: (_tuple, 2),
    0x87: (_tuple, 3),
    ord("t"): (_tuple_since_mark, None),
    0x91: (_frozenset, None),
    ord("a"): (_append, None),
    ord("e"): (_appends, None),
    ord("s"): (_set_item, None),
    ord("u"): (_set_items, None),
    0x90: (_add_items, None),
    ord("q"): (_put, 1),
    ord("r"): (_put, 4),
    0x94: (_memoize, None),
    ord("h"): (_get, 1),
    ord("j"): (_get, 4),
    ord("c"): (_global, None),
    0x93: (_stack_global, None),
    ord("R"): (_reduce, None),
    0x81: (_reduce, None),  # NEWOBJ: a class in place of a function
    0x92: (_new_object_with_keywords, None),
    ord("b"): (_build, None),
    ord("Q"): (_persistent, None),
}
