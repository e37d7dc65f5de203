"""Reading prompts, the caption cache, the training order and the reader of captions."""

import hashlib
import json
import threading
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath

from simjax.errors import ConfigError
from simjax.runtime import sharding
from simjax.runtime.stream import _permutation, order
from simjax.text import caption_cache, prompt_file, prompts
from simjax.text.caption_cache import Cache, Embedded
from tests.helpers import memory, subprocesses

LENGTH, CHANNELS, SHARD = 5, 3, 4


def made_up(texts):
    """Stand-in for an encoder: 1 to LENGTH tokens; embeddings unique to text and position."""
    lengths = np.array([1 + len(text) % LENGTH for text in texts])
    mask = np.arange(LENGTH) < lengths[:, None]
    first = np.array([hashlib.sha256(text.encode()).digest()[0] for text in texts])
    embedding = first[:, None, None] + np.arange(LENGTH * CHANNELS).reshape(LENGTH, CHANNELS) / 16
    return Embedded(embedding.astype(ml_dtypes.bfloat16), mask, int(sum(lengths == LENGTH)))


def identity_of(count, **others):
    known = {"tokenizer": "t" * 64, "encoder": "e" * 64, "text": "p" * 64}
    sizes = {"length": LENGTH, "channels": CHANNELS, "count": count, "shard": SHARD}
    return known | sizes | others


def write(folder, texts, *, finish=True, **others):
    """Writes a cache as encode.make_cache does, in batches of three."""
    folder, identity = epath.Path(folder), identity_of(len(texts), **others)
    caption_cache.begin(folder, identity, "python -m simjax encode-prompts --x=1")
    for number in range(caption_cache.shards(identity)):
        if caption_cache.is_written(folder, number, identity):
            continue
        some = texts[number * identity["shard"] :][: identity["shard"]]
        batches = (made_up(some[start : start + 3]) for start in range(0, len(some), 3))
        caption_cache.write_shard(folder, number, some, batches)
    if finish:
        caption_cache.finish(folder, identity)
    return folder


TEXTS = ["a cat", "two dogs", "日本", "x", "a house by the sea", "blue", "b", "cc", "ddd", "eeee"]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "cache", TEXTS)


# Reading prompts


def read(path):
    return list(prompts.read_prompts(path))


def test_a_text_file_has_one_prompt_per_line(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa cat\r\n\n  two\tdogs \n   \n日本\u2028x".encode())
    expected = ["a cat", "two\tdogs", "日本\u2028x"]
    assert read(path) == expected
    digest = hashlib.sha256("".join(f"{one}\n" for one in expected).encode()).hexdigest()
    assert prompts.survey(path) == (3, 2, digest)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("id\tCaption\turl\n1\ta cat\thttp\n\n2\t\thttp\n", ["a cat"]),
        ("text\tprompt\n1\t2\n", ["2"]),  # prompt is preferred to text
        ('1\ta "cat"\n2\ttwo\n', ['a "cat"', "two"]),  # no header: the last column
        ("caption\na\nb", ["a", "b"]),
    ],
)
def test_a_tsv_has_prompts_in_a_column(tmp_path, content, expected):
    path = tmp_path / "p.tsv"
    path.write_text(content)
    assert read(path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"a\nb\nd\xe9j\xe0 vu\n", "p.txt, line 3: not utf-8 .*byte 2 of the line"),
        ("p.txt", "a\nb".encode("utf-16"), "p.txt, line 1: utf-16"),
        ("p.txt", b"a\n" + b"b" * 65537, "p.txt, line 2: more than 65536 characters"),
        ("p.txt", b"\n \n", "p.txt has no prompts"),
        ("p.txt", b"", "p.txt has no prompts"),
        ("p.tsv", b"caption\turl\na\tb\nc\n", "p.tsv, line 3: 1 columns, expected 2"),
        ("p.tsv", b"caption\turl\na\tb\tc\n", "p.tsv, line 2: 3 columns, expected 2"),
        ("missing.txt", None, "missing.txt: cannot be read"),
    ],
)
def test_invalid_files_are_refused_with_the_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        prompts.survey(tmp_path / name)


def test_lines_across_blocks_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_file, "BLOCK", 7)
    path = tmp_path / "p.txt"
    path.write_text("\n".join(TEXTS))
    assert read(path) == TEXTS


# The cache


def test_embeddings_are_read_in_any_order(folder):
    cache = Cache.open(folder)
    indices = np.array([7, 0, 9, 7, 3, 4, 8, 1])
    got, expected = cache.read(indices), made_up([TEXTS[i] for i in indices])
    np.testing.assert_array_equal(got.mask, expected.mask)
    assert got.embedding.dtype == ml_dtypes.bfloat16
    zero_padded = np.where(expected.mask[..., None], expected.embedding.astype(float), 0)
    np.testing.assert_array_equal(got.embedding.astype(float), zero_padded)
    assert got.dropped.shape == (8,) and not got.dropped.any()
    assert len(cache) == 10 and cache.truncated == made_up(TEXTS).truncated
    with pytest.raises(IndexError, match="prompts 0 to 10 of 10"):
        cache.read(np.array([0, 10]))
    with pytest.raises(IndexError, match="prompts -1 to 3 of 10"):
        cache.read(np.array([3, -1]))


def test_the_files_have_the_documented_format(folder):
    names = [f"0000{n}.{kind}" for n in range(3) for kind in ("bf16", "index", "json", "jsonl")]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "cache.json"]
    one = made_up(TEXTS[4:8])
    bits = np.frombuffer((folder / "00001.bf16").read_bytes(), "<u2")
    np.testing.assert_array_equal(bits, one.embedding[one.mask].view(np.uint16).reshape(-1))
    lines = (folder / "00001.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == TEXTS[4:8]
    note = json.loads((folder / "00001.json").read_text())
    for kind, expected in note["sha256"].items():
        content = (folder / f"00001.{kind}").read_bytes()
        assert hashlib.sha256(content).hexdigest() == expected
    content = json.loads((folder / "cache.json").read_text())
    assert content["shards"][1] == note and content["format"] == 1 and content["count"] == 10


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokenizer", "u" * 64, "tokenizer tttttttttttttttt .cache. -> uuuuuuuuuuuuuuuu .here."),
        ("encoder", "u" * 64, "encoder e+ .cache. -> u+ .here."),
        ("text", "u" * 64, "text p+ .cache. -> u+ .here."),
        ("length", 77, "length 5 .cache. -> 77 .here."),
        ("channels", 4096, "channels 3 .cache. -> 4096 .here."),
    ],
)
def test_a_cache_of_other_inputs_is_refused(folder, name, value, message):
    Cache.open(folder, {name: identity_of(10)[name]})
    with pytest.raises(ConfigError, match=f"other inputs: {message}. Use"):
        Cache.open(folder, identity_of(10, **{name: value}))
    with pytest.raises(ConfigError, match=f"other inputs: {message}. Use"):
        caption_cache.require_same(folder, {name: value})


def test_an_unfinished_cache_is_refused_with_its_progress_and_command(tmp_path):
    folder = write(tmp_path / "cache", TEXTS, finish=False)
    (folder / "00001.json").unlink()
    command = "python -m simjax encode-prompts --x=1"
    with pytest.raises(ConfigError, match=f"unfinished: 2 of 3 shards .*resume with: {command}$"):
        Cache.open(folder)
    written = [caption_cache.is_written(folder, n, identity_of(10)) for n in range(3)]
    assert written == [True, False, True]
    with pytest.raises(ConfigError, match="is not a caption cache; create one"):
        Cache.open(tmp_path / "other")


class Killed(BaseException):
    """Stand-in for SIGKILL: no handler catches it."""


@pytest.mark.parametrize("moment", ["half a file", "before its rename"])
def test_resuming_after_a_kill_at_any_file_gives_identical_files(
    folder, tmp_path, monkeypatch, moment
):
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename, left = type(folder).replace, 0

    def killing(self, target):
        nonlocal left
        left -= 1
        if left == 0:
            if moment == "half a file":
                self.write_bytes(self.read_bytes()[: self.stat().length // 2])
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(type(folder), "replace", killing)
    identity = identity_of(len(TEXTS))
    for number in range(1, 15):  # 12 files of shards and two .json
        out = epath.Path(tmp_path / f"{number}")
        left = number
        with pytest.raises(Killed):
            write(out, TEXTS)
        assert not (out / "cache.json").exists()
        caption_cache.require_same(out, identity)
        write(out, TEXTS)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == whole, number


def test_a_file_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    folder = epath.Path(tmp_path / "file" / "cache")
    with pytest.raises(
        ConfigError, match="00000.bf16 cannot be written.*resume with the same command"
    ):
        caption_cache.write_shard(folder, 0, TEXTS[:2], [made_up(TEXTS[:2])])


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="neither empty nor a caption cache"):
        caption_cache.require_same(epath.Path(tmp_path), identity_of(10))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["bf16", "index"])
def test_truncated_or_missing_files_are_refused_on_opening(folder, kind):
    path = folder / f"00002.{kind}"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    message = f"00002.{kind} is damaged or missing: {len(content) - 1} bytes, expected"
    with pytest.raises(ConfigError, match=f"{message} .*; delete .*/00002.json and run"):
        Cache.open(folder)
    path.unlink()
    with pytest.raises(ConfigError, match=f"{path.name} is damaged or missing: None bytes"):
        Cache.open(folder)
    assert not caption_cache.is_written(folder, 2, identity_of(10))


@pytest.mark.parametrize("kind", ["bf16", "index"])
def test_a_changed_byte_is_detected_on_reading(folder, kind):
    flip(folder / f"00001.{kind}", -1)
    cache = Cache.open(folder)
    cache.read(np.array([0, 1, 2, 3, 8, 9]))
    with pytest.raises(ConfigError, match=f"00001.{kind} is damaged.* checksum .*is wrong"):
        cache.read(np.arange(10))


def changed(folder, **values):
    content = json.loads((folder / "cache.json").read_text()) | values
    (folder / "cache.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 2}, "has format 2, expected 1"),
        ({"count": "10"}, "count is '10'"),
        ({"shard": 0}, "shard is 0"),
        ({"length": 2**60}, "length is 1152921504606846976"),
        ({"shards": [{}] * 2}, "expected records of its 3 shards"),
        ({"shards": [{}] * 3}, "00000.json is damaged or missing: expected a record of 4"),
        ({"shards": [None] * 3}, "expected a record of 4 prompts"),
        ({"count": 9}, "expected a record of 1 prompts"),
    ],
)
def test_an_invalid_field_of_cache_json_is_refused(folder, values, message):
    changed(folder, **values)
    with pytest.raises(ConfigError, match=message):
        Cache.open(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 10**6])
def test_a_cache_json_without_an_object_is_refused(folder, content):
    (folder / "cache.json").write_bytes(content)
    with pytest.raises(ConfigError, match="cache.json is damaged or missing"):
        Cache.open(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_not_written(tmp_path, value):
    batch = made_up(TEXTS[:2])
    batch.embedding[1, 3, 1] = value  # padding, which is not written
    batch.embedding[1, 0, 1] = value
    with pytest.raises(ConfigError, match="the embedding of 'two dogs' has NaN or infinity"):
        caption_cache.write_shard(epath.Path(tmp_path), 0, TEXTS[:2], [batch])
    assert not (tmp_path / "00000.json").exists() and not (tmp_path / "00000.bf16").exists()


def test_memory_is_bounded_by_the_rows_read(tmp_path):
    texts = [f"{n:06d}" for n in range(100_000)]
    path = tmp_path / "p.txt"
    path.write_text("\n".join(texts))
    folder = write(tmp_path / "cache", texts, shard=4096)
    count = len(texts)
    del texts

    def stream() -> tuple[int, int]:
        return prompts.survey(path).count, sum(1 for _ in prompts.read_prompts(path))

    def read() -> np.ndarray:
        cache = Cache.open(folder)
        seen = np.zeros(count, int)
        for update in range(100):
            indices = order(0, count, update, 1000)
            seen[indices] += 1
            if update % 50 < 2:
                assert (cache.read(indices).mask.sum(1) == 1 + 6 % LENGTH).all()
        return seen

    counts, streaming = memory.peak(stream)
    seen, reading = memory.peak(read)
    assert counts == (count, count) and (seen == 1).all()
    assert streaming < 8 * 2**20 and reading < 8 * 2**20, (streaming, reading)


# The order


def test_every_prompt_is_seen_once_per_epoch():
    count, batch = 21, 4
    seen = np.concatenate([order(3, count, call, batch) for call in range(60)])
    epochs = seen[: 21 * (len(seen) // 21)].reshape(-1, count)
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert not (epochs[0] == np.arange(count)).all()


def test_the_order_depends_only_on_its_arguments():
    before = order(5, 1000, 15, 64)
    _permutation.cache_clear()
    np.testing.assert_array_equal(order(5, 1000, 15, 64), before)
    assert (order(6, 1000, 15, 64) != before).any()
    # Another batch size splits the same order differently: 128 * 7 = 64 * 14.
    half = order(5, 1000, 7, 128)[:64]
    np.testing.assert_array_equal(half, order(5, 1000, 14, 64))
    # Recorded: the same on every machine and with later NumPy versions.
    assert order(0, 10, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_a_batch_may_be_larger_than_the_number_of_prompts():
    found = np.bincount(order(0, 3, 0, 10), minlength=3)
    assert sorted(found) == [3, 3, 4]


# The reader


def reader(folder, **options):
    sizes = {"seed": 1, "batch": 4, "steps_per_call": 3, "updates": 2}
    sizes |= {"mesh": sharding.make_mesh()}
    return prompts.Reader(Cache.open(folder), **sizes | options)


def expected(step, steps=3, batch=4):
    """Captions of a jitted call, step by step and update by update."""
    cache = {i: made_up([text]) for i, text in enumerate(TEXTS)}
    rows = np.empty((steps, 2, batch), int)
    for s in range(step, step + steps):
        for update in (0, 1):
            rows[s % steps, update] = order(1, len(TEXTS), 2 * s + update, batch)
    pick = [cache[i] for i in rows.reshape(-1)]
    mask = np.concatenate([one.mask for one in pick])
    embedding = np.concatenate([one.embedding for one in pick]).astype(np.float32)
    embedding = np.where(mask[..., None], embedding, 0)
    return embedding.reshape(*rows.shape, LENGTH, CHANNELS), mask.reshape(*rows.shape, LENGTH)


def test_captions_depend_only_on_the_step_after_a_restart(folder):
    captions = reader(folder)
    for step in (0, 3, 6, 4, 7, 10):  # 4: resumed at a step not divisible by 3
        with jax.transfer_guard("disallow"):
            got = captions.at(step)
        embedding, mask = expected(step)
        np.testing.assert_array_equal(np.asarray(got.embedding).astype(np.float32), embedding)
        np.testing.assert_array_equal(got.mask, mask)
        assert got.dropped.shape == (3, 2, 4) and not np.asarray(got.dropped).any()
        assert got.embedding.dtype == ml_dtypes.bfloat16


def test_the_next_call_is_prefetched_in_the_background(folder, monkeypatch):
    read_by, original = [], prompts.Reader._read

    def noted(self, step):
        read_by.append((step, threading.current_thread().daemon))
        return original(self, step)

    monkeypatch.setattr(prompts.Reader, "_read", noted)
    captions = reader(folder)
    assert read_by == []
    captions.at(0)
    deadline = time.monotonic() + 10
    while len(read_by) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert read_by == [(0, True), (3, True)]
    captions.at(3)
    captions._ahead[1].result()
    assert read_by == [(0, True), (3, True), (6, True)]


def test_errors_of_the_background_thread_reach_the_caller(folder):
    captions = reader(folder, steps_per_call=1, batch=2)  # an epoch is 2.5 steps
    for name in ("00000", "00001", "00002"):
        flip(folder / f"{name}.bf16", 0)
    with pytest.raises(ConfigError, match="checksum .*is wrong"):
        for step in range(6):
            captions.at(step)


DEVICES = """
import jax, numpy as np
from simjax.runtime import sharding
from simjax.text.caption_cache import Cache
from simjax.text.prompts import Reader
from tests.text import test_prompts as here

class Counting(Cache):
    rows = 0
    def read(self, indices):
        Counting.rows += len(indices)
        return super().read(indices)

mesh = sharding.make_mesh({fsdp})
sizes = {{"seed": 1, "batch": 8, "steps_per_call": 3, "updates": 2}}
reader = Reader(Counting.open({folder!r}), mesh=mesh, **sizes)
got = reader.at(3)
like = sharding.abstract_rows(got, mesh)
assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, got, like))
embedding, mask = here.expected(3, batch=8)
start = 8 * jax.process_index() // jax.process_count()
stop = start + 8 // jax.process_count()
for leaf, want in ((got.embedding, embedding), (got.mask, mask)):
    for shard in leaf.addressable_shards:
        assert shard.data.shape[2] == 8 // len(jax.devices())
        assert start <= shard.index[2].start < shard.index[2].stop <= stop
        np.testing.assert_array_equal(np.asarray(shard.data).astype(np.float32), want[shard.index])
reader._ahead[1].result()
assert Counting.rows == 2 * 3 * 2 * (stop - start), Counting.rows  # this call and the next
print("well")
"""


@pytest.mark.parametrize("fsdp", [1, 2])
def test_eight_devices_get_the_same_captions(folder, fsdp):
    program = DEVICES.format(fsdp=fsdp, folder=str(folder))
    assert subprocesses.on_devices(8, program) == "well\n"


def test_each_of_two_processes_reads_its_own_rows(folder):
    program = "from simjax.runtime import processes; processes.join()\n" + DEVICES
    program = program.format(fsdp=2, folder=str(folder)) + "processes.leave()\n"
    started = subprocesses.start(["-c", program], processes=2, devices=2)
    for process in started:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "well" in output, output
