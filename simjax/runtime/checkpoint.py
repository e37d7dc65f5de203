"""Crash-safe checkpoints of training states, and the stored teacher of a run.

Orbax writes each tree of a state as a separate item into a temporary directory and renames it when
it is complete. A checksum per tree is stored with them, so that corruption is detected on restore
and the previous complete checkpoint is used. All processes write their shards of a checkpoint to
shared storage; a checkpoint can be restored with any other sharding.
"""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator as Operations

from simjax.errors import ConfigError
from simjax.runtime import processes, sharding
from simjax.typing import Array, Params

WATCH = 1.0  # seconds between checks of a save in progress; our choice

State = TypeVar("State")  # a state of train/state.py: step, trees(), of_trees()


class _Manager(ocp.CheckpointManager):
    """Checkpoint manager without Orbax's SIGTERM handling (see processes.stop_requested).

    Both query the same JAX preemption counter, stop_requested with a call count and Orbax with the
    training step. Orbax's query would postpone the stop until the call count reaches that step.
    """

    def reached_preemption(self, step: int) -> bool:
        """Always False."""
        return False


class Checkpoints:
    """The numbered checkpoints of one training stage, written in the background.

    With several processes one stuck save would block all of them forever. A process that waits for
    a save longer than `limit` exits, and the others with it; the same command resumes the run.

    Args:
      keep: number of checkpoints kept; None: read-only, safe beside a process that writes.
      say: prints one line to the console.
      limit: seconds before a save in progress ends the process.
    """

    def __init__(
        self,
        directory: epath.Path,
        *,
        keep: int | None,
        say: Callable[[str], None],
        limit: float = float("inf"),
    ):
        self.directory = epath.Path(directory)
        self._say = say
        writes = keep is not None
        if not writes and not self.directory.exists():
            raise ConfigError(f"{self.directory} does not exist: nothing was saved there yet.")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=writes,
            cleanup_tmp_directories=writes,
            read_only=not writes,
        )
        self._manager = _Manager(self.directory, options=options)
        self._waiting_since: float | None = None
        self._closed = threading.Event()
        if writes and jax.process_count() > 1:
            threading.Thread(target=self._watch, args=(limit,), daemon=True).start()

    def save(self, state: State) -> None:
        """Starts writing `state`; its arrays may be donated on return."""
        trees = state.trees()
        checksums = _checksums(trees)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        note = ocp.args.JsonSave({"step": int(state.step), "checksums": checksums})
        self.wait()  # for the previous save
        with self._timed():
            _agree_on_operations()
            self._manager.save(int(state.step), args=ocp.args.Composite(note=note, **items))

    def restore_latest(self, like: State) -> State | None:
        """Restores the newest intact checkpoint; None if there is none.

        A damaged checkpoint is moved into <directory>_damaged and reported.

        Args:
          like: state with the structure and shardings of the result.
        """
        while (step := self._latest_step()) is not None:
            trees, reason = self._read(step, like.trees())
            if trees is not None:
                count = sharding.placed(np.int32(step), like.step.sharding)
                return like.of_trees(count, trees)
            self._set_aside(step, reason)  # the previous one may be intact
        return None

    def restore_tree(self, name: str, like: Params) -> tuple[Params, int]:
        """One tree of the newest checkpoint, and its step.

        Raises:
          ConfigError: there is no checkpoint, or it is damaged.
        """
        step = self._latest_step()
        if step is None:
            raise ConfigError(
                f"{self.directory} has no checkpoint yet; wait for the run's first one."
            )
        trees, reason = self._read(step, {name: like})
        if trees is None:
            raise ConfigError(
                f"{self.directory / str(step)} is damaged ({reason}); resume the run, which "
                "falls back to the previous checkpoint."
            )
        return trees[name], step

    def wait(self) -> None:
        """Blocks until everything saved is on disk."""
        with self._timed():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending saves, then stops the manager's threads."""
        with self._timed():
            self._manager.close()
        self._closed.set()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:  # also after an error: a failed save is not pending
            self._waiting_since = None

    def _watch(self, limit: float) -> None:
        while not self._closed.wait(WATCH):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > limit:
                processes.end_at_once(
                    f"a checkpoint in {self.directory} was not written within {limit:.0f} s "
                    "(checkpoint_limit); run the same command again to resume from the previous "
                    "one."
                )

    def _latest_step(self) -> int | None:
        """The first process's latest step, so that all restore the same checkpoint."""
        latest = self._manager.latest_step()
        step = int(processes.from_first(np.int32(-1 if latest is None else latest)))
        return None if step < 0 else step

    def _read(self, step: int, like: dict[str, Params]) -> tuple[dict[str, Params] | None, str]:
        """Trees of a checkpoint, or None and the reason.

        None on every process if any of them cannot read it or a checksum differs.
        """
        trees, reason = None, "another process could not read it"
        try:
            note = _restore(self.directory / str(step), note=ocp.args.JsonRestore()).note
            expected = note["checksums"]
            trees = _restore_arrays(self.directory / str(step), like)
        except Exception as error:  # damage raises many kinds of errors
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        if not processes.all_true(trees is not None):
            return None, reason
        for name, value in _checksums(trees).items():
            if value != expected[name]:
                return None, f"the checksum of {name} does not match"
        return trees, ""

    def _set_aside(self, step: int, reason: str) -> None:
        target = self.directory.parent / f"{self.directory.name}_damaged" / str(step)

        def move() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.rmtree(missing_ok=True)
            (self.directory / str(step)).rename(target)

        processes.wait(f"{step} is damaged")  # until no process reads it any more
        processes.by_first(move, f"{step} is set aside")
        self._manager.reload()
        self._say(
            f"checkpoint {step} is damaged ({reason}); moved to {target}. "
            "Falling back to the previous one."
        )


def _agree_on_operations() -> None:
    """Synchronizes Orbax's operation counter over all processes before a save.

    Orbax numbers the saves of a process, and its barriers between processes use that number. After
    a network that the first process stored alone, the counters of the others are one behind: they
    would match the barriers of the previous save, write before the directories of this one exist,
    and make the first process fail and wait forever.
    """
    most = processes.largest(int(Operations.get_current_operation_id()))
    while int(Operations.get_current_operation_id()) < most:
        Operations.next_operation_id()


def steps_in(directory: epath.Path) -> list[int]:
    """Sorted steps of the complete checkpoints in a stage's directory."""
    if not directory.exists():
        return []
    whole = (path for path in directory.iterdir() if path.name.isdecimal() and is_stored(path))
    return sorted(int(path.name) for path in whole)


def is_stored(directory: epath.Path) -> bool:
    """Whether the directory holds a complete network.

    In a bucket a kill during a save can leave a partial one.
    """
    return directory.exists() and ocp.utils.is_checkpoint_finalized(directory)


def save_teacher(directory: epath.Path, weights: Params, provenance: dict[str, Any]) -> None:
    """Stores a network's parameters, constants and provenance atomically.

    Replaces an existing network.

    Args:
      weights: numpy arrays, all written by this process.
    """
    checksum = _checksums({"params": weights})["params"]
    note = provenance | {"sha256": params_sha256(weights), "checksum": checksum}
    with _alone() as checkpointer:
        checkpointer.save(
            epath.Path(directory),
            ocp.args.Composite(
                params=ocp.args.StandardSave(weights), provenance=ocp.args.JsonSave(note)
            ),
            force=True,
        )


def load_provenance(directory: epath.Path) -> dict[str, Any]:
    """Provenance of a stored teacher: its source, sha256 and checksum.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        return _restore(directory, provenance=ocp.args.JsonRestore()).provenance
    except Exception as error:  # the remedy is the same for any damage
        raise _unusable(directory, str(error).splitlines()[0]) from error


def load_teacher(directory: epath.Path, like: Params) -> Params:
    """Loads a stored teacher's parameters and constants.

    Args:
      like: tree with the structure and shardings of the result.

    Raises:
      ConfigError: they cannot be read, or their checksum differs from the stored one.
    """
    expected = load_provenance(directory).get("checksum")
    try:
        params = _restore_arrays(directory, {"params": like})
    except Exception as error:
        raise _unusable(directory, str(error).splitlines()[0]) from error
    found = _checksums(params)["params"]
    if found != expected:
        raise _unusable(directory, f"its checksum is {found}, expected {expected}")
    return params["params"]


def _alone() -> ocp.Checkpointer:
    """A checkpointer without barriers, for reads and writes by one process.

    The other processes may be at another point of the program, or fail.
    """
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options)
    )
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _restore(directory: epath.Path, **items: Any) -> Any:
    with _alone() as checkpointer:
        return checkpointer.restore(epath.Path(directory), ocp.args.Composite(**items))


def _restore_arrays(directory: epath.Path, like: dict[str, Params]) -> dict[str, Params]:
    """Trees with the structure and shardings of `like`.

    Each process reads its own shards.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    found = _restore(directory, **items)
    return {name: found[name] for name in items}


def _unusable(directory: epath.Path, reason: str) -> ConfigError:
    return ConfigError(
        f"the teacher in {directory} cannot be used: {reason}; delete that directory to rebuild it."
    )


def params_sha256(params: Params) -> str:
    """SHA-256 of all parameters: path, shape, dtype and bytes, sorted by path.

    >>> params_sha256({"kernel": np.zeros((2, 3), np.float32)})[:8]
    'd66e8da8'
    """
    digest = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    for path in sorted(leaves):
        value = sharding.to_host(leaves[path])
        digest.update(json.dumps([path, value.shape, str(value.dtype)]).encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _checksums(trees: dict[str, Any]) -> dict[str, int]:
    """A 32-bit checksum per tree from its leaves' bits, mesh-independent."""
    return {name: _combined(_leaf_checksums(jax.tree.leaves(tree))) for name, tree in trees.items()}


def _leaf_checksums(leaves: list[Any]) -> list[Any]:
    """Checksum per leaf, by NumPy in host memory, else by the devices.

    NumPy needs no compilation; each device sums over its own shards.
    """
    if all(map(_in_host_memory, leaves)):
        return [_weighted_bits(np.asarray(leaf), np) for leaf in leaves]
    return jax.device_get(_on_devices(leaves))


@jax.jit
def _on_devices(leaves: list[Array]) -> list[Array]:
    return [_weighted_bits(leaf, jnp) for leaf in leaves]


def _weighted_bits(leaf: Any, xp: Any) -> Any:
    """Sum of bits * (2 * position + 1) modulo 2^32.

    64-bit values are first cast to 32 bits, as JAX does.

    Args:
      xp: numpy or jax.numpy.
    """
    if leaf.dtype.itemsize == 8:
        leaf = leaf.astype(f"{leaf.dtype.kind}4")
    unsigned = {1: xp.uint8, 2: xp.uint16, 4: xp.uint32}[leaf.dtype.itemsize]
    position = xp.arange(leaf.size, dtype=xp.uint32).reshape(leaf.shape)
    return xp.sum(leaf.view(unsigned).astype(xp.uint32) * (2 * position + 1), dtype=xp.uint32)


def _combined(sums: list[Any]) -> int:
    total = 0
    for number in sums:
        total = (31 * total + int(number)) % 2**32
    return total


def _in_host_memory(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(d.platform == "cpu" for d in leaf.devices())
