"""Prompts of a file, and batches of their cached captions for training.

Called from encode.py, which makes the cache (caption_cache.py), and from simjax/runs.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import ml_dtypes
from etils import epath
from jax.sharding import Mesh

from simjax.errors import ConfigError
from simjax.runtime.stream import Stream
from simjax.text import prompt_file
from simjax.text.caption_cache import Cache
from simjax.typing import Caption


class Survey(NamedTuple):
    """Statistics of a file of prompts.

    Attributes:
      count: number of prompts.
      skipped: number of empty lines.
      sha256: checksum of the prompts.
    """

    count: int
    skipped: int
    sha256: str


def read_prompts(path: epath.PathLike) -> Iterator[str]:
    """Yields the prompts of a file, stripped, without empty lines.

    A text file has one prompt per line; a .json is a list of strings or objects, a .jsonl has one
    of these per line; a .csv has a header, a .tsv may have one. The prompt is in the first of
    prompt_file.COLUMNS (caption, prompt, text) that exists, or in the last column of a .tsv without
    header.

    >>> _ = epath.Path("prompts.tsv").write_text("id\\tcaption\\n1\\ta cat\\n2\\ta dog\\n")
    >>> list(read_prompts("prompts.tsv"))
    ['a cat', 'a dog']

    Raises:
      ConfigError: a line is not utf-8, too long, or has another number of columns.
    """
    return (prompt for prompt in prompt_file.read(path) if prompt)


def survey(path: epath.PathLike) -> Survey:
    """Validates a file of prompts and counts them, before any encoding.

    >>> _ = epath.Path("prompts.txt").write_text("a cat\\n\\na dog\\n")
    >>> survey("prompts.txt")
    Survey(count=2, skipped=1, sha256='...')

    Raises:
      ConfigError: see read_prompts; or there are no prompts.
    """
    count, skipped, digest = 0, 0, hashlib.sha256()
    for prompt in prompt_file.read(path):
        if prompt:
            count += 1
            digest.update(prompt.replace("\n", "\n\0").encode() + b"\n")  # no prompt contains \0
        else:
            skipped += 1
    if not count:
        raise ConfigError(f"{path} has no prompts; expected one per line, or a JSON list of them.")
    return Survey(count, skipped, digest.hexdigest())


def given(prompts: Sequence[str], file: str | None) -> list[str]:
    """All prompts of a command: the arguments, then a file's.

    >>> given(["a cat", "a dog"], None)
    ['a cat', 'a dog']

    Raises:
      ConfigError: the file has no prompts.
    """
    if file is None:
        return [*prompts]
    survey(file)  # raises if it has no prompts
    return [*prompts, *read_prompts(file)]


class Reader(Stream):
    """Streams the captions of each jitted training call from a cache.

    Args:
      seed: seed of the order.
      batch: global batch of an update.
      steps_per_call: training steps per jitted call.
      updates: updates per step.
      mesh: devices over which batches are split; every process reads only its own rows.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        seed: int,
        batch: int,
        steps_per_call: int,
        updates: int,
        mesh: Mesh,
    ):
        rows = (steps_per_call, updates, batch)
        tokens = (*rows, cache.identity["length"])
        like = Caption(
            jax.ShapeDtypeStruct((*tokens, cache.identity["channels"]), ml_dtypes.bfloat16),
            jax.ShapeDtypeStruct(tokens, bool),
            jax.ShapeDtypeStruct(rows, bool),
        )
        super().__init__(cache.read, like, count=len(cache), seed=seed, mesh=mesh)
