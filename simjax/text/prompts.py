"""Prompts: read from a file, and their captions as training takes them.

Called from encode_prompts.py, which makes the cache (caption_cache.py), and from training.
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
    """Of a file of prompts: how many, how many lines are empty, and the sha256 of the prompts."""

    count: int
    skipped: int
    sha256: str


def read_prompts(path: epath.PathLike) -> Iterator[str]:
    """The prompts of a file (prompt_file.KINDS), without the spaces around them.

    A text file has one a line; a .json is a list of strings or of objects, a .jsonl has one of
    these a line; a .csv names its columns in its first line, a .tsv may. Prompts are in the first
    of prompt_file.COLUMNS that is there, or else in the last column of a .tsv.

    Raises:
      ConfigError: naming the line that is not utf-8, too long, or has other columns.
    """
    return (prompt for prompt in prompt_file.read(path) if prompt)


def survey(path: epath.PathLike) -> Survey:
    """Reads a file of prompts once, so that what is wrong with it is said before work begins.

    Raises:
      ConfigError: see read_prompts; or there are no prompts.
    """
    count, skipped, digest = 0, 0, hashlib.sha256()
    for prompt in prompt_file.read(path):
        if prompt:
            count += 1
            digest.update(prompt.replace("\n", "\n\0").encode() + b"\n")  # none has \0
        else:
            skipped += 1
    if not count:
        raise ConfigError(f"{path} has no prompts; expected one a line, or a list of them.")
    return Survey(count, skipped, digest.hexdigest())


def given(prompts: Sequence[str], file: str | None) -> list[str]:
    """Those of a command: given one by one, then those of a file.

    Raises:
      ConfigError: a file without any.
    """
    if file is None:
        return [*prompts]
    survey(file)  # refuses what has none
    return [*prompts, *read_prompts(file)]


class Reader(Stream):
    """The captions of a training run's calls, read from a cache.

    Args:
      batch: prompts of an update, of all processes.
      steps_per_call: steps that a call makes.
      updates: of a step.
      mesh: over which batches are split; every process reads its own rows alone.
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
