"""A guided distillation step of DiT and PixArt against one written out from the formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax import config
from simjax.models import build
from simjax.perf import programs
from simjax.runs import setup
from simjax.runtime import sharding
from simjax.train.update import Constants, draws
from simjax.typing import Caption

COMMON = {"resolution": 8, "width": 48, "depth": 2, "heads": 3}
NETWORKS = {
    "dit": config.DiT(**COMMON, label_dim=5),
    "pixart": config.PixArt(**COMMON, caption_channels=24, caption_length=6),
}
GUIDANCE, FAKE_GUIDANCE = 3.0, 1.5
SIGMA_INIT = 2.5
HUBER = 1e-3


def options_of(name, **changes):
    adam = config.Optim(lr=0.1, eps=1.0)  # a large eps: updates are nearly gradients
    law = {"mean": -1.0, "std": 1.0, "low": 0.01, "high": 156.6155}
    made = config.Config(
        batch=4,
        network=NETWORKS[name],
        teacher=config.Teacher(precondition="ddpm_linear", guidance=GUIDANCE),
        generator=config.Generator(sigma=config.Sigma(**law), optim=adam),
        fake_score=config.FakeScore(
            sigma=config.Sigma(**law),
            weight="uniform",
            optim=dataclasses.replace(adam),
            guidance=FAKE_GUIDANCE,
            drop_condition=0.5,
        ),
    )
    return dataclasses.replace(made, **changes)


def random_network(options):
    """The denoiser and three different parameter trees without zeros."""
    denoise, like = build.blank(options)
    teacher = programs.random_params(like)
    generator = jax.tree.map(np.flip, teacher)
    fake_score = jax.tree.map(lambda a, b: 0.8 * a + 0.6 * b, teacher, generator)
    return denoise, teacher, generator, fake_score


def step_of(options):
    """State before and after a step, its metrics and draws, and the networks."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    denoise, teacher, generator, fake_score = random_network(options)
    training = setup.distillation(options, denoise, mesh)
    captions = build.any_captions(options, (1, 2, options.batch))
    constants = Constants(teacher, captions)
    state = training.init(teacher, generator).with_role("fake_score", params=fake_score)
    before = jax.tree.map(jnp.copy, state)
    key = jax.random.key(5)
    after, metrics = training.call(state, constants, key)
    fns = setup.step_fns(options, denoise, mesh)
    updates = setup.updates_of(options, fns, mesh)
    drawn = draws(before, constants, jax.random.fold_in(key, 0), updates=updates)
    return before, after, metrics, drawn, denoise, teacher


def none_like(cond):
    if isinstance(cond, Caption):
        return dataclasses.replace(cond, dropped=np.ones(len(cond.dropped), bool))
    return np.zeros(cond.shape, np.float32)


def drops(cond):
    """Whether any example's condition is dropped."""
    none = cond.dropped if isinstance(cond, Caption) else ~np.any(cond, axis=1)
    return bool(np.any(none))


def adam_first_step(grads):
    """lr g / (|g| + eps): with beta1 = 0 the first step's second moment is g^2."""
    return jax.tree.map(lambda g: -0.1 * g / (jnp.abs(g) + 1.0), grads)


def distance_of(ours, expected):
    """Relative L2 distance of two trees."""
    difference = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, ours, expected)
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(a)) for a in jax.tree.leaves(tree)))  # noqa: E731
    return norm(difference) / norm(jax.tree.map(lambda a: np.asarray(a, np.float64), expected))


@pytest.mark.whole_runs
@pytest.mark.parametrize("name", ["pixart", "dit"])
def test_a_step_equals_one_written_out_from_losses_and_denoiser(name):
    before, after, metrics, (fake, gen), denoise, teacher = step_of(options_of(name))

    channels = {"pixart": 4, "dit": 3}[name]  # number of leading channels with guidance
    assert [drops(draws.cond) for draws in (fake, gen)] == [True, False]

    def generate(params, draws):
        return denoise(params, SIGMA_INIT * draws.z, jnp.full(4, SIGMA_INIT), draws.cond)

    def fake_loss(params):
        x0 = generate(before.generator, fake)
        xt = x0 + fake.sigma[:, None, None, None] * fake.eps
        error = denoise(params, xt, fake.sigma, fake.cond) - x0
        return jnp.sum(error**2) / 4

    loss, grads = jax.jit(jax.value_and_grad(fake_loss))(before.fake_score)
    np.testing.assert_allclose(metrics["fake_score/loss"], loss, rtol=1e-5)
    step = jax.tree.map(jnp.subtract, after.fake_score, before.fake_score)
    assert distance_of(step, adam_first_step(grads)) < 1e-5

    def generator_loss(params):
        x0 = generate(params, gen)
        xt = x0 + gen.sigma[:, None, None, None] * gen.eps

        def guided(params, scale):
            with_cond = denoise(params, xt, gen.sigma, gen.cond)
            without = denoise(params, xt, gen.sigma, none_like(gen.cond))
            both = without + scale * (with_cond - without)
            return both.at[..., channels:].set(with_cond[..., channels:])

        d_teacher = guided(teacher, GUIDANCE)
        d_fake = guided(after.fake_score, FAKE_GUIDANCE)
        y = d_fake - d_teacher
        root = jnp.sqrt(jnp.sum(y**2, axis=(1, 2, 3), keepdims=True) + HUBER**2)
        return -jnp.sum(y / root * (d_fake - x0)) / 4

    loss, grads = jax.jit(jax.value_and_grad(generator_loss))(before.generator)
    np.testing.assert_allclose(metrics["generator/loss"], loss, rtol=1e-5)
    step = jax.tree.map(jnp.subtract, after.generator, before.generator)
    assert distance_of(step, adam_first_step(grads)) < 1e-5


@pytest.mark.whole_runs
@pytest.mark.parametrize(
    ("change", "bound"),
    [
        ({"remat": "blocks", "accumulate": 2}, 1e-5),
        ({"remat": "dots", "scan_blocks": False}, 1e-5),
        ({"compute_dtype": "bfloat16"}, 0.05),
    ],
    ids=str,
)
def test_remat_scan_and_precision_change_a_step_little(change, bound, exact_step):
    before, after, metrics, *_ = step_of(options_of("pixart", **change))
    expected_after, expected_metrics = exact_step
    for network in ("generator", "fake_score"):
        start = getattr(before, network)
        ours = jax.tree.map(jnp.subtract, getattr(after, network), start)
        expected = jax.tree.map(jnp.subtract, getattr(expected_after, network), start)
        assert distance_of(ours, expected) < bound
        loss = f"{network}/loss"
        np.testing.assert_allclose(metrics[loss], expected_metrics[loss], rtol=bound)


@pytest.fixture(scope="module")
def exact_step():
    return step_of(options_of("pixart"))[1:3]
