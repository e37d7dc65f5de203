"""A CIFAR-10 checkpoint of published size: time and memory of porting, two distillation steps.

`pytest -m full_size` (also in .ci/run); minutes of compilation.
"""

import json
import resource

import pytest

from simjax import config
from tests.helpers import checkpoints
from tests.helpers.command import run, simjax
from tests.helpers.configs import DIRECTORY, PARAMETERS

pytestmark = pytest.mark.full_size

SECONDS, BYTES = 15, 1.5e9  # limits of porting on two cores
FEW = [
    "--config.steps=2",
    "--config.batch=2",
    "--config.log_every=1",
    "--config.grid=1",
    "--config.evaluation.batch=1",
    "--config.evaluation.teacher_steps=(1,)",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("full") / "edm-cifar10-32x32-cond-vp.pkl"
    checkpoints.write(path, config.SongUNet(label_dim=10))
    assert path.stat().st_size > 4 * PARAMETERS["cifar10"]
    return str(path)


def test_porting_takes_at_most_15_seconds_and_1_5_gigabytes(source, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = simjax("port", source, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert f"{PARAMETERS['cifar10']:,}" in done.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < SECONDS  # CPU time of both cores, including program start
    assert after.ru_maxrss * 1024 < BYTES  # maximum over child processes; this is the first


def test_distillation_takes_two_steps(source, tmp_path):
    flags = [f"--config.teacher.source={source}", *FEW]
    done = run(tmp_path / "run", *flags, config=DIRECTORY / "cifar10.py")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first["generator/grad_norm"] > 0
    assert first["fake_score/loss"] != second["fake_score/loss"]
    assert not any(first[key] for key in first if "nonfinite" in key)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["teacher"]["parameters"] == PARAMETERS["cifar10"]
