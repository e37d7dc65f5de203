"""Prompts to T5's tokens, by the file beside an encoder: tokenizer.json or spiece.model.

spiece.model is a SentencePiece model, a protobuf of pieces with their log probabilities; the most
probable cut of a prompt (unigram, arXiv:1804.10959; SentencePiece, arXiv:1808.06226) is found by
the `tokenizers` library. The file may come from anybody..
"""

import contextlib
import hashlib
import math
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simjax.errors import ConfigError
from simjax.porting.files.foreign_file import DOWNLOAD_AGAIN, reading, shown
from simjax.typing import Bool, Int

FILES = ("tokenizer.json", "spiece.model")  # in a folder, the first that is there
END = "</s>"  # the end of a sequence
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in SentencePiece's pieces
LARGEST_FILE = 64 * 2**20  # bytes; our choice: T5's have 2.4 and 0.8 MB, mT5's 16 and 4
MOST_PIECES = 2**19  # our choice: twice mT5's

# sentencepiece_model.proto: numbers of the fields read here, and of what they may be.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3  # of a piece
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # types
_CHARSMAP = 2  # of the normalizer: the table of characters that it replaces
_PLAIN = {  # (message, field): name, what T5's models have, which is the default too
    (_TRAINER, 3): ("model_type", 1),  # unigram
    (_TRAINER, 35): ("byte_fallback", 0),
    (_NORMALIZER, 3): ("add_dummy_prefix", 1),
    (_NORMALIZER, 4): ("remove_extra_whitespaces", 1),
    (_NORMALIZER, 5): ("escape_whitespaces", 1),
}
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types

Tokens = Int[np.ndarray, "n l"]
Mask = Bool[np.ndarray, "n l"]


class Tokenizer:
    """What cuts prompts into tokens.

    Args:
      path: tokenizer.json, spiece.model, or the folder that has one of them.

    Attributes:
      sha256: of the file.
      largest: the largest token.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = _file(Path(path))
        with reading(self.path) as (data, _), _panicking():
            if len(data) > LARGEST_FILE:
                raise ConfigError(f"{len(data)} bytes, expected at most {LARGEST_FILE}")
            self.sha256 = hashlib.sha256(data).hexdigest()
            self._library = _from_json(data) if data[:1] == b"{" else _from_sentencepiece(data)
            self._library.no_padding()
            self.largest = max(self._library.get_vocab().values())
            self._library.enable_truncation(2)
            tokens = self._library.encode("a a").tokens
            if len(tokens) != 2 or tokens[-1] != END:
                raise ConfigError(
                    f"cuts 'a a' to {shown(str(tokens))}, expected 2 tokens, {END} the last, as "
                    "T5's does; give the file of a T5 encoder"
                )

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tokens, Mask, int]:
        """Tokens, 0 after the end; which are real; and how many prompts were cut to `length`.

        What is cut keeps its end of sequence.

        Raises:
          ConfigError: the library fails, or a text is no unicode.
        """
        tokens = np.zeros((len(texts), length), np.int32)
        self._library.enable_truncation(length)
        try:
            with _panicking():
                found = self._library.encode_batch(list(texts))
        except Exception as error:
            raise ConfigError(
                f"{self.path}: {len(texts)} prompts, the first {shown(texts[0])!r}, cannot be "
                f"encoded: {str(error)[:200]}"
            ) from error
        for row, one in zip(tokens, found, strict=True):
            row[: len(one.ids)] = one.ids
        lengths = np.array([len(one.ids) for one in found], int)
        mask = np.arange(length) < lengths[:, None]
        return tokens, mask, sum(bool(one.overflowing) for one in found)


def _file(path: Path) -> Path:
    """The path, or the file of FILES in the folder there."""
    if not path.is_dir():
        if path.exists():
            return path
        raise ConfigError(f"{path}: no such tokenizer; expected {' or '.join(FILES)}, or a folder.")
    file = next((path / name for name in FILES if (path / name).exists()), None)
    if file is None:
        raise ConfigError(
            f"{path}: has neither {' nor '.join(FILES)}; give the folder that has one of them: "
            "of a whole pipeline, its tokenizer."
        )
    return file


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            'reading it needs the library tokenizers: pip install "simjax[text]"'
        ) from error
    return tokenizers


@contextlib.contextmanager
def _panicking() -> Iterator[None]:
    """Makes an Exception of what Rust raises where it meets what it thought impossible."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"tokenizers: {error}") from error


def _from_json(data: memoryview) -> Any:
    return _tokenizers().Tokenizer.from_str(bytes(data).decode())


def _from_sentencepiece(data: memoryview) -> Any:
    """T5's normalizer, cut at spaces, pieces and end, of a spiece.model."""
    model = _sentencepiece(data)
    library = _tokenizers()
    unigram = library.models.Unigram(model.pieces, unk_id=model.unknown, byte_fallback=False)
    tokenizer = library.Tokenizer(unigram)
    if model.charsmap:
        tokenizer.normalizer = library.normalizers.Precompiled(model.charsmap)
    split = library.pre_tokenizers.WhitespaceSplit()
    spaces = library.pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([split, spaces])
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=["$A", END], special_tokens=[(END, model.end)]
    )
    tokenizer.add_special_tokens(model.special)  # a prompt may name them, as in transformers
    return tokenizer


class _Model(NamedTuple):
    """Of a spiece.model: pieces with log probabilities, those that are no text; replacements."""

    pieces: list[tuple[str, float]]
    special: list[str]
    unknown: int
    end: int
    charsmap: bytes


def _sentencepiece(data: memoryview) -> _Model:
    """Reads ModelProto.

    Raises:
      ConfigError: it is damaged, or a kind of model that T5's are not.
    """
    pieces: list[tuple[str, float]] = []
    types: list[int] = []
    charsmap = b""
    for number, value in _fields(data):
        if number == _PIECES:
            if len(pieces) == MOST_PIECES:
                raise ConfigError(f"more than {MOST_PIECES} pieces; {DOWNLOAD_AGAIN}")
            *piece, kind = _piece(_message(value))
            pieces.append(tuple(piece))
            types.append(kind)
        elif number in (_TRAINER, _NORMALIZER):
            for inner, setting in _fields(_message(value)):
                _require_plain(number, inner, setting)
                if (number, inner) == (_NORMALIZER, _CHARSMAP):
                    charsmap = bytes(_message(setting))
    names = [name for name, _ in pieces]
    if len(set(names)) != len(names):
        (twice, _), *_ = Counter(names).most_common(1)
        raise ConfigError(f"the piece {shown(twice)} is there twice; {DOWNLOAD_AGAIN}")
    if types.count(_UNKNOWN) != 1 or END not in names:
        raise ConfigError(
            f"{len(pieces)} pieces, {types.count(_UNKNOWN)} of them for what is unknown, "
            f"{names.count(END)} of them {END}; expected one of each, as in T5's spiece.model"
        )
    special = [name for name, kind in zip(names, types, strict=True) if kind != _NORMAL]
    return _Model(pieces, special, types.index(_UNKNOWN), names.index(END), charsmap)


def _piece(data: memoryview) -> tuple[str, float, int]:
    """Text, log probability and type."""
    text, score, kind = "", 0.0, _NORMAL
    for number, value in _fields(data):
        if number == _TEXT:
            text = bytes(_message(value)).decode()
        elif number == _SCORE:
            score = _float(value)
        elif number == _TYPE:
            kind = value
    if not text or not math.isfinite(score) or kind not in (_NORMAL, _UNKNOWN, _CONTROL):
        raise ConfigError(
            f"the piece {shown(text)!r} has log probability {score} and type {kind}; expected a "
            "text, a finite number and type 1, 2 or 3, as in T5's spiece.model. Of other models "
            "give a tokenizer.json, which transformers saves"
        )
    return text, score, kind


def _require_plain(message: int, field: int, value: Any) -> None:
    """Refuses a setting that T5's models do not have."""
    name, expected = _PLAIN.get((message, field), ("", value))
    if value != expected:
        raise ConfigError(
            f"{name} = {shown(str(value))} is not supported, T5's models have {expected}; give a "
            "tokenizer.json, which transformers saves"
        )


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview | bytes]]:
    """Number and value of each field of a protobuf message, in its order.

    A value is a number, a view (a message, text or bytes), or the bytes of a fixed-size number.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
        elif wire == _BYTES:
            size, position = _varint(data, position)
            value, position = data[position : position + size], position + size
        elif wire in (_FOUR_BYTES, _EIGHT_BYTES):
            size = 4 if wire == _FOUR_BYTES else 8
            value, position = bytes(data[position : position + size]), position + size
        else:
            raise ConfigError(f"no SentencePiece model: a field of wire type {wire}")
        if position > len(data):
            raise ConfigError(f"no SentencePiece model, or cut short; {DOWNLOAD_AGAIN}")
        yield tag >> 3, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A whole number of 64 bits, seven a byte, the lowest first; and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position + shift // 7]  # beyond the end: IndexError, which `reading` refuses
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position + shift // 7 + 1
    raise ConfigError("no SentencePiece model: a number of more than 64 bits")


def _message(value: Any) -> memoryview:
    if not isinstance(value, memoryview):
        raise ConfigError("no SentencePiece model: a number where a message or text belongs")
    return value


def _float(value: Any) -> float:
    if not isinstance(value, bytes) or len(value) != 4:
        raise ConfigError("no SentencePiece model: a log probability that is no float")
    return struct.unpack("<f", value)[0]
