"""Writes SentencePiece's spiece.model without the library."""

import struct

import numpy as np

from simjax.text.tokenizer import SPACE

LETTERS = "abcdefgh"
SPECIAL = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]


def pieces():
    """T5's three special tokens, and random overlapping ones."""
    draw = np.random.default_rng(0)
    words = [SPACE, *LETTERS, *(SPACE + letter for letter in LETTERS[:4])]
    for size in (2, 3, 4):
        words += ["".join(draw.choice(list(LETTERS[:5]), size)) for _ in range(25)]
    words += [SPACE + word for word in words[-40:]]
    words = list(dict.fromkeys(words))
    scores = -draw.uniform(2, 9, len(words)).astype(np.float32)
    return SPECIAL + [(w, float(score), 1) for w, score in zip(words, scores, strict=True)]


def varint(value):
    parts = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([part | 128 for part in parts[:-1]] + parts[-1:])


def field(number, value):
    """A protobuf field: integer, float or bytes."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def spiece(pieces, *, trainer=b"", normalizer=b""):
    """A ModelProto of sentencepiece_model.proto."""
    content = b""
    for text, score, kind in pieces:
        explicit = field(3, kind) if kind != 1 else b""
        content += field(1, field(1, text.encode()) + field(2, score) + explicit)
    return content + field(2, field(3, 1) + trainer) + field(3, field(1, b"x") + normalizer)


def charsmap(replacements):
    """SentencePiece's replacement table: a double-array trie, then the replacement texts.

    Byte b leads from a node at p to base ^ b, with base = p ^ offset; here every node has its own
    256 slots. Bits of a unit: 0-7 its byte, 8 whether its base holds a value, 10-31 its offset. A
    value is the position of a text, with bit 31 set.
    """
    texts, units, bases = b"", {}, {b"": 256}
    for source in replacements:
        for end in range(1, len(source.encode()) + 1):
            bases.setdefault(source.encode()[:end], 256 * (len(bases) + 1))
    ends = {source.encode(): target for source, target in replacements.items()}
    units[0] = 256 << 10
    for prefix, base in bases.items():
        if not prefix:
            continue
        place = bases[prefix[:-1]] ^ prefix[-1]
        units[place] = prefix[-1] | (place ^ base) << 10 | (prefix in ends) << 8
        if prefix in ends:
            units[base] = 1 << 31 | len(texts)
            texts += ends[prefix].encode() + b"\0"
    array = np.zeros(256 * (len(bases) + 2), "<u4")
    array[list(units)] = list(units.values())
    return struct.pack("<I", array.nbytes) + array.tobytes() + texts


REPLACED = {"\N{FULLWIDTH LATIN SMALL LETTER A}": "a", "\N{NO-BREAK SPACE}": " ", "Æ": "ae"}
