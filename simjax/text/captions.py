"""Captions of a text-to-image run, encoded once into a cache.

They come from a cache made by `simjax encode-prompts` or, for labelled data, from templates with {}
for the word of a class. The latter are encoded by a small T5 with random parameters: every word
then has distinct features, which is enough for networks of the size of the digits'.
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

SHARD = 4096  # prompts per shard; our choice
BATCH = 64  # prompts per batch of the encoder; our choice
SEPARATOR = "|"  # between the synonyms of a class
SPECIAL = ("<pad>", "</s>", "<unk>")  # token ids 0, 1, 2, as in T5


class Captions(NamedTuple):
    """Captions of a run.

    Attributes:
      cache: the captions that distillation draws from.
      of_classes: training captions of the teacher, for labelled data: NumPy leaves (classes,
        captions per class, ...); None if the config names a cache.
      held_out: likewise, captions that samples are drawn for.
    """

    cache: Cache
    of_classes: Caption | None = None
    held_out: Caption | None = None

    def conditions(self, classes: Int[np.ndarray, "n"]) -> Caption:
        """Captions to draw samples for, one per class label.

        Cycles through the held-out captions of each class; without any, through the cache.
        """
        if self.held_out is None:
            return self.cache.read(np.arange(len(classes)) % len(self.cache))
        count = self.held_out.dropped.shape[0]
        turn = np.arange(len(classes)) // count % self.held_out.dropped.shape[1]
        return jax.tree.map(lambda leaf: leaf[classes, turn], self.held_out)


def prepare(options: c.Text, workdir: epath.Path) -> Captions | None:
    """Captions of a config, encoded if needed; None without text.

    Raises:
      ConfigError: templates and words do not fit together, or the cache is unfinished, damaged or
        another one.
    """
    if not options.templates:
        return Captions(Cache.open(options.cache)) if options.cache else None
    trained, held_out = (
        _written(options, which) for which in (options.templates, options.held_out)
    )
    folder = workdir / "text"
    processes.by_first(
        functools.partial(_write_files, folder, trained, held_out), "prompt files are written"
    )
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
    """Reader for captions of labelled data, with the tokenizer that `prepare` wrote."""
    tokenizer = Tokenizer(workdir / "text" / "tokenizer.json")
    return Reader(encoders.random_encoder(options.t5), tokenizer, options.length)


def _written(options: c.Text, templates: tuple[str, ...]) -> list[list[str]]:
    """Captions of each class: templates times words.

    >>> options = c.Text(words=("zero|0", "one|1"))
    >>> _written(options, ("digit {}",))
    [['digit zero', 'digit 0'], ['digit one', 'digit 1']]
    """
    lacking = [template for template in templates if "{}" not in template]
    counts = {word.count(SEPARATOR) for word in options.words}
    if lacking or not templates or len(counts) != 1:
        raise ConfigError(
            f"text.templates and text.held_out need {{}} for the word (missing in: "
            f"{lacking or 'none'}) and at least one template each; text.words needs the same "
            "number of words per class."
        )
    return [
        [template.format(word) for template in templates for word in words.split(SEPARATOR)]
        for words in options.words
    ]


def _write_files(folder: epath.Path, trained: list[list[str]], held_out: list[list[str]]) -> None:
    """Writes the prompts, class by class, and a tokenizer of their words."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in (("trained", trained), ("held_out", held_out)):
        (folder / f"{name}.txt").write_text("".join(f"{p}\n" for of in prompts for p in of))
    words = {word for of in trained + held_out for prompt in of for word in prompt.lower().split()}
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *sorted(words)])}
    (folder / "tokenizer.json").write_text(json.dumps(_word_level(vocabulary)))


def _word_level(vocabulary: dict[str, int]) -> dict:
    """A word-level tokenizer in the format of `tokenizers`, with an end token."""
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
