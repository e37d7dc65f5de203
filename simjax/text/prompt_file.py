"""Reads files of prompts: .txt, .tsv, .csv, .json and .jsonl, streaming.

Input is untrusted: at most one block and one record are in memory, and errors name the line or
entry. Called from prompts.py.
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from simjax.errors import ConfigError

COLUMNS = ("caption", "prompt", "text")  # in order of preference
BLOCK = 2**18  # bytes per read; our choice
LONGEST = 2**16  # characters per line or record, more than any encoder reads; our choice

WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's BOM starts with one of them
LINE_ENDS = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")
SPACE = re.compile(r"[ \t\r\n]*")  # JSON whitespace

Places = Iterator[tuple[str, str]]  # (line or entry, prompt); prompts may be empty


def read(path: epath.PathLike) -> Iterator[str]:
    """Yields the prompt of each record, stripped; "" for an empty line.

    Raises:
      ConfigError: an unknown file type, or a record that is not a prompt, named by its place.
    """
    path = epath.Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        known = ", ".join(filter(None, KINDS))
        raise ConfigError(
            f"{path}: {kind} is not a known file type of prompts; known: {known}. Rename a text "
            "file with one prompt per line to NAME.txt."
        )
    for place, prompt in KINDS[kind](path):
        if "\0" in prompt or not _is_unicode(prompt):
            raise ConfigError(
                f"{path}, {place}: not utf-8 text (NUL characters or another encoding); save it as "
                "utf-8."
            )
        yield prompt.strip()


def _text(path: epath.Path) -> Places:
    """One prompt per line."""
    for number, line in _lines(path):
        yield f"line {number}", line


def _tsv(path: epath.Path) -> Places:
    """Columns separated by tabs, without quoting; without a header, the last column."""
    rows = ((number, line.rstrip("\r\n").split("\t")) for number, line in _lines(path))
    _, names = first = next(rows, (1, [""]))
    column = _column(path, names)
    if column is None:
        column, rows = -1, itertools.chain([first], rows)
    yield from _cells(path, rows, len(names), column)


def _csv(path: epath.Path) -> Places:
    """RFC 4180: commas, quotes, line ends within quotes; a header."""
    size = 0  # characters of this record: bounds the effect of an unclosed quote

    def bounded() -> Iterator[str]:
        nonlocal size
        for number, line in _lines(path):
            size += len(line)
            if size > LONGEST:
                raise _too_long(path, f"line {number}", "a quote may be unclosed")
            yield line

    def rows() -> Iterator[tuple[int, list[str]]]:
        nonlocal size
        reader = csv.reader(bounded(), strict=True)
        try:
            for row in reader:
                size = 0
                yield reader.line_num, row
        except csv.Error as error:
            raise ConfigError(
                f"{path}, line {reader.line_num}: {error}; expected columns separated by commas, "
                'and quotes within quotes doubled ("").'
            ) from error

    found = rows()
    _, names = next(found, (1, [""]))
    column = _column(path, names)
    if column is None:
        raise ConfigError(
            f"{path}: the columns of the first row are {', '.join(names)[:80]!r}; expected columns "
            f"separated by commas, one of them named {', '.join(COLUMNS)}. Add that header."
        )
    yield from _cells(path, found, len(names), column)


def _jsonl(path: epath.Path) -> Places:
    """One JSON string or object per line."""
    for number, line in _lines(path):
        place = f"line {number}"
        with _refusing(path, place):
            prompt = _prompt_of(DECODER.decode(line.strip())) if line.strip() else ""
        yield place, prompt


def _json(path: epath.Path) -> Places:
    """A JSON list of strings or objects, parsed entry by entry."""
    window = _Window(_blocks(path))
    with _refusing(path, "at the beginning (for one object per line, name it .jsonl)"):
        window.take("[")
    is_empty = window.sign() == "]"
    for number in itertools.count(1):
        with _refusing(path, f"entry {number}"):
            prompt = "" if is_empty else _prompt_of(window.value())
            end = window.take("]" if is_empty else ",]")
        yield f"entry {number}", prompt
        if end == "]":
            break
    with _refusing(path, "after the list"):
        window.take("")


class _Window:
    """A JSON text read block by block, with a cursor."""

    def __init__(self, blocks: Iterator[str]):
        self._blocks, self._text, self._at = blocks, "", 0

    def sign(self) -> str:
        """The next non-space character; "" at the end."""
        while self._reach(1):
            self._at = SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
        return ""

    def take(self, known: str) -> str:
        """Consumes the next character, one of `known`; "" expects the end."""
        sign = self.sign()
        if sign not in known or (known and not sign):
            raise ValueError(
                f"found {sign or 'the end'}, expected {' or '.join(known) or 'the end'}"
            )
        self._at += len(sign)
        return sign

    def value(self) -> Any:
        """Parses the next JSON value of at most LONGEST characters."""
        self.sign()
        self._reach(LONGEST + 1)
        start = self._at
        value, self._at = DECODER.raw_decode(self._text, start)
        if self._at - start > LONGEST:
            raise ValueError(f"{self._at - start} characters")
        return value

    def _reach(self, count: int) -> bool:
        """Reads until `count` characters are ahead; False if the text ends before."""
        while len(self._text) - self._at < count and (block := next(self._blocks, "")):
            self._text, self._at = self._text[self._at :] + block, 0
        return len(self._text) - self._at >= count


KINDS: dict[str, Callable[[epath.Path], Places]] = {
    "": _text,
    ".txt": _text,
    ".tsv": _tsv,
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
}


def _column(path: epath.Path, names: list[str]) -> int | None:
    """Index of the prompts' column; None if the row is no header."""
    known = [name.strip().lower() for name in names]
    name = next((name for name in COLUMNS if name in known), None)
    if name is None:
        return None
    if known.count(name) > 1:
        raise ConfigError(f"{path}, line 1: two columns are named {name}; rename one.")
    return known.index(name)


def _cells(
    path: epath.Path, rows: Iterator[tuple[int, list[str]]], width: int, column: int
) -> Places:
    """One column of rows, which must all have `width` columns."""
    for number, row in rows:
        is_empty = not any(map(str.strip, row))
        if len(row) != width and not is_empty:
            raise ConfigError(
                f"{path}, line {number}: {len(row)} columns, expected {width} as in line 1; in a "
                ".tsv, separate columns by one tab and use no tabs or line ends within prompts."
            )
        yield f"line {number}", "" if is_empty else row[column]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object with lower-cased keys."""
    found = {name.lower(): value for name, value in pairs}
    if len(found) != len(pairs):
        raise ValueError("two keys with the same name")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _prompt_of(value: Any) -> str:
    """A JSON string, or an object's value for the first of COLUMNS."""
    if isinstance(value, dict):
        value = next((value[name] for name in COLUMNS if name in value), None)
    if not isinstance(value, str):
        raise ValueError("no prompt")
    return value


@contextlib.contextmanager
def _refusing(path: epath.Path, place: str) -> Iterator[None]:
    """Turns JSON errors into a ConfigError that names the place."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", str(error))[:100]
        raise ConfigError(
            f"{path}, {place}: {reason}; expected strings, or objects with {', '.join(COLUMNS)}, "
            f"of at most {LONGEST} characters (a .json: a list of them)."
        ) from error


def _lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, with its \\n, \\r\\n or \\r."""
    rest, numbers = "", itertools.count(1)
    for block in itertools.chain(_blocks(path), [""]):
        *lines, rest = LINE_ENDS.split(rest + block)
        if not block or len(rest) > LONGEST:
            lines.append(rest)
        for line in filter(None, lines):
            number = next(numbers)
            if len(line.rstrip("\r\n")) > LONGEST:
                raise _too_long(path, f"line {number}", "expected one prompt per line")
            yield number, _utf8(path, f"line {number}", line)


def _blocks(path: epath.Path) -> Iterator[str]:
    """Decodes block by block, not splitting \\r\\n; invalid bytes become surrogates."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    newlines = io.IncrementalNewlineDecoder(decoder, translate=False)
    try:
        with path.expanduser().open("rb") as file:
            block = file.read(BLOCK)
            if block.startswith(WIDE):
                raise ConfigError(
                    f'{path}, line 1: utf-16 (the "Unicode" of some programs), expected utf-8; '
                    "save it as utf-8."
                )
            while block:
                if text := newlines.decode(block):
                    yield text
                block = file.read(BLOCK)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}; expected a file of prompts."
        ) from error
    if text := newlines.decode(b"", final=True):
        yield text


def _utf8(path: epath.Path, place: str, text: str) -> str:
    """The text; raises if its bytes were not utf-8."""
    try:
        text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}, {place}: not utf-8 ({error.reason}, byte {error.start + 1} of the line); "
            "save it as utf-8."
        ) from error
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_long(path: epath.Path, place: str, hint: str) -> ConfigError:
    return ConfigError(f"{path}, {place}: more than {LONGEST} characters; {hint}.")
