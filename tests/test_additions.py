"""User extensions as in each folder's README: registered, then used in a distillation.

Each README's example is both the extension and the config that uses it.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simjax
from simjax import config
from simjax.config import registries as config_registries
from simjax.config.options import WRITTEN
from simjax.errors import ConfigError
from simjax.models import build
from simjax.runs import check, setup
from simjax.runtime import sharding
from simjax.train.update import Constants
from tests.helpers import readme
from tests.helpers.command import ROOT, TINY, refused, run


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Restores the registries and config records after each test."""
    monkeypatch.setattr(config_registries, "_REGISTERED", set())
    found = config_registries.REGISTRIES.values()
    known = [dict(registry.known) for registry in found]
    fields = {r.record: dict(r.record.__annotations__) for r in found if r.record}
    yield
    for registry, before in zip(found, known, strict=True):
        registry.known.clear()
        registry.known.update(before)
    for record, before in fields.items():
        for name in record.__annotations__.keys() - before.keys():
            delattr(record, name)
            del record.__annotations__[name]
        for method in WRITTEN:
            delattr(record, method)
        dataclasses.dataclass(record)


def one_step(options: config.Config) -> tuple:
    """State before and after one step with a random network, and its metrics."""
    options = dataclasses.replace(options, batch=4, steps_per_call=1)
    options = config.complete(
        options, options.network, options.teacher.precondition, options.teacher.sigma_data
    )
    check.check(options, devices=1)
    denoise, params, _ = build.fresh(options)
    training = setup.distillation(options, denoise, sharding.make_mesh(devices=jax.devices()[:1]))
    state = training.init(params, params)
    before = jax.tree.map(jnp.copy, state)
    after, metrics = training.call(state, Constants(params), jax.random.key(0))
    return before, after, metrics


def moved(before, after) -> bool:
    leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any((a != b).any() for a, b in leaves)


def small(options: config.Config) -> config.Config:
    network = dataclasses.replace(options.network, channels=4, channel_mult=(1,))
    return dataclasses.replace(options, network=network)


def test_a_loss_with_an_option():
    options = small(readme.run("losses")["get_config"]())
    assert (options.loss.name, options.loss.clip) == ("clipped", 0.5)
    before, after, metrics = one_step(options)
    assert moved(before.generator, after.generator)
    options.loss.clip = 1e-12
    _, _, clipped = one_step(options)
    assert abs(float(clipped["generator/loss"])) < 1e-6 < abs(float(metrics["generator/loss"]))


def test_the_option_is_rejected_with_another_loss():
    readme.run("losses")
    options = config.Config(loss=config.Loss(name="sid", clip=0.5))
    expected = r"loss.clip = 0.5 with loss.name = 'sid'; applicable fields"
    with pytest.raises(ConfigError, match=expected):
        check.check(options, devices=1)


def test_a_family_with_an_existing_network():
    options = small(readme.run("diffusion")["get_config"]())
    resolved = config.resolved(options)
    assert (options.teacher.precondition, resolved.teacher.weight) == ("v", "score")
    before, after, _ = one_step(options)
    assert moved(before.fake_score, after.fake_score)
    # With the exact target F = (eps - sigma x0) / sqrt(1 + sigma^2), D returns x0.
    sigma, x0, eps = np.array([0.1, 1.0, 7.0]), 0.3, -1.2
    c_skip, c_out, _, _ = config_registries.FAMILIES["v"].precondition(0.5)(sigma)
    target = (eps - sigma * x0) / np.sqrt(1 + sigma**2)
    np.testing.assert_allclose(c_skip * (x0 + sigma * eps) + c_out * target, x0, rtol=1e-6)


def test_a_custom_network():
    before, after, _ = one_step(readme.run("networks")["get_config"]())
    assert moved(before.generator, after.generator)
    assert config.network_from(config.describe(readme.run("networks")["TwoLayers"]())).width == 32


def test_a_custom_data_set_trains_a_teacher_and_is_the_reference(tmp_path):
    file = readme.written("data", tmp_path)
    flags = [
        *TINY,
        "--config.evaluation.samples=100",
        "--config.steps=4",
        "--config.sample_every=4",
    ]
    done = run(tmp_path / "run", *flags, config=file)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["teacher"]["source"].startswith("trained on bars:400")
    assert report["protocol"]["pixels"]["reference"]["name"] == "bars:400"


def test_flags_set_options_of_a_loss_registered_in_the_config_file(tmp_path):
    file = readme.written("losses", tmp_path)
    done = run(tmp_path / "run", "--config.loss.clap=0.1", config=file)
    assert "config has no field loss.clap; did you mean: loss.clip" in refused(done)
    done = run(tmp_path / "run", "--config.loss.clip=0.1", "--config.loss.alpha=1", config=file)
    expected = "loss.alpha = 1.0 with loss.name = 'clipped'; applicable fields: loss.clip"
    assert expected in refused(done)


def test_custom_updates_train_the_fake_score_twice_per_step():
    def denoise(params, xt, sigma, cond):
        return params["scale"] * xt / (1 + sigma[:, None, None, None] ** 2)

    def counted(updates):
        fake_score, generator = updates
        return [fake_score, fake_score, generator]

    teacher = simjax.from_function(denoise, {"scale": jnp.float32(1)}, shape=(2, 2, 1))
    options = config.Config(batch=4)
    twice = simjax.Distillation(teacher, options, updates=counted)
    twice.train(2)
    assert int(twice.state.roles["fake_score"].opt[1].count) == 4
    assert int(twice.state.roles["generator"].opt[1].count) == 2


def test_distillation_takes_names_and_objects_in_place_of_config_fields():
    from simjax.models.generator import OneStep

    def denoise(params, xt, sigma, cond):
        return params["scale"] * xt / (1 + sigma[:, None, None, None] ** 2)

    teacher = simjax.from_function(denoise, {"scale": jnp.float32(1)}, shape=(2, 2, 1))
    made = simjax.Distillation(
        teacher, config.Config(batch=4), loss="sid", generator=OneStep(sigma_init=1.5)
    )
    made.train(1)
    found = made.generator.config
    assert (found.loss.name, found.generator.sigma_init) == ("sid", 1.5)
    expected = denoise({"scale": made.state.ema["scale"]}, 1.5, jnp.full(1, 1.5), None)
    image = simjax.draw(made.generator, 3)
    z = image / np.asarray(expected).ravel()[0]
    np.testing.assert_allclose(z.std(), 1, atol=0.5)  # images are expected * z
    assert simjax.Distillation(teacher, config.Config(batch=4), distance="huber")


def test_the_name_map_in_the_porting_readme_round_trips():
    names = readme.run("porting")
    assert names["ours"]["layers"]["kernel"].shape == (2, 16, 8)
    for name, tensor in names["foreign"].items():
        np.testing.assert_array_equal(names["again"][name], tensor)


def a_loss(x0, d_teacher, d_fake, weight, *, alpha: float = 3.0):
    """Has an option with the name of SiD's and another default."""


def no_default(x0, d_teacher, d_fake, weight, *, beta: float):
    """Has an option without a default."""


@pytest.mark.parametrize(
    ("kind", "name", "thing", "message"),
    [
        ("lost", "x", a_loss, "kind = 'lost' is not known; known: data, distance, family"),
        ("loss", "sim", a_loss, "simjax already has a loss of this name"),
        ("loss", "x", a_loss, r"alpha = 3.0 conflicts with the existing Loss.alpha = 1.2"),
        ("loss", "x", no_default, "option beta needs a default"),
    ],
)
def test_invalid_registrations_are_rejected(kind, name, thing, message):
    with pytest.raises(ConfigError, match=message):
        simjax.register(kind, name, thing)


def test_registering_again_may_change_an_options_default():
    def first(x0, d_teacher, d_fake, weight, *, delight: float = 1.0): ...
    def second(x0, d_teacher, d_fake, weight, *, delight: float = 2.0): ...

    simjax.register("loss", "mine", first)
    assert config.Loss().delight == 1.0
    simjax.register("loss", "mine", second)
    assert config.Loss().delight == 2.0 and config.Loss(delight=3.0).delight == 3.0
    assert "delight=2.0" in repr(config.Loss())
    assert config.Loss() != config.Loss(delight=3.0)


@pytest.mark.parametrize("folder", ["losses", "diffusion", "networks", "data", "porting"])
def test_a_folders_readme_is_short_and_its_file_names_exist(folder):
    text = (ROOT / "simjax" / folder / "README.md").read_text()
    assert 30 <= len(text.splitlines()) <= 60
    for name in re.findall(r"`(\w+\.py)`", text):
        assert list((ROOT / "simjax").rglob(name)), name
