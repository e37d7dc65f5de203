"""What is compiled while a teacher is made is what the run calls; anything else is built anew."""

import dataclasses
import types

import pytest

from simjax.models import build, port
from simjax.runs import ahead, setup
from simjax.runtime import sharding
from tests.helpers.configs import small


@pytest.fixture
def built(monkeypatch) -> list:
    """What setup.distillation has made."""
    found, make = [], setup.distillation

    def distillation(*arguments):
        found.append(make(*arguments))
        return found[-1]

    monkeypatch.setattr(setup, "distillation", distillation)
    return found


def made(options, constants=None) -> types.SimpleNamespace:
    """As far as `ahead` reads it, the teacher of a config."""
    planned = port.plan(options)
    denoise, _ = build.blank(planned)
    mesh = sharding.make_mesh()
    return types.SimpleNamespace(
        config=planned, denoise=denoise, mesh=mesh, constants=constants or {}
    )


def test_the_run_calls_what_was_compiled_meanwhile(built):
    options = small()
    with ahead.distillation(options) as of:
        model = made(options)
    assert [of(model)] == built


def test_another_network_than_was_planned_is_built(built):
    options = small()
    other = made(dataclasses.replace(options, batch=2 * options.batch))
    with ahead.distillation(options) as of:
        pass
    assert of(other) is built[-1]
    assert of(made(options, constants={"frequencies": 1.0})) is built[-1]
    assert len(built) == 3


def test_a_network_that_only_its_file_tells_is_built_when_it_is_there(built):
    options = small()
    unknown = dataclasses.replace(options, network=None)
    unknown.teacher = dataclasses.replace(unknown.teacher, source="/none/net.pkl", steps=0)
    with ahead.distillation(unknown) as of:
        pass
    assert [of(made(options))] == built
