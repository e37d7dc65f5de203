"""Results do not depend on the number of devices, on accumulation, or on steps per call."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from simjax import build, config, sharding
from simjax.networks.denoiser import as_denoise

TOLERANCE = 1e-6
EIGHT = "--xla_force_host_platform_device_count=8"


def options(**changes) -> config.Config:
    network = config.SongUNet(
        resolution=8,
        image_channels=1,
        label_dim=10,
        augment_dim=9,
        channels=8,
        channel_mult=(1,),
        blocks=1,
        attention_resolutions=(),
        dropout=0.3,
    )
    # A large eps keeps gradients that are zero but for rounding from becoming whole steps.
    optim = config.Optim(lr=0.1, eps=1.0)
    return config.Config(
        batch=8,
        network=network,
        generator=config.Generator(optim=optim),
        fake_score=config.FakeScore(optim=optim, augment=0.5),
        **changes,
    )


def two_steps(settings: config.Config, devices: int) -> list[np.ndarray]:
    denoise, params = as_denoise(build.module(settings))
    mesh = sharding.make_mesh(jax.devices()[:devices])
    training = build.distillation(settings, denoise, mesh)
    state = training.init(params, params)
    for _ in range(2 // settings.steps_per_call):
        state, _ = training.call(state, params, jax.random.key(0))
    assert int(state.step) == 2
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.generator, state.fake_score))]


def assert_close(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=TOLERANCE)


@pytest.fixture(scope="module")
def reference() -> list[np.ndarray]:
    return two_steps(options(), devices=1)


def test_the_steps_move_the_parameters(reference):
    _, params = as_denoise(build.module(options()))
    start = [np.asarray(leaf) for leaf in jax.tree.leaves((params, params))]
    moved = [np.abs(x - y).max() for x, y in zip(start, reference, strict=True)]
    assert np.median(moved) > 10 * TOLERANCE


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"steps_per_call": 2}])
def test_accumulation_and_scanned_steps_change_nothing(changes, reference):
    assert_close(two_steps(options(**changes), devices=1), reference)


def test_eight_devices_equal_one():
    program = (
        "from tests.train import test_devices as t\n"
        "t.assert_close(t.two_steps(t.options(), 8), t.two_steps(t.options(), 1))\n"
        "print('equal')"
    )
    flags = f"{os.environ['XLA_FLAGS']} {EIGHT}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "equal\n", done.stderr
