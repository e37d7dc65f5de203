"""Whole runs that record which config fields are read; all others must be refused."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from simjax import config
from simjax.runs import distill, fields
from tests.helpers import checkpoints, subprocesses
from tests.helpers.configs import TEACHER, load, shrunk, small
from tests.helpers.fields import LEAVES, changed, is_refused
from tests.helpers.recorded import recorded

# Fields that are not read in a run of one process on one device, or only while the config is
# completed (simjax/config/checks.py), each with the test of its effect.
ELSEWHERE = {
    "dropout": "tests/test_configs.py",
    "teacher.steps": "tests/test_configs.py",  # refused with teacher.source
    "teacher.family": "tests/test_configs.py",  # refused without teacher.source
    "generator.family": "tests/test_configs.py",
    "checkpoint_limit": "tests/whole_runs/test_preemption.py",
}


def trained(directory: Path) -> config.Config:
    """Teacher and generator for digits, two steps each, with all metrics."""
    options = changed(small(), steps=2, teacher__steps=2, batch=4, teacher__batch=4)
    options = changed(options, steps_per_call=1, log_every=1, sample_every=1, checkpoint_every=1)
    measured = {"samples": 20, "batch": 10, "teacher_steps": (2, 1), "every": 1, "limit": 30}
    measured |= {"online_samples": 10, "best": "pixels/frechet", "features": ("pixels",)}
    for name, value in measured.items():
        setattr(options.evaluation, name, value)
    options.grid = 2
    return options


def published(directory: Path) -> config.Config:
    checkpoints.write(directory / "net.pkl", dataclasses.replace(TEACHER, augment_dim=0))
    options = dataclasses.replace(trained(directory), network=None, data=config.Data("digits"))
    teacher = config.Teacher(source=str(directory / "net.pkl"))
    return dataclasses.replace(options, teacher=teacher)


def captioned(directory: Path) -> config.Config:
    options = load("captioned_digits")
    few = trained(directory)
    few = dataclasses.replace(few, network=shrunk(options.network), text=options.text)
    few.network.resolution = 8
    return dataclasses.replace(few, data=options.data, evaluation=few.evaluation)


def with_real(directory: Path) -> config.Config:
    """SiDA, whose discriminator loss starts in the second step."""
    options = changed(trained(directory), real__source="digits", loss__name="sid")
    scales = {"fake_score_scale": 1.0, "generator_scale": 0.1, "start": 4}
    return dataclasses.replace(options, adversarial=config.Adversarial(**scales))


RUNS = {"trained": trained, "real": with_real, "published": published, "captioned": captioned}


def idle(name: str, directory: Path) -> set[str]:
    """Fields that a run neither reads nor refuses."""
    options = RUNS[name](directory)
    watched, seen = recorded(options)
    distill.distill(watched, str(directory / "run"))
    known = dataclasses.replace(options, network=options.network or TEACHER)
    left = (path for path in LEAVES if path not in seen and path not in ELSEWHERE)
    return {path for path in left if not is_refused(known, path)}


LONG = pytest.mark.whole_runs
PROGRAM = """
from pathlib import Path
from tests.runs import test_fields_read as here
print("idle:", sorted(here.idle({name!r}, Path({directory!r}))))
"""


@pytest.mark.parametrize(
    "name",
    [
        "trained",
        pytest.param("real", marks=LONG),
        pytest.param("published", marks=LONG),
        pytest.param("captioned", marks=LONG),
    ],
)
def test_a_run_reads_every_field_that_is_not_refused(name, tmp_path):
    """In a subprocess, so that functions traced by earlier tests are traced again."""
    output = subprocesses.on_devices(1, PROGRAM.format(name=name, directory=str(tmp_path)))
    assert output.splitlines()[-1] == "idle: []"


def test_unread_loss_options_are_refused():
    assert {"loss.alpha", "loss.delta"} <= {
        path for path in LEAVES if is_refused(trained(Path()), path)
    }
    assert list(itertools.islice(fields.choices(trained(Path())), 1))
