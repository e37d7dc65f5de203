"""Run directories: how they are recognised, and the best generator stored in them."""

import shutil

import jax
import numpy as np
import pytest

import simjax
from simjax import config
from simjax.models import stored
from tests.helpers.configs import TEACHER, load
from tests.helpers.runs import keep_best, make_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run directory, its newest generator and its best one."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    model, generator = make_run(folder, load("digits"), TEACHER)
    keep_best(folder, model, step=2)  # an earlier best one, not yet removed
    return folder, generator, keep_best(folder, model, step=4)


def test_load_best_generator(made):
    folder, generator, best = made
    for name, expected in ((None, generator), ("generator", generator), ("best", best)):
        model = simjax.load(folder, network=name)
        jax.tree.map(np.testing.assert_array_equal, dict(model.params), dict(expected))
    assert simjax.draw(model, 2, labels=[3]).shape == (2, 8, 8, 1)
    _, found = stored.generator_of_run(model, folder, "best")
    assert found == {"step": 4, "metric": "pixels/recall", "value": 0.5}
    assert stored.describe_generator(found) == "EMA at step 4, the best by pixels/recall (0.5)"


def test_missing_best_generator_names_the_config_fields(made, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(made[0], folder)
    shutil.rmtree(folder / "best")
    expected = r"has no best generator.*--config\.evaluation\.best=.*\.every="
    with pytest.raises(simjax.ConfigError, match=expected):
        simjax.load(folder, network="best")
    (folder / "best" / "4.orbax-checkpoint-tmp").mkdir(parents=True)  # left by a killed save
    with pytest.raises(simjax.ConfigError, match=expected):
        simjax.load(folder, network="best")


def test_load_of_a_run_rejects_config_and_encoder(made):
    with pytest.raises(simjax.ConfigError, match="is a run with its own config; leave config out"):
        simjax.load(made[0], config=simjax.Config())
    with pytest.raises(simjax.ConfigError, match="SongUNet reads no captions; leave the encoder"):
        simjax.load(made[0], encoder="t5")


def test_find_run_returns_none_for_other_sources(made, tmp_path):
    directory, options = stored.find_run(str(made[0]))
    assert directory == made[0] and isinstance(options, config.Config)
    (tmp_path / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    for other in (str(tmp_path), "https://example.org/sid.pkl", "edm-cifar10-32x32-cond-vp"):
        assert stored.find_run(other) is None
