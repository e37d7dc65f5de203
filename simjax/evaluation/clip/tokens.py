"""CLIP tokenizer: lower-cased byte-pair encoding between start and end token.

Reference: CLIP, arXiv:2103.00020, section 2.4; files of transformers' CLIPTokenizer.
Called from score.py.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from simjax.errors import ConfigError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"  # suffix of the last piece of every word
# Pre-tokenization (CLIP's simple_tokenizer.py): English contractions, runs of letters, single
# digits, runs of other characters; spaces are dropped. No merge crosses these boundaries.
WORDS = r"'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
FILES = "tokenizer.json, or vocab.json and merges.txt"


class Tokens(NamedTuple):
    """Tokens of n texts.

    Attributes:
      ids: start token, text, end token, padding.
      mask: False at padding.
      truncated: number of texts that were truncated.
    """

    ids: Int[np.ndarray, "n l"]
    mask: Bool[np.ndarray, "n l"]
    truncated: int


class Tokenizer:
    """Tokenizes texts to a fixed length.

    Attributes:
      length: tokens per text, including start, end and padding.
      size: vocabulary size; all token ids are smaller.
      end: id of the end token.
    """

    def __init__(self, folder: str | os.PathLike, length: int):
        """Loads the tokenizer from a folder with FILES.

        Raises:
          ConfigError: `tokenizers` is not installed, or files are missing, damaged or not CLIP's.
        """
        self._pieces = _read(Path(folder))
        self.length = length
        self.size = 1 + max(self._pieces.get_vocab(with_added_tokens=True).values(), default=-1)
        self.start, self.end = (self._pieces.token_to_id(token) for token in (START, END))
        if self.start is None or self.end is None:
            raise ConfigError(
                f"{folder}: the vocabulary lacks {START} or {END}; expected CLIP's {FILES}."
            )

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes texts, truncated to length - 2 tokens plus start and end."""
        ids = np.full((len(texts), self.length), self.end, np.int32)
        lengths = np.zeros(len(texts), np.int32)
        truncated = 0
        encoded = self._pieces.encode_batch(list(texts), add_special_tokens=False)
        for row, found in enumerate(encoded):
            kept = found.ids[: self.length - 2]
            truncated += len(kept) < len(found.ids)
            lengths[row] = len(kept) + 2
            ids[row, : lengths[row]] = [self.start, *kept, self.end]
        return Tokens(ids, np.arange(self.length) < lengths[:, None], truncated)


def _read(folder: Path) -> Any:
    """A tokenizers.Tokenizer without padding and truncation."""
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            'prompts need the package tokenizers: pip install "simjax[text]"'
        ) from error
    whole, vocabulary, merges = (
        folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        raise ConfigError(f"{folder}: no tokenizer; expected CLIP's {FILES} beside the weights.")
    try:
        if whole.is_file():
            pieces = tokenizers.Tokenizer.from_file(str(whole))
        else:
            pieces = _assembled(tokenizers, vocabulary, merges)
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(
            f"{folder}: the tokenizer cannot be read ({str(error)[:200]}); expected CLIP's "
            f"{FILES}. Download it again."
        ) from error
    pieces.no_padding()
    pieces.no_truncation()
    return pieces


def _assembled(tokenizers: Any, vocabulary: Path, merges: Path) -> Any:
    """Builds CLIP's tokenizer from vocab.json and merges.txt."""
    from tokenizers import models, normalizers, pre_tokenizers

    pieces = tokenizers.Tokenizer(
        models.BPE.from_file(
            str(vocabulary), str(merges), end_of_word_suffix=WORD_END, unk_token=END
        )
    )
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    pieces.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    pieces.add_special_tokens([START, END])
    return pieces
