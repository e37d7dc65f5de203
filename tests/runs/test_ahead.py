"""The step compiled while the teacher is made is used if it matches, otherwise rebuilt."""

import dataclasses
import types

import pytest

from simjax.models import build, port
from simjax.runs import ahead, setup
from simjax.runtime import sharding
from tests.helpers.configs import small


@pytest.fixture
def built(monkeypatch) -> list:
    """Records the return values of setup.distillation."""
    found, make = [], setup.distillation

    def distillation(*arguments):
        found.append(make(*arguments))
        return found[-1]

    monkeypatch.setattr(setup, "distillation", distillation)
    return found


def made(options, constants=None) -> types.SimpleNamespace:
    """A stub of the config's teacher with the attributes that `ahead` reads."""
    planned = port.plan(options)
    denoise, _ = build.blank(planned)
    mesh = sharding.make_mesh()
    return types.SimpleNamespace(
        config=planned, denoise=denoise, mesh=mesh, constants=constants or {}
    )


def test_the_precompiled_step_is_used(built):
    options = small()
    with ahead.distillation(options) as of:
        model = made(options)
    assert [of(model)] == built


def test_a_different_teacher_rebuilds_the_step(built):
    options = small()
    other = made(dataclasses.replace(options, batch=2 * options.batch))
    with ahead.distillation(options) as of:
        pass
    assert of(other) is built[-1]
    assert of(made(options, constants={"frequencies": 1.0})) is built[-1]
    assert len(built) == 3


def test_a_network_unknown_before_porting_is_built_after_it(built):
    options = small()
    unknown = dataclasses.replace(options, network=None)
    unknown.teacher = dataclasses.replace(unknown.teacher, source="/none/net.pkl", steps=0)
    with ahead.distillation(unknown) as of:
        pass
    assert [of(made(options))] == built
