"""Tokens of a spiece.model against transformers' T5Tokenizer with the same file."""

import numpy as np
import pytest
import transformers

from simjax.text.tokenizer import Tokenizer
from tests.helpers.tokenizer_files import LETTERS, REPLACED, charsmap, field, pieces, spiece

LENGTH = 12
PROMPTS = ["", "  ", "a b", " a\tb  cd \n", "ab</s>cd", "zzz zz", "a▁b", "ab" * 40]


@pytest.fixture
def pair(tmp_path):
    table = field(2, charsmap(REPLACED))
    (tmp_path / "spiece.model").write_bytes(spiece(pieces(), normalizer=table))
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path, extra_ids=0)
    return Tokenizer(tmp_path), theirs


def test_tokens_and_masks(pair):
    ours, theirs = pair
    draw = np.random.default_rng(2)
    letters = list(LETTERS + LETTERS + "    éA" + "".join(REPLACED))
    prompts = PROMPTS + ["".join(draw.choice(letters, draw.integers(0, 50))) for _ in range(300)]
    tokens, mask, truncated = ours.encode(prompts, LENGTH)
    expected = theirs(prompts, max_length=LENGTH, padding="max_length", truncation=True)
    np.testing.assert_array_equal(tokens, expected.input_ids)
    np.testing.assert_array_equal(mask, np.array(expected.attention_mask, bool))
    whole = theirs(prompts).input_ids
    assert truncated == sum(len(one) > LENGTH for one in whole) > 10
