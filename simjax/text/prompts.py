"""Prompts: read from a file, shuffled by epochs, and their captions as training takes them.

Called from encode_prompts.py, which makes the cache (caption_cache.py), and from training.
"""

import concurrent.futures
import functools
import hashlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
from etils import epath
from jax.sharding import Mesh

from simjax.errors import ConfigError
from simjax.runtime import sharding
from simjax.text import prompt_file
from simjax.text.caption_cache import Cache, Indices
from simjax.typing import Caption, Int


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


def order(seed: int, count: int, update: int, batch: int) -> Indices:
    """The prompts of a run's update, counted through all its steps.

    Epochs are permutations of all prompts, one after another; the update takes `batch` of them from
    position update * batch on. A function of these numbers alone.
    """
    first = update * batch
    epochs, places = np.divmod(np.arange(first, first + batch), count)
    indices = np.empty(batch, np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        indices[here] = _permutation(seed, count, epoch)[places[here]]
    return indices


@functools.lru_cache(2)  # an epoch and the next
def _permutation(seed: int, count: int, epoch: int) -> Int[np.ndarray, "count"]:
    """By raw random numbers, whose values NumPy promises to keep, unlike its permutations'."""
    random = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    return np.argsort(random, kind="stable").astype(np.uint32 if count < 2**32 else np.uint64)


class Reader:
    """The captions of a training run's calls; those of the next one are read meanwhile.

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
        self._cache, self._seed = cache, seed
        rows = (steps_per_call, updates, batch)
        tokens = (*rows, cache.identity["length"])
        like = Caption(
            jax.ShapeDtypeStruct((*tokens, cache.identity["channels"]), ml_dtypes.bfloat16),
            jax.ShapeDtypeStruct(tokens, bool),
            jax.ShapeDtypeStruct(rows, bool),
        )
        self._like = sharding.abstract_captions(like, mesh)
        here = self._like.dropped.sharding.addressable_devices_indices_map(rows).values()
        self._spans = sorted({_span(index, batch) for index in here})
        self._ahead: tuple[int, concurrent.futures.Future] | None = None

    def captions(self, step: int) -> Caption:
        """What the call that starts at `step` needs, leaves (steps_per_call, updates, batch, ...).

        Those of step s lie at s mod steps_per_call, where train/update.py takes them.

        Raises:
          ConfigError: the cache is damaged.
        """
        ahead, self._ahead = self._ahead or self._begin(step), None
        start, future = ahead
        if start != step:
            concurrent.futures.wait([future])  # never two at a time
            _, future = self._begin(step)
        pieces = future.result()
        steps, _, batch = self._like.dropped.shape
        self._ahead = self._begin(step + steps)

        def placed(like: jax.ShapeDtypeStruct, *pieces: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(
                like.shape,
                like.sharding,
                lambda index: pieces[self._spans.index(_span(index, batch))],
            )

        with jax.transfer_guard_host_to_device("allow"):  # the one copy that a call needs
            return jax.tree.map(placed, self._like, *pieces)

    def _begin(self, step: int) -> tuple[int, concurrent.futures.Future]:
        """Starts to read a call's captions, in a thread that does not keep the program alive."""
        future: concurrent.futures.Future = concurrent.futures.Future()

        def read() -> None:
            try:
                future.set_result(self._read(step))
            except BaseException as error:  # raised where the captions are wanted
                future.set_exception(error)

        threading.Thread(target=read, daemon=True).start()
        return step, future

    def _read(self, step: int) -> list[Caption]:
        """The rows of each of this process's parts of a batch."""
        steps, updates, batch = self._like.dropped.shape
        turns = (step + (turn - step) % steps for turn in range(steps))
        indices = np.array(
            [
                [
                    order(self._seed, len(self._cache), s * updates + update, batch)
                    for update in range(updates)
                ]
                for s in turns
            ]
        )
        return [self._rows(indices[:, :, start:stop]) for start, stop in self._spans]

    def _rows(self, indices: Int[np.ndarray, "steps updates n"]) -> Caption:
        rows = self._cache.read(indices.reshape(-1))
        return jax.tree.map(lambda leaf: leaf.reshape(*indices.shape, *leaf.shape[1:]), rows)


def _span(index: tuple[slice, ...], batch: int) -> tuple[int, int]:
    """Where a device's part of the third axis begins and ends."""
    start, stop, _ = index[2].indices(batch)
    return start, stop
