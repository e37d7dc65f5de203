"""Samples of a seed are independent of the caller's JAX settings; missing system features."""

import contextlib
import importlib
import os
import pwd
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simjax
from simjax import config
from simjax.commands import flags as command_line
from simjax.errors import ConfigError
from simjax.models import build
from simjax.perf import programs
from simjax.runtime import settings, sharding, storage

OTHERS = {
    "enable_x64": True,
    "default_prng_impl": "rbg",
    "threefry_partitionable": False,
    "numpy_dtype_promotion": "strict",
    "numpy_rank_promotion": "raise",
}


@contextlib.contextmanager
def a_callers_settings():
    with contextlib.ExitStack() as stack:
        for name, value in OTHERS.items():
            stack.enter_context(getattr(jax, name)(value))
        stack.callback(jax.config.update, settings.SEED_OFFSET, 0)
        jax.config.update(settings.SEED_OFFSET, 7)
        yield


def denoise(params, xt, sigma, cond):
    """E[x0 | xt] of N(0, a^2), shifted by a class-dependent constant."""
    variance = params["a"] ** 2
    shrunk = variance / (variance + sigma[:, None, None, None] ** 2) * xt
    return shrunk + 0.1 * (cond @ params["b"])[:, None, None, None]


def samples_and_a_step() -> dict[str, np.ndarray]:
    """Draws by a user's JAX function: labels, noise, churn and a training step."""
    given = simjax.Config(batch=4, steps=10)
    given.teacher.sampler.churn = 20
    params = {"a": jnp.array(0.3), "b": jnp.linspace(0, 1, 3)}  # float64 with x64
    model = simjax.from_function(denoise, params, shape=(2, 2, 1), classes=3, config=given)
    distillation = simjax.Distillation(model)
    distillation.train(1)
    return {
        "one call": simjax.draw(model, 4, seed=3),
        "sampler": simjax.draw(model, 4, seed=3, steps=2),
        "trained": simjax.draw(distillation.generator, 4, seed=3),
        "loss": np.asarray(distillation.loss_and_grad(seed=5)[0]),
    }


def samples_of_a_network() -> dict[str, np.ndarray]:
    network = config.SongUNet(resolution=8, image_channels=1, label_dim=3, channels=4)
    network.channel_mult, network.attention_resolutions = (1,), ()
    made = config.complete(simjax.Config(), network, "edm", 0.5)
    denoise, like = build.blank(made)
    model = simjax.Model(made, sharding.make_mesh(), denoise, programs.random_params(like), {}, {})
    return {"one call": simjax.draw(model, 4, seed=3)}


@pytest.mark.parametrize("made", [samples_and_a_step, samples_of_a_network])
def test_samples_of_a_seed_do_not_depend_on_the_callers_jax_settings(made):
    expected = made()
    with a_callers_settings():
        found = made()
        assert jnp.ones(1).dtype == np.float64  # the caller's settings are back
        assert jax.random.key(0).dtype != jax.random.key(0, impl="threefry2x32").dtype
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_late_thread_keeps_the_callers_seed_offset():
    with settings.held():  # in a thread that outlives the main thread's held()
        jax.config.update(settings.SEED_OFFSET, 7)  # the caller's value, restored meanwhile
    try:
        assert getattr(jax.config, settings.SEED_OFFSET) == 7
    finally:
        jax.config.update(settings.SEED_OFFSET, 0)


def test_commands_fix_the_settings_for_the_whole_process(monkeypatch):
    for name in (*settings.HELD, settings.SEED_OFFSET):
        monkeypatch.setenv(name.upper(), "1")
    seen = {}

    def run(main, flags_parser):
        seen.update({name: getattr(jax.config, name) for name in settings.HELD})

    monkeypatch.setattr(command_line.app, "run", run)
    jax.config.update("jax_enable_x64", True)
    try:
        command_line.start(lambda argv: None)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert seen == settings.HELD
    assert os.environ["JAX_ENABLE_X64"] == "False"  # inherited by child processes


def test_a_system_without_file_locks_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ImportError, match="runs on Linux and macOS; on Windows, use it in WSL 2"):
        importlib.reload(simjax)


def test_without_a_home_directory_the_error_names_simjax_cache(monkeypatch):
    def nobody(number):
        raise KeyError(number)

    monkeypatch.delenv("SIMJAX_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(ConfigError, match="SIMJAX_CACHE=DIR"):
        storage.cache_directory()


@pytest.mark.parametrize("missing", storage.GCS)
def test_a_bucket_without_its_packages_names_the_extra(missing, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else found(name)
    )
    with pytest.raises(ConfigError, match=r'pip install "simjax\[gcs\]"'):
        storage.absolute("gs://bucket/run")
