"""Tokens of a spiece.model against a reference Viterbi; truncation; refusal of invalid files."""

import contextlib
import hashlib
import importlib
import io
import itertools
import json
import sys

import numpy as np
import pytest
import sentencepiece
import tokenizers

from simjax.errors import ConfigError
from simjax.text.tokenizer import SPACE, Tokenizer
from tests.helpers.tokenizer_files import (
    LETTERS,
    REPLACED,
    SPECIAL,
    charsmap,
    field,
    pieces,
    spiece,
)

UNKNOWN_PENALTY = 10  # SentencePiece: an unknown character scores this much below the worst piece


def viterbi(word, known):
    """Token ids of the most probable segmentation; runs of unknown characters are one piece."""
    worst = min(score for score, _ in known.values()) - UNKNOWN_PENALTY
    best = [(0.0, ())] + [(-np.inf, ())] * len(word)
    for end in range(1, len(word) + 1):
        for start in range(end):
            score, number = known.get(
                word[start:end], (worst, 2) if end - start == 1 else (0, None)
            )
            if number is not None and best[start][0] + score > best[end][0]:
                best[end] = (best[start][0] + score, (*best[start][1], number))
    return [n for n, group in itertools.groupby(best[-1][1]) for _ in ([0] if n == 2 else group)]


@pytest.fixture
def folder(tmp_path):
    """A tokenizer folder like those of T5's repositories."""
    table = field(2, charsmap(REPLACED))
    (tmp_path / "spiece.model").write_bytes(spiece(pieces(), normalizer=table))
    return tmp_path


def random_prompts(count, letters):
    draw = np.random.default_rng(1)
    return ["".join(draw.choice(list(letters), draw.integers(0, 40))) for _ in range(count)]


def test_every_word_has_its_most_probable_segmentation(folder):
    known = {text: (score, n) for n, (text, score, kind) in enumerate(pieces()) if kind == 1}
    prompts = random_prompts(200, "aabbccddeefgh   é日" + "".join(REPLACED))
    tokens, mask, truncated = Tokenizer(folder).encode(prompts, 100)
    for prompt, row, real in zip(prompts, tokens, mask, strict=True):
        for source, target in REPLACED.items():
            prompt = prompt.replace(source, target)
        expected = [n for word in prompt.split() for n in viterbi(SPACE + word, known)]
        assert row[real].tolist() == [*expected, 1], prompt
        assert not row[~real].any()
    assert truncated == 0
    assert (tokens == 2).any()


def test_tokens_of_a_trained_model_equal_sentencepieces(tmp_path):
    text, model = random_prompts(500, LETTERS + "     ,.Ａé①\N{NO-BREAK SPACE}ﬁ"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text[:400]),
        model_writer=model,
        vocab_size=100,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    prompts = [*text, "日本 a", "a▁b"]
    tokens, mask, _ = Tokenizer(tmp_path).encode(prompts, 50)
    for prompt, row, real in zip(prompts, tokens, mask, strict=True):
        assert row[real].tolist() == [*theirs.encode(prompt), 1], prompt


def test_special_tokens_in_a_prompt_are_recognised(folder):
    tokens, mask, _ = Tokenizer(folder).encode(["a</s>b", "a", "b", "<pad><unk>"], 9)
    whole, a, b, special = (row[real].tolist() for row, real in zip(tokens, mask, strict=True))
    assert whole == a + b
    assert special == [0, 2, 1]


def test_truncated_prompts_keep_the_end_token_and_are_counted(folder):
    tokenizer = Tokenizer(folder / "spiece.model")
    prompts = ["a b c d", "a b c d e f g h", "", "a b c"]
    whole, _, _ = tokenizer.encode(prompts, 20)
    tokens, mask, truncated = tokenizer.encode(prompts, 4)
    assert tokens.dtype == np.int32 and mask.dtype == bool and truncated == 2
    assert mask.sum(1).tolist() == [4, 4, 1, 4]
    np.testing.assert_array_equal(tokens[:, :3], whole[:, :3])
    assert tokens[[0, 1, 3], 3].tolist() == [1, 1, 1] and tokens[2].tolist() == [1, 0, 0, 0]


def test_padding_settings_of_a_tokenizer_json_are_ignored(folder, tmp_path):
    ours = Tokenizer(folder)
    library = ours._library
    library.enable_padding(length=50, pad_id=7)
    library.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer(tmp_path)  # preferred to the spiece.model beside it
    prompts = random_prompts(20, LETTERS + "  ")
    np.testing.assert_array_equal(
        again.encode(prompts, 9)[0], Tokenizer(tmp_path / "spiece.model").encode(prompts, 9)[0]
    )
    content = (tmp_path / "tokenizer.json").read_bytes()
    assert again.sha256 == hashlib.sha256(content).hexdigest() != ours.sha256
    assert again.largest == ours.largest == len(pieces()) - 1


GOOD = spiece(pieces())
LETTER = [("a", -1.0, 1)]
BAD = {
    "empty": (b"", "an empty file"),
    "web page": (b"<!DOCTYPE html><html>", "a web page"),
    "cut short": (GOOD[:-1], "damaged.*DecodeError"),
    "cut in a number": (GOOD[: len(field(1, field(1, b"<pad>")))] + b"\x80", "damaged"),
    "no protobuf": (b"\xff" * 20, "damaged.*DecodeError"),
    "no model": (field(1, 7), "not a SentencePiece model of T5: 0 pieces"),
    "not utf-8": (field(1, field(1, b"\xff")), "damaged: the piece .* is not UTF-8"),
    "nan": (spiece([*SPECIAL, ("a", float("nan"), 1)]), "'a' has log probability nan"),
    "no text": (spiece([*SPECIAL, ("", -1.0, 1)]), "'' has log probability"),
    "user defined": (spiece([*SPECIAL, ("a", -1.0, 4)]), "type 4; .*use a tokenizer.json"),
    "twice": (spiece([*SPECIAL, *LETTER, *LETTER]), "the piece a is duplicated"),
    "no unknown": (spiece([*SPECIAL[:2], *LETTER]), "0 of them of type unknown"),
    "no end": (spiece([SPECIAL[0], SPECIAL[2], *LETTER]), "0 of them </s>"),
    "bpe": (GOOD + field(2, field(3, 2)), "model_type = 2 is not supported"),
    "bytes": (GOOD + field(2, field(35, 1)), "byte_fallback = 1"),
    "no prefix": (GOOD + field(3, field(3, 0)), "add_dummy_prefix = 0"),
    "charsmap": (GOOD + field(3, field(2, b"abc")), "Precompiled"),
    "charsmap out of bounds": (
        GOOD + field(3, field(2, b"\x08\0\0\0" + b"\xff" * 8 + b"a\0")),
        "damaged.*index out of bounds",
    ),
    "no json": (b'{"a":', "damaged"),
    "deep json": (b'{"a":' * 10**5, "damaged"),
    "other json": (b"{}", "Model missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_files_are_refused_by_name(tmp_path, case):
    content, message = BAD[case]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{tmp_path}/file: .*({message})") as refusal:
        Tokenizer(tmp_path / "file")
    assert len(str(refusal.value)) < 600


def test_a_tokenizer_without_end_of_sequence_is_refused(tmp_path):
    model = tokenizers.models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="truncates 'a a' to .*'a', 'a'.*the last </s>"):
        Tokenizer(tmp_path)


def test_too_many_pieces_and_too_large_files_are_refused(tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(field(1, field(1, b"a")) * (2**19 + 1))
    with pytest.raises(ConfigError, match="more than 524288 pieces"):
        Tokenizer(path)
    for start, most in ((b"", 2**23), (b"{", 2**26)):
        with path.open("wb") as file:
            file.write(start)
            file.truncate(most + 1)
        with pytest.raises(ConfigError, match=f"{most + 1} bytes, expected at most {most}"):
            Tokenizer(path)


def test_damaged_files_raise_only_config_errors(tmp_path):
    """Truncates a small model at every length, and replaces random bytes."""
    content = spiece(pieces()[:20])
    draw = np.random.default_rng(3)
    damaged = [content[:size] for size in range(1, len(content))]
    for place in draw.integers(0, len(content), 400):
        damaged.append(content[:place] + draw.bytes(1) + content[place + 1 :])
    read = 0
    for given in damaged:
        (tmp_path / "spiece.model").write_bytes(given)
        with contextlib.suppress(ConfigError):
            Tokenizer(tmp_path).encode(["a b"], 5)
            read += 1
    assert 0 < read < len(damaged)


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has neither tokenizer.json nor spiece.model"):
        Tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="missing: no such file"):
        Tokenizer(tmp_path / "missing")


@pytest.mark.parametrize("library", ["tokenizers", "sentencepiece.sentencepiece_model_pb2"])
def test_a_missing_package_is_named_with_its_pip_command(library, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    needed = library.partition(".")[0]
    message = rf'needs {needed}: pip install "simjax\[text\]" \(import of {library} halted'
    with pytest.raises(ConfigError, match=message):
        Tokenizer(folder)


def test_a_too_old_protobuf_is_refused(folder, monkeypatch):
    def refuse(_):
        raise RuntimeError("Runtime version cannot be older")  # by protobuf, not ImportError

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ConfigError, match=r'"simjax\[text\]" \(Runtime version cannot be older'):
        Tokenizer(folder)


def test_a_text_of_invalid_unicode_is_refused(folder):
    with pytest.raises(ConfigError, match=r"1 prompts, the first '\\\\ud800', cannot be encoded"):
        Tokenizer(folder).encode(["\ud800"], 5)


def test_the_tokenizer_has_the_pieces_of_the_file(folder):
    written = json.loads(Tokenizer(folder)._library.to_str())
    assert written["model"]["vocab"] == [[text, score] for text, score, _ in pieces()]
    assert written["model"]["unk_id"] == 2
