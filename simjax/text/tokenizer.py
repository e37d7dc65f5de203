"""T5 tokenizer from a tokenizer.json or a spiece.model.

spiece.model is a SentencePiece model (arXiv:1808.06226), a protobuf of pieces with log
probabilities. The file is untrusted, so it is parsed by Python's protobuf with the message classes
of `sentencepiece`, whose C++ code never reads it. As in transformers, `tokenizers` computes the
most probable segmentation (unigram model, arXiv:1804.10959).
"""

import contextlib
import hashlib
import importlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simjax.errors import ConfigError
from simjax.porting.files.foreign_file import DOWNLOAD_AGAIN, reading, shown
from simjax.typing import Bool, Int

FILES = ("tokenizer.json", "spiece.model")  # in order of preference
END = "</s>"  # the end of a sequence
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # a space in SentencePiece
LARGEST_FILE = 64 * 2**20  # bytes; our choice: T5's have 2.4 and 0.8 MB, mT5's 16 and 4
LARGEST_MODEL = 8 * 2**20  # bytes of spiece.model; protobuf needs up to 28 times as much memory
MOST_PIECES = 2**19  # our choice: twice mT5's
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # types of pieces
_PLAIN = {  # settings of T5's models, which are also the defaults
    "trainer_spec": {"model_type": 1, "byte_fallback": False},  # 1: unigram
    "normalizer_spec": {
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": True,
        "escape_whitespaces": True,
    },
}

Tokens = Int[np.ndarray, "n l"]
Mask = Bool[np.ndarray, "n l"]


class Tokenizer:
    """Tokenizes prompts.

    Args:
      path: tokenizer.json, spiece.model, or a folder with one of them.

    Attributes:
      path: the file.
      sha256: checksum of the file.
      largest: the largest token id.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = _file(Path(path))
        with reading(self.path) as (data, _), _panicking():
            is_json = data[:1] == b"{"
            _require_size(data, LARGEST_FILE if is_json else LARGEST_MODEL)
            self.sha256 = hashlib.sha256(data).hexdigest()
            self._library = _from_json(data) if is_json else _from_sentencepiece(data)
            self._library.no_padding()
            self.largest = max(self._library.get_vocab().values())
            self._library.enable_truncation(2)
            tokens = self._library.encode("a a").tokens
            if len(tokens) != 2 or tokens[-1] != END:
                raise ConfigError(
                    f"truncates 'a a' to {shown(str(tokens))}, expected 2 tokens, the last {END}, "
                    "as for T5; use the tokenizer of a T5 encoder"
                )

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tokens, Mask, int]:
        """Token ids (padded with 0), mask, and the number of truncated prompts.

        Truncated prompts keep the end-of-sequence token.

        Raises:
          ConfigError: `tokenizers` fails, or a text is not valid Unicode.
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
    """The path itself, or one of FILES in a folder."""
    if not path.is_dir():
        if path.exists():
            return path
        raise ConfigError(
            f"{path}: no such file; expected {' or '.join(FILES)}, or a folder with one."
        )
    file = next((path / name for name in FILES if (path / name).exists()), None)
    if file is None:
        raise ConfigError(
            f"{path}: has neither {' nor '.join(FILES)}; expected a folder with one of them (in a "
            "diffusers pipeline, its subfolder tokenizer)."
        )
    return file


def _require_size(data: memoryview, most: int) -> None:
    if len(data) > most:
        raise ConfigError(
            f"{len(data)} bytes, expected at most {most}; use the tokenizer of a T5 encoder"
        )


def _library(name: str) -> Any:
    """Imports a module of the optional dependencies `text`."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # protobuf raises other errors if it is too old
        raise ConfigError(
            f'reading it needs {name.partition(".")[0]}: pip install "simjax[text]" '
            f"({str(error)[:200]})"
        ) from error


@contextlib.contextmanager
def _panicking() -> Iterator[None]:
    """Turns a Rust panic, which is a BaseException, into a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"tokenizers: {error}") from error


def _from_json(data: memoryview) -> Any:
    return _library("tokenizers").Tokenizer.from_str(bytes(data).decode())


def _from_sentencepiece(data: memoryview) -> Any:
    """T5's pipeline from a spiece.model: normalizer, words, unigram pieces, end token."""
    model = _library("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(data)
    _require_plain(model)
    unknown, end = _unknown_and_end(model.pieces)
    library = _library("tokenizers")
    unigram = library.models.Unigram(
        [(piece.piece, piece.score) for piece in model.pieces], unk_id=unknown, byte_fallback=False
    )
    tokenizer = library.Tokenizer(unigram)
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        tokenizer.normalizer = library.normalizers.Precompiled(charsmap)
    split = library.pre_tokenizers.WhitespaceSplit()
    spaces = library.pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([split, spaces])
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=["$A", END], special_tokens=[(END, end)]
    )
    special = [piece.piece for piece in model.pieces if piece.type != _NORMAL]
    tokenizer.add_special_tokens(special)  # recognised in prompts, as in transformers
    return tokenizer


def _require_plain(model: Any) -> None:
    """Raises if a setting differs from that of T5's models."""
    for message, settings in _PLAIN.items():
        for name, expected in settings.items():
            value = getattr(getattr(model, message), name)
            if value != expected:
                raise ConfigError(
                    f"{name} = {int(value)} is not supported, expected {int(expected)} as for T5; "
                    "use a tokenizer.json, which transformers saves"
                )


def _unknown_and_end(pieces: Sequence[Any]) -> tuple[int, int]:
    """Token ids of the unknown and of the end-of-sequence piece.

    Raises:
      ConfigError: one of them is missing or duplicated, or another piece is invalid for T5.
    """
    if len(pieces) > MOST_PIECES:
        raise ConfigError(f"more than {MOST_PIECES} pieces; {DOWNLOAD_AGAIN}")
    for piece in pieces:
        _require_like_t5s(piece)
    names = [piece.piece for piece in pieces]
    if len(set(names)) != len(names):
        (twice, _), *_ = Counter(names).most_common(1)
        raise ConfigError(f"the piece {shown(twice)} is duplicated; {DOWNLOAD_AGAIN}")
    types = [piece.type for piece in pieces]
    if types.count(_UNKNOWN) != 1 or END not in names:
        raise ConfigError(
            f"not a SentencePiece model of T5: {len(pieces)} pieces, {types.count(_UNKNOWN)} of "
            f"them of type unknown, {names.count(END)} of them {END}; expected one of each. Use "
            "T5's spiece.model or a tokenizer.json"
        )
    return types.index(_UNKNOWN), names.index(END)


def _require_like_t5s(piece: Any) -> None:
    text, score, kind = piece.piece, piece.score, piece.type
    if not isinstance(text, str):
        raise ConfigError(f"damaged: the piece {shown(str(text))} is not UTF-8; {DOWNLOAD_AGAIN}")
    if not text or not math.isfinite(score) or kind not in (_NORMAL, _UNKNOWN, _CONTROL):
        raise ConfigError(
            f"the piece {shown(text)!r} has log probability {score} and type {kind}; expected a "
            "nonempty text, a finite number and type 1, 2 or 3, as in T5's spiece.model. For other "
            "models use a tokenizer.json, which transformers saves"
        )
