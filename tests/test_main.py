"""simjax.main end to end: a complete run, resuming, user errors, a finished run."""

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
    """A complete run in the default directory, relative to the current one."""
    cwd = tmp_path_factory.mktemp("finished")
    done = run(None, *TINY, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "digits", done


def test_a_run_directory_has_all_files_of_a_finished_run(finished):
    workdir, done = finished
    names = {path.name for path in workdir.iterdir()} - {
        "tensorboard"
    }  # only if TensorFlow is installed
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


def test_metrics_contain_training_health(finished):
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


def test_restarting_a_finished_run_prints_its_report_without_training(finished):
    workdir, done = finished
    before = (workdir / "metrics.jsonl").read_text()
    again = run(workdir, *TINY)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert again.stdout.split("its report:\n\n")[1] in done.stdout
    assert (workdir / "metrics.jsonl").read_text() == before


def test_sample_and_export_read_a_finished_run(finished, tmp_path):
    # Their options: tests/commands/test_sample.py and test_export.py, -m whole_runs.
    commands = {
        "sample": "--count=4,,--out=four.npz",
        "export": "--format=safetensors,,--out=exported",
    }
    for name, flags in commands.items():
        line = f"--source={finished[0]},,{flags}"
        code, output = subprocesses.several(name, [line], tmp_path)[line]
        assert not code, output
    images = np.load(tmp_path / "four.npz")["arr_0"]
    assert images.shape == (4, 8, 8, 1) and images.dtype == np.uint8 and images.std() > 0
    config, _ = exported.read(tmp_path / "exported")
    assert config.generator.sigma_init == 1.25


@pytest.mark.whole_runs
def test_a_run_killed_twice_and_resumed_is_bitwise_equal(finished, tmp_path):
    workdir = tmp_path / "run"
    for steps in (5, 14):  # neither has a checkpoint
        killed.kill_at(workdir, steps, TINY)
    last = run(workdir, *TINY)
    assert last.returncode == 0, last.stderr
    assert "continuing from step" in last.stdout
    killed.assert_equal(workdir, finished[0], step=24)
    steps = [line["step"] for line in killed.logged(workdir, "sim")]
    assert steps == list(range(2, 25, 2))  # lines logged after the last checkpoint are dropped


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
def test_a_wrong_flag_is_rejected_with_one_message(flag, message, tmp_path):
    assert message in refused(run(tmp_path / "run", flag))
    assert not (tmp_path / "run").exists()


def test_a_missing_config_file_is_reported(tmp_path):
    assert "there is no file nowhere.py" in refused(run(tmp_path / "run", config="nowhere.py"))


def test_a_workdir_of_another_config_is_rejected_listing_the_differences(finished):
    workdir, _ = finished
    message = refused(run(workdir, *TINY, "--config.loss.scale=2.0", "--config.seed=5"))
    assert "loss.scale: 1.0 -> 2.0" in message
    assert "seed: 0 -> 5" in message
    assert "steps" not in message.split("differences (stored -> given):")[1].split("Choose")[0]


def test_an_unwritable_workdir_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(run(tmp_path / "file" / "run", *TINY))
    assert "cannot be used" in message
    assert "--workdir" in message


def test_a_batch_not_divisible_by_the_device_count_is_rejected(tmp_path):
    message = refused(run(tmp_path / "run", *TINY, "--config.batch=10", devices=8))
    assert "cannot be split over 8 devices" in message
