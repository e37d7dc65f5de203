"""notebooks/compare.py: figure from stored curves, divergence, resuming a study."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import simjax
from simjax import config as c
from simjax.export import formats
from simjax.models import build
from simjax.runtime import checkpoint
from tests.helpers import configs, idx_files
from tests.helpers.runs import random_weights

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SIDE, CLASSES = 4, 3
METHODS = ("SIM, Pseudo-Huber", "SiD, alpha 0.5")
TOO_LARGE = 1e50  # factor of a learning rate: inf in float32


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare", NOTEBOOKS / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def study(compare, tmp_path, monkeypatch):
    """Two methods, a linear denoiser as teacher, 4 x 4 images; takes seconds."""
    source = idx_files.write_squares(tmp_path, count=60, side=SIDE, classes=CLASSES)

    def teacher(study, seed):
        config = c.Config(seed=seed, steps=study.steps, batch=4)
        config.data.source = source
        config.evaluation = c.Evaluation(
            features=study.features, samples=study.samples, teacher_steps=(2,), batch=8
        )

        def denoise(params, xt, sigma, cond):
            shade = (cond @ params["shade"])[:, None, None, None]
            return shade + params["gain"] * xt / (1 + sigma[:, None, None, None] ** 2)

        params = {"shade": [-0.5, 0.0, 0.5], "gain": 0.5}
        params = {name: np.asarray(value, np.float32) for name, value in params.items()}
        shape = (SIDE, SIDE, 1)
        return simjax.from_function(denoise, params, shape=shape, classes=CLASSES, config=config)

    monkeypatch.setattr(compare, "train_teacher", teacher)
    few = {"factors": (1, TOO_LARGE), "seeds": (0,), "steps": 4, "every": 2, "samples": 16}
    return compare.Study(METHODS, **few, features=("pixels", "classifier"), config="configs/x.py")


@pytest.mark.parametrize(("batch", "expected"), [(0, 64), (32, 32)])
def test_batch_of_the_study_overrides_the_config(compare, batch, expected):
    study = dataclasses.replace(compare.OTHERS, config="configs/fashion.py", batch=batch)
    assert compare.settings(study, seed=0).batch == expected


def test_an_exported_teacher_is_distilled_on_the_data_of_the_config(compare, tmp_path):
    options = configs.load("fashion")
    options = c.complete(options, options.network, "edm", options.teacher.sigma_data)
    weights = random_weights(options, seed=0)
    formats.FORMATS["safetensors"].write(formats.Generator(options, weights, None), tmp_path)
    study = dataclasses.replace(compare.OTHERS, config="configs/fashion.py")
    model = compare.teacher_of(str(tmp_path), study, seed=3)
    assert model.config.data == options.data
    assert (model.config.seed, model.config.steps) == (3, study.steps)
    assert model.config.teacher.sigma_data == options.teacher.sigma_data
    _, params = build.denoiser(options, weights)
    assert checkpoint.params_sha256(model.params) == checkpoint.params_sha256(params)


def test_the_stored_fashion_teacher_is_that_of_its_config(compare):
    model = compare.stored_teacher(str(NOTEBOOKS / "comparison_fashion" / "teacher"))
    options = configs.load("fashion")
    assert model.config.network == options.network
    assert model.config.teacher.sigma_data == options.teacher.sigma_data


def stored(folder: Path) -> dict:
    return json.loads((folder / "comparison.json").read_text())


def test_plot_of_the_stored_digits_curves(compare, tmp_path):
    shutil.copy(NOTEBOOKS / "comparison" / "comparison.json", tmp_path)
    compare.plot(tmp_path)
    committed = Image.open(NOTEBOOKS / "comparison" / "comparison.png").size
    assert Image.open(tmp_path / "comparison.png").size == committed


def test_a_diverged_curve_is_recorded_and_others_continue(compare, study, tmp_path):
    study = dataclasses.replace(study, methods=METHODS[1:], factors=(TOO_LARGE, 1))
    compare.run(tmp_path, study)
    diverged, good = stored(tmp_path)["curves"]
    assert (diverged["factor"], good["factor"]) == study.factors
    assert diverged["metrics"] == [good["metrics"][0], None, None]  # same step 0
    assert None not in good["metrics"] and len(good["metrics"]) == 3
    named = {"pixels/frechet", "classifier/frechet", "classifier/class_agreement"}
    assert all(named <= set(metrics) for metrics in good["metrics"])
    compare.plot(tmp_path)
    assert Image.open(tmp_path / "comparison.png").size == (2 * 506, 2 * 418)


def test_a_killed_study_resumes_with_the_missing_curves(compare, study, tmp_path, monkeypatch):
    computed = []

    def curve(model, measure, study, method, factor):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append((model.config.seed, method, factor))
        return [{"pixels/frechet": 1.0}] * 3

    monkeypatch.setattr(compare, "curve", curve)
    with pytest.raises(KeyboardInterrupt):
        compare.run(tmp_path, study)
    assert len(stored(tmp_path)["curves"]) == 3
    before, computed[:] = computed[:], []
    compare.run(tmp_path, study)
    assert [*before, *computed] == [(0, name, f) for f in study.factors for name in METHODS]
    computed.clear()
    compare.run(tmp_path, dataclasses.replace(study, seeds=(1,), factors=(1,)))  # a new seed
    assert computed == [(1, name, 1) for name in METHODS]
    assert stored(tmp_path)["size"]["seeds"] == [0, 1]
    assert set(stored(tmp_path)["teachers"]) == {"0", "1"}


@pytest.mark.parametrize("change", [{"samples": 17}, {"steps": 6}, {"teacher": "another's"}])
def test_a_study_of_another_size_or_teacher_is_refused(
    compare, study, tmp_path, monkeypatch, change
):
    monkeypatch.setattr(compare, "curve", lambda *_: [None] * 3)
    compare.run(tmp_path, dataclasses.replace(study, factors=(1,)))
    before = stored(tmp_path)
    with pytest.raises(SystemExit, match="another size or teacher: choose another --out"):
        compare.run(tmp_path, dataclasses.replace(study, **change))
    assert stored(tmp_path) == before
