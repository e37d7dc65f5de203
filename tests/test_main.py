"""The command as a user runs it: a whole run, kills and restarts, mistakes, a finished run."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simjax.models import exported
from tests.helpers import killed, subprocesses
from tests.helpers.command import TINY, refused, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A whole run in the default place, relative to where the command was given."""
    cwd = tmp_path_factory.mktemp("finished")
    done = run(None, *TINY, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "digits", done


def test_a_run_leaves_everything_that_a_person_looks_for(finished):
    workdir, done = finished
    names = {path.name for path in workdir.iterdir()} - {"tensorboard"}  # with TensorFlow
    assert names == {
        "config.json",
        "metrics.jsonl",
        "samples",
        "teacher",
        "probe.json",
        "checkpoints",
        "report.json",
    }
    samples = workdir / "samples"
    assert Image.open(samples / "teacher.png").size == (720, 720)
    strip = np.asarray(Image.open(samples / "progress.png"))
    first = np.asarray(Image.open(samples / "generator_00000000.png"))
    assert strip.shape == (5 * 72, 720)  # steps 0, 8, 16, 24 and the teacher
    np.testing.assert_array_equal(strip[:72], first[:72])
    report = json.loads((workdir / "report.json").read_text())
    assert report["teacher"]["source"].startswith("trained on digits")
    assert len(report["teacher"]["sha256"]) == 64
    assert [row["evaluations"] for row in report["rows"]] == [1, 1, 5, None, None]
    assert all(row["samples"] == 200 for row in report["rows"][:3])
    assert {"pixels/frechet", "pixels/recall", "classifier/class_agreement"} <= set(
        report["rows"][0]["metrics"]
    )
    assert report["protocol"]["classifier"]["extractor"]["held_out_accuracy"] > 0.95
    assert "generator, sim" in done.stdout
    assert "ETA" in done.stdout


def test_metrics_show_training_health(finished):
    workdir, _ = finished
    lines = killed.logged(workdir, "sim")
    assert [line["step"] for line in lines] == list(range(2, 25, 2))
    keys = set().union(*lines)
    assert {
        "generator/loss",
        "generator/grad_norm",
        "generator/nonfinite_grads",
        "generator/nonfinite_examples",
        "fake_score/loss",
        "samples/mean_drift",
        "samples/contrast_ratio",
        "alarm/gap",
        "images_per_second",
    } <= keys
    assert any(key.startswith("distance/sigma") for key in keys)
    assert any(key.startswith("gap/sigma") for key in keys)


def test_a_finished_run_started_again_prints_its_report_and_trains_nothing(finished):
    workdir, done = finished
    before = (workdir / "metrics.jsonl").read_text()
    again = run(workdir, *TINY)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert again.stdout.split("its report:\n\n")[1] in done.stdout
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_finished_run_is_sampled_and_exported(finished, tmp_path):
    # All that they can do: tests/test_sample.py and test_export.py, -m whole_runs.
    commands = {
        "sample": "--count=4,,--out=four.npz",
        "export": "--format=safetensors,,--out=exported",
    }
    for name, flags in commands.items():
        line = f"--source={finished[0]},,{flags}"
        code, said = subprocesses.several(name, [line], tmp_path)[line]
        assert not code, said
    images = np.load(tmp_path / "four.npz")["arr_0"]
    assert images.shape == (4, 8, 8, 1) and images.dtype == np.uint8 and images.std() > 0
    config, _ = exported.read(tmp_path / "exported")
    assert config.generator.sigma_init == 1.25


@pytest.mark.whole_runs
def test_killed_twice_and_started_again_a_run_ends_bitwise_equal(finished, tmp_path):
    workdir = tmp_path / "run"
    for steps in (5, 14):  # neither is where a checkpoint was written
        killed.kill_at(workdir, steps, TINY)
    last = run(workdir, *TINY)
    assert last.returncode == 0, last.stderr
    assert "continuing from step" in last.stdout
    killed.assert_equal(workdir, finished[0], step=24)
    steps = [line["step"] for line in killed.logged(workdir, "sim")]
    assert steps == list(range(2, 25, 2))  # what the killed runs logged too far is forgotten


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.optim.lr=1", "config has no field optim.lr; did you mean: "),
        ("--config.batch=many", "batch"),
        ("--config.loss.distance=l3", "loss.distance = 'l3' is not known; known: "),
        ("--confg.batch=1", "Unknown command line flag"),
        ("batch=1", "unexpected arguments: batch=1"),
    ],
)
def test_a_wrong_flag_gets_one_message(flag, message, tmp_path):
    assert message in refused(run(tmp_path / "run", flag))
    assert not (tmp_path / "run").exists()


def test_a_missing_config_file_is_named(tmp_path):
    assert "there is no file nowhere.py" in refused(run(tmp_path / "run", config="nowhere.py"))


def test_a_workdir_of_another_config_is_refused_with_the_fields_that_differ(finished):
    workdir, _ = finished
    message = refused(run(workdir, *TINY, "--config.loss.scale=2.0", "--config.seed=5"))
    assert "loss.scale: 1.0 -> 2.0" in message
    assert "seed: 0 -> 5" in message
    assert "steps" not in message.split("differs")[1].split("Choose")[0]


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(run(tmp_path / "file" / "run", *TINY))
    assert "cannot be used" in message
    assert "--workdir" in message


def test_a_batch_not_divisible_by_the_device_count_is_refused(tmp_path):
    message = refused(run(tmp_path / "run", *TINY, "--config.batch=10", devices=8))
    assert "cannot be split over 8 devices" in message
