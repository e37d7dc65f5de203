"""Encodes a file of prompts into a caption cache: distributed, resumable.

Processes share the shards; after an interruption, complete shards are kept.

Called from simjax/commands/encode_prompts.py, and from simjax/text/captions.py.
"""

import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import tqdm
from etils import epath

from simjax.errors import ConfigError
from simjax.runtime import processes
from simjax.text import caption_cache, encoders, prompts
from simjax.text.caption_cache import Cache
from simjax.text.encoders import Encoder
from simjax.text.tokenizer import Tokenizer

POLL = 1.0  # seconds between checks for the shards of other processes; our choice
LINE_EVERY = {True: 0.1, False: 30.0}  # seconds between progress lines: terminal, log; our choice


def identity(
    survey: prompts.Survey, tokenizer: Tokenizer, *, length: int, shard: int
) -> dict[str, Any]:
    """Identity of a cache, except for the entries that need the encoder."""
    return {
        "tokenizer": tokenizer.sha256,
        "text": survey.sha256,
        "length": length,
        "count": survey.count,
        "shard": shard,
    }


def make_cache(
    source: epath.PathLike,
    folder: epath.PathLike,
    encoder: Encoder,
    tokenizer: Tokenizer,
    *,
    length: int,
    batch: int,
    shard: int,
    command: str,
) -> Cache:
    """Encodes a file of prompts into a cache, or resumes; opens it.

    Shards that are already complete are kept.

    Args:
      length: tokens per prompt; longer prompts are truncated.
      batch: prompts per batch.
      shard: prompts per shard.
      command: command that resumes an unfinished cache, for messages.

    Raises:
      ConfigError: the prompts cannot be read, or `folder` is another cache.
    """
    folder = epath.Path(folder)
    known = identity(prompts.survey(source), tokenizer, length=length, shard=shard)
    encoders.require_fit(encoder, tokenizer)
    known |= {"encoder": encoder.digest, "channels": encoder.sizes.width}
    caption_cache.require_same(folder, known)
    processes.wait("all have checked the cache")
    processes.by_first(lambda: caption_cache.begin(folder, known, command), "the cache is created")
    _write_shards(source, folder, known, encoder, tokenizer, batch)
    processes.wait("all shards are complete")
    processes.by_first(lambda: caption_cache.finish(folder, known), "the cache is finished")
    return Cache.open(folder)


def _write_shards(
    source: epath.PathLike,
    folder: epath.Path,
    known: dict[str, Any],
    encoder: Encoder,
    tokenizer: Tokenizer,
    batch: int,
) -> None:
    """Encodes this process's missing shards, then waits for the other processes."""
    count, size = known["count"], known["shard"]
    numbers = range(caption_cache.shards(known))
    lacking = [n for n in numbers if not caption_cache.is_written(folder, n, known)]
    mine = {n for n in lacking if n % jax.process_count() == jax.process_index()}
    sizes = {n: min(size, count - n * size) for n in numbers}
    whose = "" if jax.process_count() == 1 else f", share of 1/{jax.process_count()}"
    line = tqdm.tqdm(
        desc=f"encoding{whose}",
        total=sum(sizes[n] for n in numbers if n in mine or n not in lacking),
        initial=sum(sizes[n] for n in numbers if n not in lacking),
        unit=" prompts",
        mininterval=LINE_EVERY[sys.stderr.isatty()],
        dynamic_ncols=True,
        disable=not processes.is_first() or not lacking,
    )

    def counted(batches: Iterable[Any]) -> Iterator[Any]:
        for one in batches:
            yield one
            line.update(len(one.mask))

    reading = prompts.read_prompts(source)
    for number in numbers:
        some = list(itertools.islice(reading, size))
        if len(some) != sizes[number]:
            raise ConfigError(f"{source} changed while it was read; run the same command again.")
        if number in mine:
            batches = encoders.embedded(
                encoder, tokenizer, some, length=known["length"], batch=batch
            )
            caption_cache.write_shard(folder, number, some, counted(batches))
    line.close()
    others = set(lacking) - mine
    while others := {n for n in others if not caption_cache.is_written(folder, n, known)}:
        time.sleep(POLL)
