"""Caption cache: text-encoder embeddings in sharded files with random access.

A cache is a folder, possibly in a bucket (gs://...), of shards with the same number of prompts,
except the last. Shard 7 is

    00007.bf16    embeddings (tokens, channels), prompt after prompt, without padding: bfloat16,
                  little-endian
    00007.index   per prompt (INDEX): number of tokens, crc32 of its embeddings
    00007.jsonl   the prompts, one JSON string per line
    00007.json    written last: counts, and the sha256 of the other three files

plus cache.json, written when all shards are complete, with the cache's identity and a copy of all
0000N.json. Before that, unfinished.json holds the command that resumes the encoding. All files are
written under a temporary name, then renamed.

Written by encode.py, read by prompts.py.
"""

import concurrent.futures
import functools
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from simjax.errors import ConfigError
from simjax.typing import Bool, Caption, Float, Int

FORMAT = 1
CACHE, UNFINISHED = "cache.json", "unfinished.json"
INDEX = np.dtype([("tokens", "<u4"), ("crc32", "<u4")])
DIGESTS = ("tokenizer", "encoder", "text")  # sha256 of the inputs of a cache
# Tokens per prompt, channels, prompts, prompts per shard.
NUMBERS = ("length", "channels", "count", "shard")
LARGEST_JSON = 2**26  # bytes; our choice: a shard needs about 400
THREADS = 16  # reader threads, which mostly wait for a bucket; our choice
KEPT_INDICES = 1024  # shard indices kept in memory, 50 KB each; our choice

Identity = dict[str, Any]  # DIGESTS and NUMBERS
Indices = Int[np.ndarray, "n"]


class Embedded(NamedTuple):
    """Embeddings of n prompts; `truncated` counts the truncated prompts."""

    embedding: Float[np.ndarray, "n l c"]  # bfloat16
    mask: Bool[np.ndarray, "n l"]
    truncated: int


def begin(folder: epath.Path, identity: Mapping[str, Any], command: str) -> None:
    """Creates a cache folder with unfinished.json, unless it is one already."""
    if not (folder / CACHE).exists() and not (folder / UNFINISHED).exists():
        folder.mkdir(parents=True, exist_ok=True)
        note = {"format": FORMAT, **identity, "command": command}
        _write(folder / UNFINISHED, [_as_json(note)])


def require_same(folder: epath.Path, wanted: Mapping[str, Any]) -> None:
    """Raises unless the folder is empty or a cache of this identity.

    Args:
      wanted: an identity, complete or in part.

    Raises:
      ConfigError: the folder is another cache, or holds other files.
    """
    for name in (CACHE, UNFINISHED):
        if (folder / name).exists():
            content = _read_json(folder / name)
            _require(folder, _identity(folder / name, content), wanted)
            return
    if folder.exists() and any(not path.name.endswith(".tmp") for path in folder.iterdir()):
        raise ConfigError(
            f"{folder} is neither empty nor a caption cache; give another folder as --out."
        )


def is_written(folder: epath.Path, number: int, identity: Mapping[str, Any]) -> bool:
    """Whether a shard is complete."""
    note = folder / _name(number, "json")
    return note.exists() and not _misfit(folder, number, _read_json(note), identity)


def write_shard(
    folder: epath.Path, number: int, prompts: Sequence[str], batches: Iterable[Embedded]
) -> None:
    """Writes one shard, with one batch in memory at a time.

    Raises:
      ConfigError: an embedding is not finite, or a file cannot be written.
    """
    index: list[tuple[int, int]] = []
    truncated = 0

    def rows() -> Iterator[bytes]:
        nonlocal truncated
        for batch in batches:
            truncated += batch.truncated
            for row, mask in zip(batch.embedding, batch.mask, strict=True):
                bits = np.ascontiguousarray(row[mask]).view(np.uint16)
                if (bits & 0x7F80 == 0x7F80).any():  # exponent bits all ones: NaN or infinity
                    raise ConfigError(
                        f"the embedding of {prompts[len(index)][:80]!r} has NaN or infinity: the "
                        "encoder's weights are damaged; download them again."
                    )
                stored = bits.astype("<u2").tobytes()
                index.append((len(bits), zlib.crc32(stored)))
                yield stored

    lines = (json.dumps(prompt).encode() + b"\n" for prompt in prompts)
    sha256 = {"bf16": _write(folder / _name(number, "bf16"), rows())}
    sha256["index"] = _write(folder / _name(number, "index"), [np.array(index, INDEX).tobytes()])
    sha256["jsonl"] = _write(folder / _name(number, "jsonl"), lines)
    if len(index) != len(prompts):
        raise ValueError(f"{len(index)} embeddings, expected one per prompt, {len(prompts)}")
    note = {
        "prompts": len(prompts),
        "tokens": sum(tokens for tokens, _ in index),
        "truncated": truncated,
        "sha256": sha256,
    }
    _write(folder / _name(number, "json"), [_as_json(note)])


def finish(folder: epath.Path, identity: Mapping[str, Any]) -> None:
    """Writes cache.json once all shards are complete, and removes unfinished.json."""
    numbers = range(shards(identity))
    notes = [_read_json(folder / _name(number, "json")) for number in numbers]
    _write(folder / CACHE, [_as_json({"format": FORMAT, **identity, "shards": notes})])
    (folder / UNFINISHED).unlink(missing_ok=True)


def shards(identity: Mapping[str, Any]) -> int:
    """Number of shards.

    >>> shards({"count": 10, "shard": 4})
    3
    """
    return math.ceil(identity["count"] / identity["shard"])


class Cache:
    """A finished cache; embeddings are read from the files when indexed.

    Attributes:
      identity: DIGESTS and NUMBERS of the cache.
      truncated: number of truncated prompts.
    """

    def __init__(self, folder: epath.Path, identity: Identity, notes: Sequence[Mapping[str, Any]]):
        self.folder, self.identity = folder, identity
        self.truncated = sum(note["truncated"] for note in notes)
        self._sha256 = [note["sha256"]["index"] for note in notes]
        self._index = functools.lru_cache(KEPT_INDICES)(self._read_index)

    @classmethod
    def open(cls, folder: epath.PathLike, expected: Mapping[str, Any] | None = None) -> "Cache":
        """Opens a finished cache.

        Args:
          expected: entries that its identity must have: tokenizer, encoder, text, length, ...

        Raises:
          ConfigError: no cache, unfinished, another identity, or files are missing or truncated.
        """
        folder = epath.Path(folder).expanduser()
        if not (folder / CACHE).exists():
            raise _unfinished(folder)
        content = _read_json(folder / CACHE)
        identity = _identity(folder / CACHE, content)
        _require(folder, identity, expected or {})
        notes = content.get("shards")
        numbers = range(shards(identity))
        if not isinstance(notes, list) or len(notes) != len(numbers):
            raise _damaged(folder / CACHE, f"expected records of its {len(numbers)} shards")
        check = functools.partial(_misfit, folder, identity=identity)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            problem = next(filter(None, pool.map(check, numbers, notes)), None)
        if problem:
            raise problem
        return cls(folder, identity, notes)

    def __len__(self) -> int:
        return self.identity["count"]

    def read(self, indices: Indices) -> Caption:
        """Captions of some prompts, zero-padded: (n, l, c), bfloat16, NumPy.

        Raises:
          ConfigError: a checksum fails.
          IndexError: an index is out of range.
        """
        indices = np.asarray(indices)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"prompts {indices.min()} to {indices.max()} of {len(self)}")
        shape = (len(indices), self.identity["length"], self.identity["channels"])
        embedding = np.zeros(shape, ml_dtypes.bfloat16)
        lengths = np.zeros(len(indices), int)
        numbers, places = np.divmod(indices, self.identity["shard"])

        def fill(number: int) -> None:
            rows = np.flatnonzero(numbers == number)
            for row, found in zip(rows, self._rows(number, places[rows]), strict=True):
                embedding[row, : len(found)], lengths[row] = found, len(found)

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, np.unique(numbers).tolist()))
        mask = np.arange(shape[1]) < lengths[:, None]
        return Caption(embedding, mask, np.zeros(len(indices), bool))

    def _rows(self, number: int, places: Indices) -> Iterator[Float[np.ndarray, "l c"]]:
        """Embeddings of some prompts of one shard."""
        starts, index = self._index(number)
        path = self.folder / _name(number, "bf16")
        width = 2 * self.identity["channels"]
        try:
            with path.open("rb") as file:
                for place in places.tolist():
                    file.seek(int(starts[place]) * width)
                    stored = file.read(int(index["tokens"][place]) * width)
                    if zlib.crc32(stored) != index["crc32"][place]:
                        raise _damaged(path, f"the checksum of its prompt {place} is wrong")
                    bits = np.frombuffer(stored, "<u2").astype(np.uint16)
                    yield bits.view(ml_dtypes.bfloat16).reshape(-1, width // 2)
        except OSError as error:
            raise _damaged(path, f"it cannot be read: {error}") from error

    def _read_index(self, number: int) -> tuple[Int[np.ndarray, "n"], np.ndarray]:
        """Offset (in tokens) of each prompt of a shard, and its INDEX."""
        path = self.folder / _name(number, "index")
        try:
            stored = path.read_bytes()
        except OSError as error:
            raise _damaged(path, f"it cannot be read: {error}") from error
        if hashlib.sha256(stored).hexdigest() != self._sha256[number]:
            raise _damaged(path, "its checksum is wrong")
        index = np.frombuffer(stored, INDEX)
        if (index["tokens"] > self.identity["length"]).any():
            raise _damaged(path, f"a prompt has more than {self.identity['length']} tokens")
        return np.cumsum(index["tokens"], dtype=np.int64) - index["tokens"], index


def _name(number: int, kind: str) -> str:
    return f"{number:05d}.{kind}"


def _write(path: epath.Path, chunks: Iterable[bytes]) -> str:
    """Writes a file atomically; returns its sha256."""
    aside, digest = path.with_name(f"{path.name}.tmp"), hashlib.sha256()
    try:
        with aside.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
        aside.replace(path)  # a fixed name, so leftovers of a killed run are overwritten
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error}; fix that, then resume with the same command."
        ) from error
    return digest.hexdigest()


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        if path.stat().length > LARGEST_JSON:
            raise _damaged(path, f"it is larger than {LARGEST_JSON} bytes")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"{error}") from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it contains a {type(content).__name__}, expected an object")
    return content


def _identity(path: epath.Path, content: Mapping[str, Any]) -> Identity:
    """Identity recorded in cache.json or unfinished.json."""
    if content.get("format") != FORMAT:
        raise ConfigError(
            f"{path} has format {content.get('format')!r:.40}, expected {FORMAT}: it was written "
            "by another version of simjax or another program; encode the prompts again."
        )
    identity = {name: content.get(name) for name in (*DIGESTS, *NUMBERS)}
    for name in NUMBERS:
        if type(identity[name]) is not int or not 0 < identity[name] < 2**48:
            raise _damaged(path, f"{name} is {identity[name]!r:.40}, expected a positive integer")
    return identity


def _require(folder: epath.Path, identity: Identity, wanted: Mapping[str, Any]) -> None:
    """Raises if the identity of a cache differs from the wanted one."""
    differing = [
        f"{name} {identity[name]!s:.16} (cache) -> {value!s:.16} (here)"
        for name, value in wanted.items()
        if identity[name] != value
    ]
    if differing:
        raise ConfigError(
            f"{folder} is a cache with other inputs: {', '.join(differing)}. Use the inputs of the "
            "cache, or encode these prompts into another folder."
        )


def _unfinished(folder: epath.Path) -> ConfigError:
    """Error for a folder without cache.json, with the progress if unfinished."""
    if not (folder / UNFINISHED).exists():
        return ConfigError(
            f"{folder} is not a caption cache; create one: python -m simjax encode-prompts "
            f"--prompts=FILE --encoder=FOLDER --out={folder}"
        )
    content = _read_json(folder / UNFINISHED)
    total = shards(_identity(folder / UNFINISHED, content))
    there = sum(path.stem.isdigit() for path in folder.glob("*.json"))
    return ConfigError(
        f"{folder} is unfinished: {there} of {total} shards are complete; resume with: "
        f"{content.get('command')}"
    )


def _misfit(
    folder: epath.Path, number: int, note: Any, identity: Mapping[str, Any]
) -> ConfigError | None:
    """Error if a shard's record or file sizes are wrong, else None."""
    size = min(identity["shard"], identity["count"] - number * identity["shard"])
    if not _is_note(note) or note["prompts"] != size:
        return _damaged(folder / _name(number, "json"), f"expected a record of {size} prompts")
    sizes = {"bf16": 2 * identity["channels"] * note["tokens"], "index": INDEX.itemsize * size}
    for kind, expected in sizes.items():
        path = folder / _name(number, kind)
        found = path.stat().length if path.exists() else None
        if found != expected:
            return _damaged(path, f"{found} bytes, expected {expected}")
    return None


def _is_note(note: Any) -> bool:
    """Whether it has the fields that write_shard records."""
    return (
        isinstance(note, dict)
        and all(type(note.get(name)) is int for name in ("prompts", "tokens", "truncated"))
        and isinstance(note.get("sha256"), dict)
        and note["sha256"].keys() == {"bf16", "index", "jsonl"}
    )


def _damaged(path: epath.Path, problem: str) -> ConfigError:
    if path.stem.isdigit():
        remedy = f"delete {path.parent / path.stem}.json and run the same encode-prompts again"
    else:
        remedy = "restore it from a backup, or encode the prompts again into another folder"
    return ConfigError(f"{path} is damaged or missing: {problem}; {remedy}.")
