"""Whole runs with a config that notes what is read: a field without effect is refused when set."""

import dataclasses
import itertools

import pytest

from simjax import config
from simjax.runs import distill, fields
from tests.helpers import checkpoints
from tests.helpers.configs import TEACHER, load, shrunk, small
from tests.helpers.fields import LEAVES, changed, is_refused
from tests.helpers.recorded import recorded

# Read where no run of one process on one device comes, or by what only completes and resolves a
# config (simjax/config/checks.py); beside each the test that it has an effect.
ELSEWHERE = {
    "dropout": "tests/test_configs.py",
    "teacher.steps": "tests/test_configs.py",  # refused with a source
    "teacher.family": "tests/test_configs.py",  # refused without one, as generator's
    "generator.family": "tests/test_configs.py",
    "checkpoint_limit": "tests/whole_runs/test_preemption.py",
}


def trained() -> config.Config:
    """The digits' teacher and generator in two steps each, with every measurement."""
    options = changed(small(), steps=2, teacher__steps=2, batch=4, teacher__batch=4)
    options = changed(options, steps_per_call=1, log_every=1, sample_every=1, checkpoint_every=1)
    measured = {"samples": 20, "batch": 10, "teacher_steps": (2, 1), "every": 1, "limit": 30}
    measured |= {"online_samples": 10, "best": "pixels/frechet", "features": ("pixels",)}
    for name, value in measured.items():
        setattr(options.evaluation, name, value)
    options.grid = 2
    return options


def published(source: str) -> config.Config:
    options = dataclasses.replace(trained(), network=None, data=config.Data("digits"))
    return dataclasses.replace(options, teacher=config.Teacher(source=source))


def captioned() -> config.Config:
    options = load("captioned_digits")
    few = trained()
    few = dataclasses.replace(few, network=shrunk(options.network), text=options.text)
    few.network.resolution = 8
    return dataclasses.replace(few, data=options.data, evaluation=few.evaluation)


LONG = pytest.mark.whole_runs


@pytest.mark.parametrize(
    "name",
    ["trained", pytest.param("published", marks=LONG), pytest.param("captioned", marks=LONG)],
)
def test_a_run_reads_every_field_that_is_not_refused(name, tmp_path):
    source = tmp_path / "net.pkl"
    checkpoints.write(source, dataclasses.replace(TEACHER, augment_dim=0))
    options = {
        "trained": trained,
        "published": lambda: published(str(source)),
        "captioned": captioned,
    }[name]()
    watched, seen = recorded(options)
    distill.distill(watched, str(tmp_path / "run"))
    known = dataclasses.replace(options, network=options.network or TEACHER)
    idle = {
        path
        for path in LEAVES
        if path not in seen and path not in ELSEWHERE and not is_refused(known, path)
    }
    assert idle == set(), sorted(idle)


def test_what_is_not_read_by_a_run_of_one_choice_is_refused():
    assert {"loss.alpha", "loss.delta"} <= {path for path in LEAVES if is_refused(trained(), path)}
    assert list(itertools.islice(fields.choices(trained()), 1))
