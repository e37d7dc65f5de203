"""A run in a bucket: killed, damaged, resumed, finished; and an unwritable bucket."""

import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.helpers import fake_gcs
from tests.helpers.command import command, refused

pytestmark = pytest.mark.whole_runs

WORKDIR = f"gs://{fake_gcs.BUCKET}/runs/x"
FLAGS = [  # a tiny network: nothing is learnt, compilation is short
    "--config.network.channels=4",
    "--config.network.channel_mult=(1,)",
    "--config.network.attention_resolutions=()",
    "--config.steps=8",
    "--config.steps_per_call=1",
    "--config.batch=8",
    "--config.teacher.steps=2",
    "--config.teacher.batch=8",
    "--config.log_every=1",
    "--config.sample_every=4",
    "--config.checkpoint_every=2",
    "--config.evaluation.features=('pixels',)",
    "--config.evaluation.samples=50",
    "--config.evaluation.batch=50",
    "--config.evaluation.teacher_steps=(2,)",
    "--config.evaluation.every=4",
    "--config.evaluation.online_samples=50",
    "--config.evaluation.best=pixels/frechet",
]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with fake_gcs.serve(tmp_path_factory.mktemp("bucket")) as bucket:
        yield bucket


@pytest.fixture(scope="module")
def environment(bucket) -> dict[str, str]:
    """Environment variables that point to the fake bucket."""
    return os.environ | bucket.environment


def run(environment: dict[str, str], workdir: str = WORKDIR) -> subprocess.CompletedProcess:
    return subprocess.run(command(workdir, *FLAGS), capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def local(environment, tmp_path_factory):
    """The same run on disk."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    done = run(environment, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def killed(bucket, environment, local):
    """Kills the run while it writes checkpoint 6, and adds remains of kills at other moments.

    One byte of checkpoint 4 is changed; the teacher and a second best generator lack the file that
    is written last.
    """
    bucket.refuses = "checkpoints/6/commit_success.txt"
    process = subprocess.Popen(
        command(WORKDIR, *FLAGS),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    while not bucket.refused and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert bucket.refused
    bucket.refuses = None
    arrays = max(
        bucket.names("runs/x/checkpoints/4/generator/d/"),
        key=lambda name: len(bucket.blobs[name].content),
    )
    content = bytearray(bucket.blobs[arrays].content)
    content[len(content) // 2] ^= 1
    bucket.write(arrays, bytes(content))
    del bucket.blobs["runs/x/teacher/commit_success.txt"]
    bucket.write("runs/x/best/7/_CHECKPOINT_METADATA", b"{}")


@pytest.fixture(scope="module")
def continued(killed, environment) -> subprocess.CompletedProcess:
    done = run(environment)
    assert done.returncode == 0, done.stderr
    return done


def test_it_resumes_from_the_newest_intact_checkpoint(continued, bucket):
    assert "checkpoint 4 is damaged" in continued.stdout
    assert "sim: continuing from step 2" in continued.stdout
    assert bucket.names("runs/x/checkpoints_damaged/4/generator/d/")
    assert bucket.names("runs/x/checkpoints/8/commit_success.txt")
    assert not bucket.names("runs/x/checkpoints/2/")  # keep_checkpoints is 2


def test_its_result_equals_that_of_a_run_on_disk(continued, bucket, local):
    here = json.loads((local / "report.json").read_text())
    there = json.loads(bucket.text("runs/x/report.json"))
    assert there["generator_sha256"] == here["generator_sha256"]
    assert there["teacher"]["sha256"] == here["teacher"]["sha256"]
    note = "runs/x/checkpoints/8/note/metadata"
    assert bucket.text(note) == (local / "checkpoints" / "8" / "note" / "metadata").read_text()


def test_every_step_is_logged_once(continued, bucket):
    lines = map(json.loads, bucket.text("runs/x/metrics.jsonl").splitlines())
    steps = [line["step"] for line in lines if "generator/loss" in line]
    assert steps == list(range(1, 9))


def test_pictures_equal_those_on_disk(continued, bucket, local):
    def picture(written: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(written)))

    there = picture(bucket.blobs["runs/x/samples/progress.png"].content)
    here = picture((local / "samples" / "progress.png").read_bytes())
    np.testing.assert_array_equal(there, here)


def test_only_the_best_generator_is_kept(continued, bucket, local):
    (kept,) = (local / "best").iterdir()
    assert {name.split("/")[3] for name in bucket.names("runs/x/best/")} == {kept.name, ""}
    note = json.loads(bucket.text(f"runs/x/best/{kept.name}/provenance/metadata"))
    assert note["step"] == int(kept.name)


def test_no_other_files_remain(continued, bucket):
    names = {name.split("/")[2] for name in bucket.names("runs/x/")}
    assert names - {""} == {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "samples",
        "teacher",
        "checkpoints",
        "checkpoints_damaged",
        "best",
        "probe.json",
        "report.json",
    }


def test_a_finished_run_prints_its_report(continued, environment):
    again = run(environment)
    assert again.returncode == 0, again.stderr
    assert f"{WORKDIR} is finished" in again.stdout
    assert again.stdout.split("its report:\n\n")[1] in continued.stdout


def test_an_unwritable_bucket_is_refused(bucket, environment):
    bucket.refuses, bucket.status = "", 403
    done = run(environment, f"gs://{fake_gcs.BUCKET}/another")
    bucket.refuses = None
    assert done.returncode == 1
    message = refused(done)
    assert message.startswith(f"simjax: workdir gs://{fake_gcs.BUCKET}/another cannot be used")
    assert "403" in message
    assert "--workdir" in message
    assert message.count("\n") == 1


def test_objects_are_rewritten_on_flush_not_for_every_line(bucket, environment):
    # Appending rewrites the whole object: line by line, a long run would write terabytes.
    program = f"""
from simjax.runtime.monitor import Monitor
monitor = Monitor("gs://{fake_gcs.BUCKET}/long")
monitor.begin("sim", step=0, steps=100, batch=1)
for step in range(1, 51):
    monitor.advance(step)
    monitor.scalars(step, {{"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}})
monitor.flush()
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(bucket.text("long/metrics.jsonl").splitlines()) == 50
    assert bucket.written.count("long/metrics.jsonl") == 1
    (events,) = bucket.names("long/tensorboard/events")
    assert len(bucket.blobs[events].content) > 50 * 4 * len("sim/a")
    assert bucket.written.count(events) <= 4  # at start, flush and end
