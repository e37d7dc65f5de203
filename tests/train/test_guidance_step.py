"""Guidance scale of each network in a step, and condition dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simjax
from simjax import config
from simjax.losses import distances, fgm, sim
from simjax.runs import check, setup
from simjax.runtime import sharding

CLASSES, BATCH = 3, 4


def denoise(params, xt, sigma, cond, **options):
    """Shifts xt by a class-dependent multiple of the parameter, 2 without a class."""
    return 0.5 * xt + params * (2 + cond @ jnp.arange(1.0, CLASSES + 1))[:, None, None, None]


def options(**fields) -> config.Config:
    made = config.Config(batch=BATCH, network=config.SongUNet(resolution=2, label_dim=CLASSES))
    for path, value in fields.items():
        *parents, name = path.split("__")
        setattr(config.get_field(made, ".".join(parents)) if parents else made, name, value)
    return config.resolved(made)


def scales(made: config.Config) -> list[float]:
    """Scales of the fake score in its own and the generator's update, of teacher and generator."""
    fns = setup.step_fns(made, denoise, sharding.make_mesh(devices=jax.devices()[:1]))
    xt, sigma, cond = (
        jnp.zeros((BATCH, 2, 2, 3)),
        jnp.ones(BATCH),
        jnp.eye(CLASSES)[jnp.array([0, 1, 2, 0])],
    )
    found = []
    for function in (fns.denoise, fns.denoise_fake, fns.denoise_teacher):
        moved = function(1.0, xt, sigma, cond)[:, 0, 0, 0] - 2
        found.append(float(moved[1] / 2))  # the second class moves by 2
        np.testing.assert_allclose(moved, found[-1] * np.array([1, 2, 3, 1]), rtol=1e-6)
    z = jnp.zeros((BATCH, 2, 2, 3))
    return [*found, float(fns.generate(1.0, z, cond)[1, 0, 0, 0] - 2) / 2]


def test_each_network_has_its_own_scale_and_the_generator_none():
    of = {"fake_score__learnt_guidance": 2.0, "fake_score__guidance": 3.0}
    assert scales(options(**of, teacher__guidance=4.0)) == pytest.approx([2, 3, 4, 1])
    assert scales(options()) == pytest.approx([1, 1, 1, 1])


@pytest.mark.parametrize(
    ("name", "teacher", "expected"),
    [
        ("lsg", 1.5, [1.5, 1.5, 1.5, 1]),
        ("zero_cfg", 1.0, [0, 0, 1, 1]),
        ("anti_cfg", 1.0, [1, -1, 1, 1]),
    ],
)
def test_guidance_presets_set_the_scales(name, teacher, expected):
    assert scales(options(guidance=name, teacher__guidance=teacher)) == pytest.approx(expected)


def dropped(made: config.Config) -> list[float]:
    """Fractions of examples without a class in the draws of fake score and generator."""
    made = dataclasses.replace(made, batch=2000)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    updates = setup.updates_of(made, setup.step_fns(made, denoise, mesh), mesh)
    draws = [update.draw(jax.random.key(0), None) for update in updates]
    return [float(1 - drawn.cond.sum(1).mean()) for drawn in draws]


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({}, 0.0),
        ({"teacher__guidance": 4.0}, 0.0),
        ({"fake_score__learnt_guidance": 2.0}, 0.1),
        ({"fake_score__guidance": 0.0}, 0.1),
        ({"guidance": "lsg", "teacher__guidance": 2.0}, 0.1),
        ({"guidance": "lsg", "teacher__guidance": 2.0, "fake_score__drop_condition": 0.0}, 0.0),
    ],
)
def test_classes_are_dropped_only_in_updates_of_a_guided_fake_score(fields, share):
    of_fake_score, of_generator = dropped(options(**fields))
    assert of_fake_score == pytest.approx(share, abs=0.02) and (of_fake_score > 0) == (share > 0)
    assert of_generator == 0


def test_with_equal_scales_the_initial_gap_is_exactly_zero():
    teacher = simjax.from_function(denoise, jnp.float32(1), shape=(2, 2, 3), classes=CLASSES)

    def first_loss(**fields):
        loss, _ = simjax.Distillation(teacher, options(**fields, network=None)).loss_and_grad()
        return float(loss)

    assert first_loss(guidance="lsg", teacher__guidance=2.5) == 0
    assert abs(first_loss(teacher__guidance=2.5)) > 1e-3


def test_a_field_without_effect_under_a_preset_is_refused():
    lsg = options(guidance="lsg", fake_score__guidance=2.0)
    with pytest.raises(config.registries.ConfigError, match="fake_score.guidance = 2.0 with guida"):
        check.check(dataclasses.replace(lsg, teacher=config.Teacher(source="x.pkl")), devices=1)
    anti = options(guidance="anti_cfg", teacher__guidance=2.0, teacher__source="x.pkl")
    with pytest.raises(config.registries.ConfigError, match="teacher.guidance = 2.0 with guidance"):
        check.check(dataclasses.replace(anti, network=None), devices=1)


def test_fgm_equals_sim_in_velocity_units():
    rng = np.random.default_rng(0)
    x0, eps, xt_teacher, xt_fake = (rng.normal(size=(2, 2, 2, 1)) for _ in range(4))
    sigma = np.array([0.3, 5.0])
    wide = sigma[:, None, None, None]
    z = (x0 + wide * eps) / (1 + wide)
    v_teacher, v_fake = ((z - d) * (1 + wide) / wide for d in (xt_teacher, xt_fake))
    expected = 2 * np.sum((v_teacher - v_fake) * (v_fake - (eps - x0)), axis=(1, 2, 3))
    weight = ((1 + sigma) / sigma) ** 2
    found = fgm.generator_loss(x0, xt_teacher, xt_fake, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    same = sim.generator_loss(x0, xt_teacher, xt_fake, weight, distance=distances.l2_squared)
    np.testing.assert_array_equal(found, same)
    plain = fgm.generator_loss(x0, xt_teacher, xt_fake, np.ones(2))
    assert not np.allclose(plain, expected, rtol=0.1)  # without the weight
