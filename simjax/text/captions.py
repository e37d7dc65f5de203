"""What the samples of a text-to-image run are asked for: prompts, encoded once, in a cache.

They come from a cache that `simjax encode-prompts` made; or, with labelled data, from templates in
which {} stands for a class's word. Those are read by a small encoder with random parameters: words
then have features of their own, which is all that a network of the digits needs.
"""

import functools
import json
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from simjax import config as c
from simjax.errors import ConfigError
from simjax.runtime import processes
from simjax.text import encode, encoders
from simjax.text.caption_cache import Cache
from simjax.text.encoders import Reader
from simjax.text.tokenizer import Tokenizer
from simjax.typing import Caption, Int

SHARD = 4096  # prompts in a file; our choice
BATCH = 64  # prompts at a time; our choice
SEPARATOR = "|"  # between the words of a class
SPECIAL = ("<pad>", "</s>", "<unk>")  # tokens 0, 1, 2, as T5's


class Captions(NamedTuple):
    """The prompts of a run.

    Attributes:
      cache: what distillation draws from.
      of_classes: of labelled data, what its teacher is trained with: leaves (classes, captions of
        a class, ...), numpy; None where prompts came as a cache.
      held_out: likewise, what samples are drawn for.
    """

    cache: Cache
    of_classes: Caption | None = None
    held_out: Caption | None = None

    def asked(self, classes: Int[np.ndarray, "n"]) -> Caption:
        """A held-out caption of each class, all of them in turn; else the first of the cache."""
        if self.held_out is None:
            return self.cache.read(np.arange(len(classes)) % len(self.cache))
        count = self.held_out.dropped.shape[0]
        turn = np.arange(len(classes)) // count % self.held_out.dropped.shape[1]
        return jax.tree.map(lambda leaf: leaf[classes, turn], self.held_out)


def prepare(options: c.Text, workdir: epath.Path) -> Captions | None:
    """The prompts that a run asks for, encoded if they are not yet; None if it asks for none.

    Raises:
      ConfigError: templates and words do not fit together, or a cache is not what it should be.
    """
    if not options.templates:
        return Captions(Cache.open(options.cache)) if options.cache else None
    trained, held_out = (
        _written(options, which) for which in (options.templates, options.held_out)
    )
    folder = workdir / "text"
    processes.by_first(functools.partial(_write_files, folder, trained, held_out), "text is there")
    encoder, tokenizer, _ = reader(options, workdir)
    caches = []
    for name in ("trained", "held_out"):
        caches.append(
            encode.make_cache(
                folder / f"{name}.txt",
                folder / name,
                encoder,
                tokenizer,
                length=options.length,
                batch=BATCH,
                shard=SHARD,
                command="the command of the run",
            )
        )
    return Captions(caches[0], *map(_by_class, caches, (trained, held_out)))


def reader(options: c.Text, workdir: epath.Path) -> Reader:
    """What reads the captions of a run's labelled data; `prepare` has written its tokenizer."""
    tokenizer = Tokenizer(workdir / "text" / "tokenizer.json")
    return Reader(encoders.random_encoder(options.t5), tokenizer, options.length)


def _written(options: c.Text, templates: tuple[str, ...]) -> list[list[str]]:
    """Every class's captions."""
    lacking = [template for template in templates if "{}" not in template]
    counts = {word.count(SEPARATOR) for word in options.words}
    if lacking or not templates or len(counts) != 1:
        raise ConfigError(
            f"text.templates and text.held_out need {{}} for a word (lacking: {lacking or 'none'}) "
            "and at least one of each, text.words the same number of words for every class."
        )
    return [
        [template.format(word) for template in templates for word in words.split(SEPARATOR)]
        for words in options.words
    ]


def _write_files(folder: epath.Path, trained: list[list[str]], held_out: list[list[str]]) -> None:
    """The prompts, a class after another, and a tokenizer that knows their words."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in (("trained", trained), ("held_out", held_out)):
        (folder / f"{name}.txt").write_text("".join(f"{p}\n" for of in prompts for p in of))
    words = {word for of in trained + held_out for prompt in of for word in prompt.lower().split()}
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *sorted(words)])}
    (folder / "tokenizer.json").write_text(json.dumps(_word_level(vocabulary)))


def _word_level(vocabulary: dict[str, int]) -> dict:
    """The library tokenizers' own format: a token a word, the end after the last."""
    end = SPECIAL[1]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": end, "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {end: {"id": end, "ids": [vocabulary[end]], "tokens": [end]}},
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": SPECIAL[2]},
    }


def _by_class(cache: Cache, prompts: list[list[str]]) -> Caption:
    every = cache.read(np.arange(len(cache)))
    return jax.tree.map(lambda leaf: leaf.reshape(len(prompts), -1, *leaf.shape[1:]), every)
