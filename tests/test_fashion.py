"""configs/fashion.py, shortened, on small data of the same format: complete and killed runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import idx_files, killed
from tests.helpers.command import ROOT, TINY, run
from tests.helpers.configs import load

FASHION = ROOT / "configs" / "fashion.py"
STEPS = 24  # TINY's


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    """Overrides for a run of seconds on stand-in data."""
    folder = tmp_path_factory.mktemp("data")
    source = idx_files.write_squares(folder, count=300, side=28, classes=10)
    two_levels = "--config.network.channel_mult=(1,1)"  # attention at 14 x 14
    return [*TINY, two_levels, f"--config.data.source={source}"]


def shortened(workdir: Path, *flags: str, method: str = ""):
    done = run(workdir, *flags, config=f"{FASHION}:{method}" if method else FASHION)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory, flags) -> Path:
    workdir = tmp_path_factory.mktemp("finished") / "run"
    shortened(workdir, *flags)
    return workdir


def test_checkpoints_are_at_most_a_hundred_steps_apart():
    options = load("fashion")
    assert options.checkpoint_every <= 100
    assert options.steps % options.checkpoint_every == 0


@pytest.mark.whole_runs
def test_a_shortened_run_writes_its_report_and_sample_images(finished):
    report = json.loads((finished / "report.json").read_text())
    assert [row["evaluations"] for row in report["rows"]] == [1, 1, 5, None, None]
    assert {"pixels", "classifier"} == set(report["protocol"])
    for row in report["rows"]:
        assert np.isfinite(list(row["metrics"].values())).all()
    assert Image.open(finished / "samples" / "teacher.png").size == (640, 640)
    assert Image.open(finished / "samples" / "progress.png").size[0] == 640


@pytest.mark.whole_runs
def test_a_shortened_run_killed_twice_and_resumed_is_bitwise_equal(finished, flags, tmp_path):
    workdir = tmp_path / "run"
    for steps in (5, 14):  # neither has a checkpoint
        killed.kill_at(workdir, steps, flags, FASHION)
    assert "continuing from step" in shortened(workdir, *flags).stdout
    killed.assert_equal(workdir, finished, STEPS)
    steps = [line["step"] for line in killed.logged(workdir, "sim")]
    assert steps == list(range(2, STEPS + 1, 2))


@pytest.mark.whole_runs
@pytest.mark.parametrize("method", ["sida", "real_uid"])
def test_presets_with_real_images_run(flags, tmp_path, method):
    source = flags[-1].replace("data.source", "real.source")
    few = ["--config.steps=4", "--config.evaluation.features=('pixels',)"]
    few += ["--config.generator.start=0", "--config.adversarial.start=0"] * (method == "sida")
    shortened(tmp_path / "run", *flags, source, *few, method=method)
    assert (tmp_path / "run" / "report.json").exists()
