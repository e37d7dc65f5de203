"""Real images in distillation: checked at start, sampled reproducibly in the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simjax
from simjax import config, data
from simjax.data.dataset import in_memory
from simjax.errors import ConfigError
from simjax.runs import check, distill, real, setup
from simjax.runtime import sharding
from simjax.runtime.stream import order
from simjax.train import update
from tests.helpers.configs import load, small
from tests.helpers.fields import changed


def sida(**fields) -> config.Config:
    options = load("digits", "sida")
    return changed(options, steps_per_call=1, **fields)


def source_of(images, labels, classes: int, monkeypatch) -> str:
    made = in_memory("made", images, labels, classes)
    monkeypatch.setitem(data.SOURCES, "made", lambda where, split: made)
    return "made"


IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
LABELS = np.arange(4)
WRONG = {
    "size": (np.zeros((4, 16, 16, 1), np.uint8), LABELS, 10, "images of (16, 16, 1)"),
    "channels": (np.zeros((4, 8, 8, 3), np.uint8), LABELS, 10, "images of (8, 8, 3)"),
    "classes": (IMAGES, LABELS, 7, "and 7 classes; the network takes (8, 8, 1) and 10"),
    "range": (np.full((4, 8, 8, 1), 255, np.float32), LABELS, 10, "from 255 to 255; expected"),
    "NaN": (np.full((4, 8, 8, 1), np.nan, np.float32), LABELS, 10, "float32 in [-1, 1]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mismatched_images_are_refused_before_the_run_starts(name, monkeypatch, tmp_path):
    images, labels, classes, message = WRONG[name]
    options = sida(real__source=source_of(images, labels, classes, monkeypatch))
    with pytest.raises(ConfigError) as error:
        distill.distill(options, str(tmp_path / "run"))
    assert message in str(error.value) and "real.source = 'made'" in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_missing_source_is_refused_with_remedies(tmp_path):
    for options, needs in (
        (sida(real__source=""), "adversarial.fake_score_scale = 1.0"),
        (changed(load("digits", "real_uid"), real__source=""), "loss.name = 'real_uid'"),
    ):
        with pytest.raises(ConfigError) as error:
            distill.distill(options, str(tmp_path / "run"))
        assert str(error.value).startswith(f"{needs} needs real images, but real.source is")
        assert "--config.loss.name=sim" in str(error.value)
    with pytest.raises(ConfigError, match="no such file"):
        distill.distill(sida(real__source="zip:none.zip"), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adversarial__generator_scale": 1.0}, "needs a discriminator, and none is trained"),
        ({"adversarial__divergence": "js", "loss__name": "diff_instruct"}, "none is trained"),
        ({"adversarial__fake_score_scale": -1.0}, "expected 0 or more"),
        ({"adversarial__start": -1}, "expected 0 or more"),
        ({"fake_score__optim__clip": -1.0}, "expected 0 (none) or more"),
    ],
)
def test_invalid_adversarial_settings_are_refused(fields, message):
    with pytest.raises(ConfigError) as error:
        check.check(changed(small(), **fields), devices=1)
    assert message in str(error.value)


def test_divergence_needs_diff_instruct_and_a_discriminator_excludes_guidance():
    with pytest.raises(ConfigError, match="reweights Diff-Instruct, but loss.name = 'sid'"):
        check.check(sida(adversarial__divergence="js"), devices=1)
    with pytest.raises(ConfigError, match="does not support a guided fake score"):
        check.check(sida(guidance="lsg", teacher__guidance=2.0), devices=1)


def test_a_discriminator_needs_a_unet():
    options = sida()
    options.network = config.DiT(resolution=8, label_dim=10)
    with pytest.raises(ConfigError, match="is the encoder of a U-Net .SongUNet, AdmUNet., and DiT"):
        real.open_images(options)
    with pytest.raises(ConfigError, match="the encoder of a U-Net"):
        config.complete(options, options.network, "edm", 0.5)
    options = changed(load("digits", "real_uid"))
    options.network = config.DiT(resolution=8, label_dim=10)
    with pytest.raises(
        ConfigError, match="DiT needs real images as latents, which are not supported"
    ):
        config.complete(options, options.network, "edm", 0.5)


def test_a_method_without_data_opens_none(monkeypatch):
    def never(*_):
        raise AssertionError("opened")

    monkeypatch.setitem(data.SOURCES, "digits", never)
    assert real.open_images(load("digits")) is None
    assert real.open_images(dataclasses.replace(sida(), network=None)) is None  # network unknown


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_prefetched_images_follow_the_shuffled_order_with_their_labels(steps_per_call, monkeypatch):
    monkeypatch.setattr(real, "MOST_ON_DEVICE", 0)
    options = dataclasses.replace(sida(), batch=6, steps_per_call=steps_per_call)
    dataset, mesh = real.open_images(options), sharding.make_mesh()
    at = real.images_at(options, dataset, mesh, reads=2)
    images = dataset.load()
    for step in (0, 3, 6, 3):
        rows = at(step)
        assert rows.images.shape == (steps_per_call, 2, 6, 8, 8, 1)
        found = real.like(options, dataset, mesh)
        assert found.images.dtype == rows.images.dtype
        for number in range(step, step + steps_per_call):
            for read in range(2):
                indices = order(options.seed, dataset.size, 2 * number + read, 6)
                here = number % steps_per_call, read
                np.testing.assert_array_equal(rows.images[here], images[indices])
                np.testing.assert_array_equal(rows.labels[here], dataset.labels[indices])


def test_images_on_the_device_are_complete_and_match_the_compiled_shapes():
    options, mesh = sida(), sharding.make_mesh()
    dataset = real.open_images(options)
    found, like = real.images_at(options, dataset, mesh, 1)(0), real.like(options, dataset, mesh)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(
        lambda a: (a.shape, a.dtype), like
    )
    np.testing.assert_array_equal(found.images, dataset.load())
    np.testing.assert_array_equal(found.labels, dataset.labels)


@pytest.mark.parametrize("as_rows", [False, True])
def test_an_update_is_conditioned_on_the_labels_of_its_real_images(as_rows, monkeypatch):
    labels = np.arange(40) % 10
    images = np.broadcast_to(np.uint8(20 * labels)[:, None, None, None], (40, 8, 8, 1))
    options = changed(load("digits", "real_uid"), batch=4, fake_score_updates=2)
    options.real.source = source_of(images, labels, 10, monkeypatch)
    mesh = sharding.make_mesh()
    given = real.images_at(options, real.open_images(options), mesh, 2)(0)
    if as_rows:  # three steps of two updates
        given = update.ImageRows(
            images[:24].reshape(3, 2, 4, 8, 8, 1), np.int32(labels[:24].reshape(3, 2, 4))
        )
    fns = setup.step_fns(options, lambda *_: None, mesh)
    updates = setup.updates_of(options, fns, mesh)
    before = None
    for step in range(4):
        state = dataclasses.make_dataclass("State", ["step"])(jnp.int32(step))
        key = jax.random.fold_in(jax.random.key(0), step)
        drawn = update.draws(state, update.Constants(None, None, given), key, updates=updates)
        assert drawn[2].real is None  # the generator's
        of_images = [np.round((d.real.images[:, 0, 0, 0] + 1) * 127.5 / 20) for d in drawn[:2]]
        classes = np.stack([np.argmax(d.cond, -1) for d in drawn[:2]])
        np.testing.assert_array_equal(classes, of_images)
        if as_rows:
            np.testing.assert_array_equal(classes, labels[:24].reshape(3, 2, 4)[step % 3])
        else:
            assert not np.array_equal(classes[0], classes[1])
            assert not np.array_equal(classes, before)
        before = classes


def test_distillation_in_python_uses_real_images():
    def denoise(params, xt, sigma, cond):
        return xt * params["scale"]

    options = config.Config(batch=4, loss=config.Loss(name="real_uid"))
    options.real.source = "digits"
    teacher = simjax.from_function(
        denoise, {"scale": np.float32(0.5)}, shape=(8, 8, 1), classes=10, config=options
    )
    made = simjax.Distillation(teacher)
    made.train(2)
    assert np.isfinite(made.metrics[-1]["fake_score/loss"])
    discriminator = changed(options, adversarial__fake_score_scale=1.0)
    with pytest.raises(ConfigError, match="and Own has none"):
        simjax.Distillation(teacher, discriminator)
