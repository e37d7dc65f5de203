"""Rows of a data set for a training run's calls: shuffled by epochs, read ahead, split over hosts.

What a run reads is a function of its seed and step alone, so that a resumed run reads what it would
have read. Captions (text/prompts.py) and real images (runs/real.py) come this way.
"""

import concurrent.futures
import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from simjax.runtime import sharding
from simjax.typing import Int

Indices = Int[np.ndarray, "n"]


def order(seed: int, count: int, update: int, batch: int) -> Indices:
    """The rows of a run's update, counted through all its steps.

    Epochs are permutations of all rows, one after another; the update takes `batch` of them from
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
def _permutation(seed: int, count: int, epoch: int) -> Indices:
    """By raw random numbers, whose values NumPy promises to keep, unlike its permutations'."""
    random = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    return np.argsort(random, kind="stable").astype(np.uint32 if count < 2**32 else np.uint64)


class Stream:
    """The rows of a run's calls; those of the next call are read meanwhile.

    Args:
      read: indices (n,) -> a tree of rows (n, ...), numpy.
      like: shapes and types of a call's rows, leaves (steps_per_call, updates, batch, ...).
      count: rows of the data set.
      mesh: over which batches are split; every process reads its own rows alone.
    """

    def __init__(
        self, read: Callable[[Indices], Any], like: Any, *, count: int, seed: int, mesh: Mesh
    ):
        self._rows_of, self._count, self._seed = read, count, seed
        self._like = sharding.abstract_rows(like, mesh)
        first = jax.tree.leaves(self._like)[0]
        self._sizes = first.shape[:3]
        here = first.sharding.addressable_devices_indices_map(first.shape).values()
        self._spans = sorted({_span(index, first.shape[2]) for index in here})
        self._ahead: tuple[int, concurrent.futures.Future] | None = None

    def at(self, step: int) -> Any:
        """What the call that starts at `step` needs, leaves (steps_per_call, updates, batch, ...).

        The rows of step s lie at s mod steps_per_call, where train/update.py takes them.

        Raises:
          ConfigError: the data are damaged.
        """
        ahead, self._ahead = self._ahead or self._begin(step), None
        start, future = ahead
        if start != step:
            concurrent.futures.wait([future])  # never two at a time
            _, future = self._begin(step)
        pieces = future.result()
        steps, _, batch = self._sizes
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
        """Starts to read a call's rows, in a thread that does not keep the program alive."""
        future: concurrent.futures.Future = concurrent.futures.Future()

        def read() -> None:
            try:
                future.set_result(self._read(step))
            except BaseException as error:  # raised where the rows are wanted
                future.set_exception(error)

        threading.Thread(target=read, daemon=True).start()
        return step, future

    def _read(self, step: int) -> list[Any]:
        """The rows of each of this process's parts of a batch."""
        steps, updates, batch = self._sizes
        turns = (step + (turn - step) % steps for turn in range(steps))
        indices = np.array(
            [
                [
                    order(self._seed, self._count, s * updates + update, batch)
                    for update in range(updates)
                ]
                for s in turns
            ]
        )
        return [self._rows(indices[:, :, start:stop]) for start, stop in self._spans]

    def _rows(self, indices: Int[np.ndarray, "steps updates n"]) -> Any:
        rows = self._rows_of(indices.reshape(-1))
        return jax.tree.map(lambda leaf: leaf.reshape(*indices.shape, *leaf.shape[1:]), rows)


def _span(index: tuple[slice, ...], batch: int) -> tuple[int, int]:
    """Where a device's part of the third axis begins and ends."""
    start, stop, _ = index[2].indices(batch)
    return start, stop
