"""Families: default sampler, training distribution and weight; guided channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax import config
from simjax.diffusion import noise, precondition, sampler, schedule
from simjax.diffusion.families import FAMILIES
from simjax.models import build, port


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_of_a_family_are_registered(name):
    family = FAMILIES[name]
    assert family.ladder in schedule.LADDERS
    assert family.solver in sampler.SOLVERS
    assert family.weight in noise.WEIGHTS
    schedule.SIGMA_LAWS[family.law](jax.random.key(0), 2, **family.law_options)


@pytest.mark.parametrize("name", FAMILIES)
def test_weight_of_a_family_is_uniform_on_the_network_error(name):
    """lambda(sigma) c_out^2 = 1: the loss of D is the unweighted mean squared error of F."""
    sigma = jnp.array([0.05, 0.5, 3.0])
    coefficients = FAMILIES[name].precondition(0.5)(sigma)
    weight = noise.WEIGHTS[FAMILIES[name].weight](sigma)
    np.testing.assert_allclose(weight * coefficients.c_out**2, 1, rtol=1e-5)


def test_only_edm_depends_on_sigma_data():
    assert [name for name, family in FAMILIES.items() if family.reads_sigma_data] == ["edm"]
    wide = FAMILIES["edm"].precondition(1.3)(jnp.ones(1))
    np.testing.assert_allclose(wide.c_skip, 1.3**2 / (1 + 1.3**2), rtol=1e-6)
    assert FAMILIES["vp"].precondition(1.3) is precondition.vp


def trained(precondition: str, **fields) -> config.Config:
    teacher = config.Teacher(precondition=precondition, steps=10, **fields)
    options = config.Config(network=config.SongUNet(), teacher=teacher)
    return config.resolved(options)


def test_empty_fields_get_the_defaults_of_the_family():
    found = trained("vp").teacher
    assert (found.sigma.law, found.weight) == ("vp", "score")
    assert (found.sampler.ladder, found.sampler.solver) == ("vp", "heun")
    ve = trained("ve").teacher.sampler  # EDM table 1; differs from the range of EDM's own networks
    assert (ve.ladder, ve.sigma_min, ve.sigma_max) == ("ve", 0.02, 100.0)
    few = trained("ve", sampler=config.Sampler(sigma_max=50.0)).teacher.sampler
    assert (few.sigma_min, few.sigma_max) == (0.02, 50.0)
    given = trained("ve", sampler=config.Sampler(ladder="ve")).teacher.sampler
    assert (given.sigma_min, given.sigma_max) == (0.002, 80.0)
    flow = trained("flow").teacher
    assert (flow.sigma.law, flow.sigma.mean, flow.sigma.std) == ("lognormal", 0.0, 1.0)


def test_fields_set_in_a_config_are_kept():
    options = {"sigma": config.Sigma(mean=2.0), "weight": "uniform"}
    found = trained("vp", sampler=config.Sampler(ladder="karras"), **options).teacher
    assert (found.sigma.law, found.sigma.mean) == ("lognormal", 2.0)
    assert (found.weight, found.sampler.ladder) == ("uniform", "karras")
    assert trained("flow", sigma=config.Sigma(law="", mean=2.0)).teacher.sigma.mean == 2.0


def test_published_teachers_use_the_sampler_of_their_family():
    for source, expected in {
        "DiT-XL-2-256x256": ("ddpm_linear", "dpm_solver"),
        "edm-cifar10-32x32-cond-vp": ("karras", "heun"),
    }.items():
        options = config.Config(teacher=config.Teacher(source=source))
        found = port.plan(options).teacher.sampler
        assert (found.ladder, found.solver) == expected
        unknown = config.resolved(options).teacher.sampler  # until its file is read
        assert (unknown.ladder, unknown.solver) == ("", "")


def test_guided_channels_come_from_the_network_or_the_config():
    def denoise(params, xt, sigma, cond):
        return xt + cond.sum(1)[:, None, None, None]

    def found(network, channels):
        options = config.Config(network=network)
        options.teacher.guided_channels = channels
        xt, cond = jnp.zeros((1, 2, 2, network.image_channels)), jnp.array([[1.0, 0.0]])
        return build.guided(options, denoise, 3.0)(None, xt, jnp.ones(1), cond)[0, 0, 0].tolist()

    dit, unet = config.DiT(label_dim=2), config.SongUNet(label_dim=2)
    assert found(dit, None) == [3, 3, 3, 1]  # as the official code of DiT and SiT
    assert found(dit, 0) == [3, 3, 3, 3]
    assert found(unet, None) == [3, 3, 3]
    assert found(unet, 1) == [3, 1, 1]
