"""Runs from published checkpoints, as teacher or as initial generator."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from simjax import config
from simjax.errors import ConfigError
from simjax.runs import distill, teacher
from simjax.runtime.monitor import Monitor
from tests.helpers import checkpoints, official
from tests.helpers.command import refused
from tests.helpers.command import run as command
from tests.helpers.configs import DIRECTORY, NCSNPP, TEACHER, load, published


def write(path, network=TEACHER, seed=0) -> str:
    checkpoints.write(path, network, seed=seed)
    return str(path)


def tiny(source: str) -> config.Config:
    every = {"log_every": 2, "sample_every": 2, "checkpoint_every": 2}
    return published(source, steps=4, **every)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A finished run whose teacher file was deleted."""
    where = tmp_path_factory.mktemp("distilled")
    options = tiny(write(where / "net.pkl"))
    distill.distill(options, str(where / "run"))
    (where / "net.pkl").unlink()
    return options, where / "run"


def test_a_published_teacher_is_distilled_without_data(distilled):
    options, workdir = distilled
    report = json.loads((workdir / "report.json").read_text())
    assert report["teacher"]["source"] == options.teacher.source
    assert len(report["teacher"]["file_sha256"]) == 64
    assert [row["evaluations"] for row in report["rows"]] == [1, 1, 3]
    assert all(row["metrics"] == {} and row["samples"] == 4 for row in report["rows"])
    assert "only the speed was measured" in report["protocol"]
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [2, 4]
    assert all(np.isfinite(line["generator/loss"]) for line in steps)
    assert Image.open(workdir / "samples" / "teacher.png").size == (144, 144)


def test_the_source_is_read_only_once(distilled, capsys):
    options, workdir = distilled
    (workdir / "report.json").unlink()
    distill.distill(options, str(workdir))  # the teacher is loaded from the run directory
    assert "continuing from step 4" in capsys.readouterr().out
    assert (workdir / "report.json").exists()


def test_a_stored_teacher_equals_the_ported_one_with_fixed_frequencies(tmp_path):
    source = write(tmp_path / "net.pkl", NCSNPP)
    monitor = Monitor(tmp_path)
    options = tiny(source)
    first = teacher.obtain(options, tmp_path, monitor)
    (tmp_path / "net.pkl").unlink()
    again = teacher.obtain(options, tmp_path, monitor)
    assert first.config == again.config
    assert again.config.network == dataclasses.replace(NCSNPP, dropout=options.dropout)
    (name,) = again.constants
    assert name == ("network", "map_noise", "frequencies")
    np.testing.assert_array_equal(first.constants[name], again.constants[name])
    z, sigma = np.ones((1, 8, 8, 1), np.float32), np.full(1, 2, np.float32)
    args = (z, sigma, np.zeros((1, 10), np.float32))
    np.testing.assert_array_equal(
        jax.jit(first.denoise)(first.params, *args), jax.jit(again.denoise)(again.params, *args)
    )


def test_the_generator_starts_from_generator_source(tmp_path):
    options = tiny(write(tmp_path / "net.pkl"))
    options.generator.source = write(tmp_path / "sid.pkl", seed=1)
    monitor = Monitor(tmp_path)
    begun = teacher.obtain(options, tmp_path, monitor)
    start = official.flat(teacher.starting_generator(options, begun, tmp_path, monitor))
    own = official.flat(begun.params)
    assert start.keys() == own.keys()
    assert all(np.any(start[name] != own[name]) for name in own)
    options.generator.source = ""
    same = teacher.starting_generator(options, begun, tmp_path, monitor)
    assert same is begun.params


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dataclasses.replace(NCSNPP, channels=16), "channels: 8 -> 16"),
        (NCSNPP, "the fixed frequencies"),
    ],
)
def test_generator_source_with_another_network_is_refused(other, message, tmp_path):
    options = tiny(write(tmp_path / "net.pkl", NCSNPP))
    options.generator.source = write(tmp_path / "other.pkl", other, seed=1)
    monitor = Monitor(tmp_path)
    begun = teacher.obtain(options, tmp_path, monitor)
    with pytest.raises(ConfigError, match=message):
        teacher.starting_generator(options, begun, tmp_path, monitor)


def test_missing_data_are_refused_before_training(tmp_path):
    options = tiny(write(tmp_path / "net.pkl"))
    options.data.source = f"idx:{tmp_path / 'nowhere'}"
    with pytest.raises(ConfigError, match="nowhere"):
        distill.distill(options, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_mismatched_data_are_refused_before_training(tmp_path):
    options = tiny(write(tmp_path / "c.pkl", dataclasses.replace(TEACHER, label_dim=3)))
    options.data.source = "digits"
    with pytest.raises(ConfigError, match="10 classes; the network takes .* and 3"):
        distill.distill(options, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_data_set_too_large_for_the_device_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "LARGEST_DATA", 1000)
    options = load("digits")
    with pytest.raises(ConfigError, match="Use a published teacher"):
        distill.distill(options, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("cifar10", ["--config.teacher.source=edm-cifar10"], "did you mean edm-cifar10-32x32-"),
        ("cifar10", ["--config.teacher.source=/none/net.pkl"], "/none/net.pkl does not exist"),
        ("cifar10:did", [], "method (after the colon of --config) = 'did' is not known; known: "),
        ("cifar10", ["--config.network.channels=8"], "network"),
        ("cifar10", ["--config.teacher.steps=8"], "is pretrained and includes its network"),
    ],
)
def test_a_wrong_source_gives_one_error_message(name, flags, message, tmp_path):
    done = command(tmp_path / "run", *flags, config=run_config(name), cwd=tmp_path)
    assert message in refused(done)


def run_config(name: str) -> str:
    stem, colon, method = name.partition(":")
    return str(DIRECTORY / f"{stem}.py") + colon + method
