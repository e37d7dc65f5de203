"""A file of prompts to a cache of captions: shard by shard, by all processes, again after a stop.

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

POLL = 1.0  # seconds between looks for the shards of other processes; our choice
LINE_EVERY = {True: 0.1, False: 30.0}  # seconds, on a terminal or in a log; our choice


def identity(
    survey: prompts.Survey, tokenizer: Tokenizer, *, length: int, shard: int
) -> dict[str, Any]:
    """What a cache is known by, as far as no encoder is needed."""
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
    """The cache of a file of prompts, opened; what is there of it is kept.

    Args:
      length: tokens kept of a prompt.
      batch: prompts at a time.
      shard: prompts in a file.
      command: that goes on with an unfinished cache, for messages.

    Raises:
      ConfigError: the prompts cannot be read, or `folder` is a cache of others.
    """
    folder = epath.Path(folder)
    known = identity(prompts.survey(source), tokenizer, length=length, shard=shard)
    encoders.require_fit(encoder, tokenizer)
    known |= {"encoder": encoder.digest, "channels": encoder.sizes.width}
    caption_cache.require_same(folder, known)
    processes.wait("all have looked")
    processes.by_first(lambda: caption_cache.begin(folder, known, command), "begun")
    _write_shards(source, folder, known, encoder, tokenizer, batch)
    processes.wait("all shards are there")
    processes.by_first(lambda: caption_cache.finish(folder, known), "finished")
    return Cache.open(folder)


def _write_shards(
    source: epath.PathLike,
    folder: epath.Path,
    known: dict[str, Any],
    encoder: Encoder,
    tokenizer: Tokenizer,
    batch: int,
) -> None:
    """Encodes this process's shards that are not there, and waits for those of the others."""
    count, size = known["count"], known["shard"]
    numbers = range(caption_cache.shards(known))
    lacking = [n for n in numbers if not caption_cache.is_written(folder, n, known)]
    mine = {n for n in lacking if n % jax.process_count() == jax.process_index()}
    sizes = {n: min(size, count - n * size) for n in numbers}
    whose = "" if jax.process_count() == 1 else f", a share of {jax.process_count()}"
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
            raise ConfigError(f"{source} changed while it was read; start again.")
        if number in mine:
            batches = encoders.embedded(
                encoder, tokenizer, some, length=known["length"], batch=batch
            )
            caption_cache.write_shard(folder, number, some, counted(batches))
    line.close()
    others = set(lacking) - mine
    while others := {n for n in others if not caption_cache.is_written(folder, n, known)}:
        time.sleep(POLL)
