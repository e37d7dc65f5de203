"""The probe on small trained transformers detects a DiT called as a SiT, and vice versa."""

import dataclasses

import jax
import numpy as np
import pytest

from simjax import config as c
from simjax.models import build
from simjax.models.model import Model, model_of
from simjax.networks.network import Description
from simjax.runs import probe as probing
from simjax.runs import setup
from simjax.runtime import sharding

pytestmark = pytest.mark.whole_runs

CLASSES, SHAPE, SIGMA_DATA = 3, (4, 4, 1), 0.6
NETWORK = c.DiT(
    resolution=4, image_channels=1, patch=2, width=32, depth=2, heads=2, label_dim=CLASSES
)
STEPS = {"ddpm_linear": 2500, "sit": 1200}  # eps prediction is harder at high noise levels
OTHER = {"ddpm_linear": "sit", "sit": "ddpm_linear"}


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of two patterns per class with Gaussian pixel noise, and their classes."""
    rng = np.random.default_rng(0)
    patterns = rng.choice([-0.6, 0.6], (CLASSES, 2, *SHAPE))
    classes, pattern = rng.integers(CLASSES, size=count), rng.integers(2, size=count)
    unit = patterns[classes, pattern] + 0.3 * rng.standard_normal((count, *SHAPE))
    return np.clip(127.5 * (unit + 1), 0, 255).astype(np.uint8), classes.astype(np.int32)


def described(family: str) -> c.Config:
    config = c.Config(scan_blocks=False, steps_per_call=50)
    config.evaluation.batch = 128
    config.teacher = c.Teacher(
        steps=STEPS[family],
        batch=256,
        weight="flow",  # weights errors of D at high noise levels too
        optim=c.Optim(lr=4e-3, beta1=0.9, beta2=0.99, warmup_steps=50, final_lr=0.01),
        ema=c.Ema(half_life_kimg=4.41, rampup_ratio=0.0),
    )
    return of_family(config, family)


def of_family(config: c.Config, family: str) -> c.Config:
    teacher = dataclasses.replace(config.teacher, precondition=family, sampler=c.Sampler())
    config = dataclasses.replace(config, teacher=teacher)
    return c.complete(config, *Description(NETWORK, family, SIGMA_DATA))


def trained(family: str) -> Model:
    config = described(family)
    denoise, start, fixed = build.fresh(config)
    mesh = build.mesh(config)
    training = setup.pretraining(config, denoise, mesh)
    constants = sharding.place_whole((*images(20_000), None), mesh)
    state, key = (
        training.init(sharding.place(start, mesh)),
        build.key_on(config, "pretraining", mesh),
    )
    for _ in range(config.teacher.steps // config.steps_per_call):
        state, _ = training.call(state, constants, key)
    return model_of(config, build.weights_of(jax.device_get(state.ema), fixed), {})


@pytest.mark.parametrize("family", OTHER)
def test_wrong_transformer_family_is_identified(family):
    teacher = trained(family)
    assert probing.probe(teacher, samples=128).findings == ()
    config = of_family(teacher.config, OTHER[family])
    wrong = model_of(config, teacher.weights(teacher.params), {})
    (found,) = probing.probe(wrong, samples=128).findings
    assert found.name == "family" and f"Calling it as {family!r} fixes this" in found.message
