"""simjax encode-prompts: cache contents, resuming, several processes and errors."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from simjax.errors import ConfigError
from simjax.text import encoders, prompts
from simjax.text.caption_cache import Cache
from simjax.text.tokenizer import Tokenizer
from tests.helpers import fake_gcs, subprocesses
from tests.helpers.encoder_files import WORDS, write_encoder

LENGTH = 6


def made_up(count):
    draw = np.random.default_rng(3)
    lines = [" ".join(draw.choice(WORDS, draw.integers(1, 9))) for _ in range(count)]
    return [f"{n} {line}" for n, line in enumerate(lines)]  # "12" is one unknown token


def command(files, out, **flags):
    flags = {"prompts": files / "p.tsv", "encoder": files / "t5", "out": out} | flags
    flags = {"length": LENGTH, "batch": 3, "shard": 4} | flags
    return ["-m", "simjax", "encode-prompts", *(f"--{k}={v}" for k, v in flags.items())]


def run(arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=subprocesses.environment(),
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with p.tsv, which has two empty lines, and the encoder t5."""
    folder = tmp_path_factory.mktemp("files")
    lines = [f"{n}\t{line}" for n, line in enumerate(made_up(10))]
    (folder / "p.tsv").write_text("\n".join(["id\tcaption", *lines[:5], "", "7\t ", *lines[5:]]))
    write_encoder(folder / "t5")
    return folder


@pytest.fixture(scope="module")
def encoder(files):
    return encoders.load_encoder(files / "t5")


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "cache"
    done = run(command(files, out))
    assert done.returncode == 0, done.stderr
    return out, done


def test_prints_counts_and_progress(finished):
    out, done = finished
    long = sum(len(line.split()) >= LENGTH for line in made_up(10))
    assert done.stdout == (
        f"prompts encoded: 10\ntruncated to {LENGTH} tokens: {long}\nempty lines skipped: 2\n"
        f"written to {out}\n"
    )
    assert 0 < long < 10
    assert re.search(r"encoding: 100%.* 10/10 .* prompts/s", done.stderr), done.stderr


def test_the_cache_contains_the_encoders_features_of_every_prompt(finished, files, encoder):
    cache = Cache.open(finished[0], {"length": LENGTH, "encoder": encoder.digest, "channels": 32})
    got = cache.read(np.arange(10))
    encode = jax.jit(encoders.encoding(encoder.sizes)[0])
    tokenizer = Tokenizer(files / "t5")
    for n in (0, 4, 9):  # one by one, without padding
        line = made_up(10)[n]
        tokens, mask, _ = tokenizer.encode([line], min(LENGTH, len(line.split()) + 1))
        expected = np.asarray(encode(encoder.params, tokens, mask)[0]).astype(np.float32)
        length = len(expected)
        assert got.mask[n].sum() == length
        ours = got.embedding[n].astype(np.float32)
        assert np.abs(ours[:length] - expected).max() < 0.03 * np.abs(expected).max()
        assert not ours[length:].any()


def test_prompts_encoded_in_memory_equal_those_of_the_cache(finished, files, encoder):
    tokenizer = Tokenizer(files / "t5")
    got = encoders.captions(encoder, tokenizer, made_up(10)[2:7], length=LENGTH, batch=2)
    expected = Cache.open(finished[0]).read(np.arange(2, 7))
    np.testing.assert_array_equal(got.mask, expected.mask)
    assert got.embedding.dtype == ml_dtypes.bfloat16 and not got.dropped.any()
    worst = np.abs(got.embedding.astype(float) - expected.embedding.astype(float)).max()
    assert worst < 0.03


def test_the_digest_depends_only_on_weights_and_config(files, encoder, tmp_path):
    again = write_encoder(tmp_path / "again")
    (again / "config.json").write_text((files / "t5" / "config.json").read_text() + "\n")
    assert encoders.load_encoder(again).digest == encoder.digest
    assert encoders.load_encoder(write_encoder(tmp_path / "other", seed=1)).digest != encoder.digest
    config = json.loads((again / "config.json").read_text())
    config["relative_attention_max_distance"] = 64  # changes no weight
    (again / "config.json").write_text(json.dumps(config))
    assert encoders.load_encoder(again).digest != encoder.digest


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_rejected(tmp_path, files):
    encoder = encoders.load_encoder(write_encoder(tmp_path / "small", vocabulary=11))
    with pytest.raises(
        ConfigError, match="has token ids up to 11, expected less than .* vocabulary size 11"
    ):
        encoders.require_fit(encoder, Tokenizer(files / "t5"))


def test_a_broken_encoder_is_rejected(tmp_path, files):
    with pytest.raises(ConfigError, match="model.safetensors has no config.json"):
        encoders.load_encoder(files / "t5" / "model.safetensors")
    folder = write_encoder(tmp_path / "t5")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors.pop("encoder.final_layer_norm.weight")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ConfigError, match=f"^{folder}: 1 mismatches .*\n.*nothing fills norm/scale"
    ):
        encoders.load_encoder(folder)


def refusals(commands):
    """Messages of the commands, which run concurrently."""
    started = [
        subprocess.Popen(
            [sys.executable, *one],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=subprocesses.environment(),
        )
        for one in commands
    ]
    messages = []
    for process in started:
        stdout, stderr = process.communicate()
        assert process.returncode == 1 and not stdout, (stdout, stderr)
        lines = [line for line in stderr.splitlines() if line.startswith("simjax: ")]
        assert len(lines) == 1 and "Traceback" not in stderr, stderr
        messages.append(stderr)
    return messages


def test_user_errors_print_one_line(files, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"a\nb\xff\n")
    cases = {
        "expected --prompts=... --encoder=... --out=..., got nothing": command(files, "")[:3],
        "--length=1; expected a number from 2 to 4096": command(files, tmp_path, length=1),
        "bad.txt, line 2: not utf-8": command(files, tmp_path, prompts=tmp_path / "bad.txt"),
        "bad.txt/cache cannot be written": command(files, tmp_path / "bad.txt" / "cache"),
    }
    for expected, message in zip(cases, refusals(cases.values()), strict=True):
        assert expected in message


def test_a_cache_of_other_inputs_is_rejected_and_left_unchanged(finished, files, tmp_path):
    out, _ = finished
    before = contents(out)
    (tmp_path / "p.tsv").write_text("caption\nred cat\n")
    other = write_encoder(tmp_path / "other", seed=1)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    cases = {
        "tokenizer .* text .* length 6 .* -> 7 .* count 10 .* -> 1 .* shard 4 .* -> 5": {
            "prompts": tmp_path / "p.tsv",
            "tokenizer": other,
            "length": 7,
            "shard": 5,
        },
        "other inputs: encoder \\w{16} \\(cache\\) -> \\w{16} \\(here\\)\\.": {
            "encoder": other,
            "tokenizer": files / "t5",
        },
    }
    messages = refusals([command(files, out, **flags) for flags in cases.values()])
    for expected, one in zip(cases, messages, strict=True):
        assert re.search(expected, one), one
    assert contents(out) == before


@pytest.fixture(scope="module")
def many(files):
    """Folder with more prompts and a link to the encoder."""
    folder = files / "many"
    folder.mkdir()
    (folder / "p.tsv").write_text("\n".join(["caption", *made_up(400)]))
    (folder / "t5").symlink_to(files / "t5")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(many, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "cache"
    done = run(command(many, out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.whole_runs
def test_killed_at_several_moments_and_resumed_gives_identical_files(many, uninterrupted, tmp_path):
    out = tmp_path / "cache"
    awaited = ["unfinished.json", "*.bf16.tmp", "00010.json", "00033.index", "00060.json"]
    seen = []
    for number, name in enumerate(awaited):
        process = subprocess.Popen(
            [sys.executable, *command(many, out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=subprocesses.environment(),
        )
        while process.poll() is None and not (out.exists() and any(out.glob(name))):
            time.sleep(0.0005)
        process.send_signal(signal.SIGTERM if number == 3 else signal.SIGKILL)
        process.wait()
        with pytest.raises(ConfigError, match="is unfinished: .* of 100 .* resume with: python"):
            Cache.open(out)
        seen.append(sum(1 for path in out.glob("*.json") if path.stem.isdigit()))
    assert seen == sorted(seen) and seen[1] < seen[2] < seen[4] < 100, seen
    done = run(command(many, out))
    assert done.returncode == 0, done.stderr
    assert "prompts encoded: 400" in done.stdout
    assert contents(out) == contents(uninterrupted)
    (out / "00007.json").unlink()  # the remedy for a damaged shard
    (out / "00007.bf16").write_bytes(b"")
    assert run(command(many, out)).returncode == 0
    assert contents(out) == contents(uninterrupted)


@pytest.mark.whole_runs
def test_two_processes_write_the_same_cache_as_one(many, uninterrupted, tmp_path):
    out = tmp_path / "cache"
    started = subprocesses.start(command(many, out), processes=2, devices=1)
    messages = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], messages
    assert contents(out) == contents(uninterrupted)
    assert "prompts encoded: 400" in messages[0] and "prompts encoded" not in messages[1]


@pytest.mark.whole_runs
def test_processes_without_a_shared_folder_are_rejected(many, tmp_path):
    """The processes start in different folders, so the relative --out differs."""
    program = """
import os, runpy, sys
home = sys.argv.pop(1) + os.environ["JAX_PROCESS_ID"]
os.mkdir(home)
sys.path.insert(0, os.getcwd())
os.chdir(home)
runpy.run_module("simjax", run_name="__main__")
"""
    arguments = ["-c", program, f"{tmp_path}/", *command(many, "cache")[2:]]
    started = subprocesses.start(arguments, processes=2, devices=1)
    messages = [process.communicate(timeout=300)[0] for process in started]
    assert all(process.returncode for process in started)
    assert all("not every process sees --out=cache" in one for one in messages), messages
    assert not any(tmp_path.glob("*/cache/*.json"))


@pytest.mark.whole_runs
def test_two_processes_reject_another_length_together(many, uninterrupted):
    started = subprocesses.start(command(many, uninterrupted, length=9), processes=2, devices=1)
    messages = [process.communicate(timeout=300)[0] for process in started]
    assert all(process.returncode for process in started)
    assert any("length 6 (cache) -> 9 (here)" in one for one in messages), messages


READ = """
import json, sys
import numpy as np
from simjax.text.caption_cache import Cache
captions = Cache.open(sys.argv[1]).read(np.arange(10)[::-1])
print(json.dumps([captions.embedding.astype(float).tolist(), captions.mask.tolist()]))
"""


@pytest.mark.whole_runs
@pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="needs .[gcs]")
def test_a_cache_in_a_bucket_equals_the_local_one(files, finished, tmp_path):
    out = f"gs://{fake_gcs.BUCKET}/cache"
    with fake_gcs.serve(tmp_path) as bucket:
        environment = subprocesses.environment() | bucket.environment

        def python(*arguments):
            arguments = [sys.executable, *arguments]
            return subprocess.run(arguments, capture_output=True, text=True, env=environment)

        bucket.refuses, bucket.status = "00001.index", 403
        assert python(*command(files, out)).returncode == 1
        bucket.refuses = None
        unfinished = python("-c", READ, out).stderr
        assert "unfinished: 1 of 3 shards are complete" in unfinished, unfinished
        done = python(*command(files, out))
        assert done.returncode == 0, done.stderr
        blobs = {name: bucket.blobs[name].content for name in bucket.names("cache/")}
        expected = {f"cache/{name}": content for name, content in contents(finished[0]).items()}
        assert {name: blob for name, blob in blobs.items() if name != "cache/"} == expected
        read = python("-c", READ, out)
    assert read.returncode == 0, read.stderr
    embedding, mask = json.loads(read.stdout)
    local = Cache.open(finished[0]).read(np.arange(10)[::-1])
    np.testing.assert_array_equal(embedding, local.embedding.astype(float))
    np.testing.assert_array_equal(mask, local.mask)


def test_the_cache_stores_the_prompts_of_the_file(finished, files):
    lines = [json.loads(line) for n in range(3) for line in (finished[0] / f"{n:05d}.jsonl").open()]
    assert lines == list(prompts.read_prompts(files / "p.tsv")) == made_up(10)
