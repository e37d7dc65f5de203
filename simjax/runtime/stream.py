"""Data loading for training: shuffled, prefetched, sharded over hosts.

The examples of a step depend only on seed and step, so that a resumed run reads the same ones.
Used for captions (text/prompts.py) and real images (runs/real.py).
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
    """Indices of the examples of one update.

    Every epoch is a permutation of all examples, and epochs are concatenated; the update uses
    positions update * batch to (update + 1) * batch. A pure function of its arguments.

    Args:
      count: number of examples in the data set.
      update: number of the update, counted over all steps of the run.

    >>> sorted(np.concatenate([order(0, 6, update, batch=3) for update in (0, 1)]).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    first = update * batch
    epochs, places = np.divmod(np.arange(first, first + batch), count)
    indices = np.empty(batch, np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        indices[here] = _permutation(seed, count, epoch)[places[here]]
    return indices


@functools.lru_cache(2)  # the current epoch and the next
def _permutation(seed: int, count: int, epoch: int) -> Indices:
    """Permutation of an epoch, by sorting raw Philox numbers.

    NumPy guarantees these in future versions, unlike its own permutations.
    """
    random = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    return np.argsort(random, kind="stable").astype(np.uint32 if count < 2**32 else np.uint64)


class Stream:
    """Iterator-like source of a run's examples, prefetching one call.

    Args:
      read: indices (n,) -> tree of numpy examples (n, ...).
      like: shapes and dtypes of a call's examples, leaves (steps_per_call, updates, batch, ...).
      count: number of examples in the data set.
      mesh: devices over which batches are sharded; every process reads only its own examples.
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
        """Examples of the call that starts at `step`, sharded over the mesh.

        Leaves have shape (steps_per_call, updates, batch, ...). The examples of step s are at index
        s mod steps_per_call, where train/update.py reads them.

        Raises:
          ConfigError: the data are damaged.
        """
        ahead, self._ahead = self._ahead or self._begin(step), None
        start, future = ahead
        if start != step:
            concurrent.futures.wait([future])  # at most one read at a time
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

        with jax.transfer_guard_host_to_device("allow"):  # the only copy of a call
            return jax.tree.map(placed, self._like, *pieces)

    def _begin(self, step: int) -> tuple[int, concurrent.futures.Future]:
        """Starts reading a call's examples in a daemon thread."""
        future: concurrent.futures.Future = concurrent.futures.Future()

        def read() -> None:
            try:
                future.set_result(self._read(step))
            except BaseException as error:  # re-raised by `at`
                future.set_exception(error)

        threading.Thread(target=read, daemon=True).start()
        return step, future

    def _read(self, step: int) -> list[Any]:
        """The examples of each local shard of a batch."""
        steps, updates, batch = self._sizes
        upcoming = (step + (i - step) % steps for i in range(steps))
        indices = np.array(
            [
                [
                    order(self._seed, self._count, s * updates + update, batch)
                    for update in range(updates)
                ]
                for s in upcoming
            ]
        )
        return [self._rows(indices[:, :, start:stop]) for start, stop in self._spans]

    def _rows(self, indices: Int[np.ndarray, "steps updates n"]) -> Any:
        rows = self._rows_of(indices.reshape(-1))
        return jax.tree.map(lambda leaf: leaf.reshape(*indices.shape, *leaf.shape[1:]), rows)


def _span(index: tuple[slice, ...], batch: int) -> tuple[int, int]:
    """Start and stop of a device's shard along the batch axis."""
    start, stop, _ = index[2].indices(batch)
    return start, stop
