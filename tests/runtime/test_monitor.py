"""Metrics in TensorBoard (clu's writer), on disk and in a bucket, and without TensorBoard."""

import builtins
import json
import sys
import types
from pathlib import Path

import pytest

from simjax.runtime import monitor, storage


class FakeWriter:
    """clu's SummaryWriter without TensorFlow: writes one line per call, unbuffered."""

    def __init__(self, logdir: str):
        self.file = Path(logdir) / "events"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("")

    def write_scalars(self, step, scalars):
        with self.file.open("a") as file:
            file.write(json.dumps([step, scalars]) + "\n")

    def flush(self):
        pass


@pytest.fixture
def clu(monkeypatch):
    module = types.SimpleNamespace(SummaryWriter=FakeWriter)
    monkeypatch.setitem(sys.modules, "clu.metric_writers", module)


def begun(directory) -> monitor.Monitor:
    made = monitor.Monitor(directory)
    made.begin("sim", step=0, steps=10, batch=2)
    made.advance(0)
    return made


def events(directory) -> list:
    return [json.loads(line) for line in (directory / "tensorboard" / "events").open()]


def test_tensorboard_scalars_have_stage_and_step(clu, tmp_path):
    made = begun(tmp_path)
    made.scalars(2, {"generator/loss": 0.5})
    made.measured(4, {"pixels/frechet": 1.5})
    (first, second), lines = events(tmp_path), (tmp_path / "metrics.jsonl").read_text()
    assert first[0] == 2 and first[1].keys() == {"sim/generator/loss", "sim/images_per_second"}
    assert second == [4, {"sim/evaluation/pixels/frechet": 1.5}]
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [2, 4]


def test_files_in_a_bucket_are_written_only_on_flush(clu, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "in_bucket", lambda path: True)
    made = begun(tmp_path)
    made.scalars(2, {"generator/loss": 0.5})
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "tensorboard").exists()
    made.flush()
    assert len(events(tmp_path)) == 1
    made.scalars(3, {"generator/loss": 0.25})
    assert len(events(tmp_path)) == 1
    made.end()
    assert [step for step, _ in events(tmp_path)] == [2, 3]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_tensorflow_one_line_names_the_missing_package(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "clu.metric_writers":
            raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    made = begun(tmp_path)
    made.scalars(2, {"generator/loss": 0.5})
    made.end()
    said = capsys.readouterr().out
    assert said.count("TensorBoard") == 1 and 'pip install "simjax[tensorboard]"' in said
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "tensorboard").exists()
