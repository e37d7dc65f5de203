"""Files of prompts: text, .tsv, .csv, .json and .jsonl, read piece by piece.

They may come from anybody: no more than a block and one record is in memory, and what is wrong is
refused with its place. Called from prompts.py.
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

COLUMNS = ("caption", "prompt", "text")  # the first of these that is there
BLOCK = 2**18  # bytes read at a time; our choice
LONGEST = 2**16  # characters of a line or record; our choice: no encoder keeps as much

WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's begins with one of them
LINE_ENDS = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")
SPACE = re.compile(r"[ \t\r\n]*")  # of JSON

Places = Iterator[tuple[str, str]]  # where it stands, and the prompt, which may be empty


def read(path: epath.PathLike) -> Iterator[str]:
    """Each record's prompt, without the spaces around it; empty where a line is.

    Raises:
      ConfigError: of an unknown kind, or naming the place of what is no prompt.
    """
    path = epath.Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        known = ", ".join(filter(None, KINDS))
        raise ConfigError(
            f"{path}: {kind} is not a kind of prompt file; known: {known}. Rename a text file with "
            "a prompt on each line to NAME.txt."
        )
    for place, prompt in KINDS[kind](path):
        if "\0" in prompt or not _is_unicode(prompt):
            raise ConfigError(
                f"{path}, {place}: not text in utf-8 (zeros, or characters of another encoding); "
                "save it as utf-8."
            )
        yield prompt.strip()


def _text(path: epath.Path) -> Places:
    """A prompt a line."""
    for number, line in _lines(path):
        yield f"line {number}", line


def _tsv(path: epath.Path) -> Places:
    """Columns are what tabs separate, without quotes; without names, the last one counts."""
    rows = ((number, line.rstrip("\r\n").split("\t")) for number, line in _lines(path))
    _, names = first = next(rows, (1, [""]))
    column = _column(path, names)
    if column is None:
        column, rows = -1, itertools.chain([first], rows)
    yield from _cells(path, rows, len(names), column)


def _csv(path: epath.Path) -> Places:
    """RFC 4180: commas, quotes, line ends inside quotes; the first row names the columns."""
    size = 0  # of this record so far: a quote that is never closed would read on to the end

    def bounded() -> Iterator[str]:
        nonlocal size
        for number, line in _lines(path):
            size += len(line)
            if size > LONGEST:
                raise _too_long(path, f"line {number}", "is a quote not closed?")
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
                'and quotes inside quotes doubled ("").'
            ) from error

    found = rows()
    _, names = next(found, (1, [""]))
    column = _column(path, names)
    if column is None:
        raise ConfigError(
            f"{path}: the columns of its first row are {', '.join(names)[:80]!r}; expected commas "
            f"between them and one named {', '.join(COLUMNS)}. Add that row."
        )
    yield from _cells(path, found, len(names), column)


def _jsonl(path: epath.Path) -> Places:
    """A string or an object a line."""
    for number, line in _lines(path):
        place = f"line {number}"
        with _refusing(path, place):
            prompt = _prompt_of(DECODER.decode(line.strip())) if line.strip() else ""
        yield place, prompt


def _json(path: epath.Path) -> Places:
    """A list of strings or of objects, taken one after another."""
    window = _Window(_blocks(path))
    with _refusing(path, "at its beginning (for an object a line, name it .jsonl)"):
        window.take("[")
    is_empty = window.sign() == "]"
    for number in itertools.count(1):
        with _refusing(path, f"entry {number}"):
            prompt = "" if is_empty else _prompt_of(window.value())
            end = window.take("]" if is_empty else ",]")
        yield f"entry {number}", prompt
        if end == "]":
            break
    with _refusing(path, "after its list"):
        window.take("")


class _Window:
    """A JSON text of which a piece is in memory, and where it is read."""

    def __init__(self, blocks: Iterator[str]):
        self._blocks, self._text, self._at = blocks, "", 0

    def sign(self) -> str:
        """The next character that is no space; "" at the end."""
        while self._reach(1):
            self._at = SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
        return ""

    def take(self, known: str) -> str:
        """The next character, which must be one of these, or the end of the text."""
        sign = self.sign()
        if sign not in known or (known and not sign):
            raise ValueError(f"found {sign or 'its end'}, expected {' or '.join(known) or 'none'}")
        self._at += len(sign)
        return sign

    def value(self) -> Any:
        """The next string, object or the like, if it is not too long."""
        self.sign()
        self._reach(LONGEST + 1)
        start = self._at
        value, self._at = DECODER.raw_decode(self._text, start)
        if self._at - start > LONGEST:
            raise ValueError(f"{self._at - start} characters")
        return value

    def _reach(self, count: int) -> bool:
        """Whether so many characters lie ahead, once no more can be had."""
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
    """Which of the columns has the prompts, if one says so."""
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
    """One column of rows that all have the same number."""
    for number, row in rows:
        is_empty = not any(map(str.strip, row))
        if len(row) != width and not is_empty:
            raise ConfigError(
                f"{path}, line {number}: {len(row)} columns, expected {width} as in line 1; of a "
                ".tsv, separate columns by one tab, and keep tabs and line ends out of prompts."
            )
        yield f"line {number}", "" if is_empty else row[column]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object under small letters."""
    found = {name.lower(): value for name, value in pairs}
    if len(found) != len(pairs):
        raise ValueError("two entries of one name")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _prompt_of(value: Any) -> str:
    """A JSON string, or the one that an object has under one of COLUMNS."""
    if isinstance(value, dict):
        value = next((value[name] for name in COLUMNS if name in value), None)
    if not isinstance(value, str):
        raise ValueError("no prompt")
    return value


@contextlib.contextmanager
def _refusing(path: epath.Path, place: str) -> Iterator[None]:
    """Names the place of JSON that cannot be read, or holds something else."""
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
    """Number and text of each line, with its end: \\n, \\r\\n or \\r."""
    rest, numbers = "", itertools.count(1)
    for block in itertools.chain(_blocks(path), [""]):
        *lines, rest = LINE_ENDS.split(rest + block)
        if not block or len(rest) > LONGEST:
            lines.append(rest)
        for line in filter(None, lines):
            number = next(numbers)
            if len(line.rstrip("\r\n")) > LONGEST:
                raise _too_long(path, f"line {number}", "expected one prompt a line")
            yield number, _utf8(path, f"line {number}", line)


def _blocks(path: epath.Path) -> Iterator[str]:
    """The text, a block at a time, never ending between \\r and \\n; wrong bytes as surrogates."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    newlines = io.IncrementalNewlineDecoder(decoder, translate=False)
    try:
        with path.expanduser().open("rb") as file:
            block = file.read(BLOCK)
            if block.startswith(WIDE):
                raise ConfigError(
                    f'{path}, line 1: not utf-8 but utf-16, the "Unicode" of some programs; save '
                    "it as utf-8."
                )
            while block:
                if text := newlines.decode(block):
                    yield text
                block = file.read(BLOCK)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}; give a file of prompts.") from error
    if text := newlines.decode(b"", final=True):
        yield text


def _utf8(path: epath.Path, place: str, text: str) -> str:
    """The text, if it was utf-8."""
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
