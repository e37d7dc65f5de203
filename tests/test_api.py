"""The notebook API on runs of the command and on custom denoiser functions."""

import dataclasses
import doctest
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import simjax
from simjax import config
from simjax.losses import distances, sim
from simjax.models import build
from simjax.perf import programs
from simjax.runtime import checkpoint, sharding
from tests.helpers.command import TINY, run

SCALE = 2.0  # standard deviation of the data of `gaussian`
SIGMA_INIT = 2.5  # simjax.config's default


def gaussian(params, xt, sigma, cond):
    """E[x0 | xt] of N(0, scale^2), exact: a teacher without a network."""
    variance = params["scale"] ** 2
    return variance / (variance + sigma[:, None, None, None] ** 2) * xt


@pytest.fixture
def teacher() -> simjax.Model:
    settings = simjax.Config(batch=16, steps=40)
    params = {"scale": jnp.float32(SCALE)}
    return simjax.from_function(gaussian, params, shape=(1, 1, 2), config=settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Directory of a run that the command has finished."""
    workdir = tmp_path_factory.mktemp("api") / "run"
    done = run(workdir, *TINY)
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_multistep_generator_draws_with_its_trained_number_of_steps():
    def shrinks(params, xt, sigma, cond):
        return params * xt / (1 + sigma[:, None, None, None])

    teacher = simjax.from_function(shrinks, jax.numpy.float32(0.9), shape=(1, 1, 2))
    settings = config.Config(batch=8, steps=3, generator=config.Generator(steps=4))
    distillation = simjax.Distillation(teacher, settings)
    distillation.train(2)
    model = distillation.generator
    images = simjax.draw(model, 4)
    np.testing.assert_array_equal(images, simjax.draw(model, 4, steps=4))
    with pytest.warns(
        UserWarning, match="trained for 4 calls .* samples from 2 calls at sigma 2.5"
    ):
        fewer = simjax.draw(model, 4, steps=2)
    assert np.abs(fewer - images).max() > 1e-3


def test_every_public_name_exists_and_has_a_docstring():
    for name in simjax.__all__:
        assert getattr(simjax, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'sample_it'"):
        _ = simjax.sample_it


def test_the_examples_in_public_docstrings_run():
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for name in simjax.__all__:
        for example in finder.find(getattr(simjax, name), name, module=False, globs={}):
            runner.run(example)
    assert runner.tries > 0 and runner.failures == 0


@pytest.mark.whole_runs
def test_load_returns_a_runs_generator_and_teacher(finished):
    generator, teacher = (simjax.load(str(finished), network=n) for n in ("generator", "teacher"))
    images = simjax.draw(generator, 4, labels=[3, 7])
    assert images.shape == (4, 8, 8, 1) and images.dtype == np.float32
    np.testing.assert_allclose(simjax.draw(generator, 2, labels=[3, 7]), images[:2], rtol=1e-5)
    assert np.abs(simjax.draw(teacher, 4, labels=[3, 7], steps=3) - images).max() > 1e-3
    digest = json.loads((finished / "report.json").read_text())["generator_sha256"]
    assert checkpoint.params_sha256(generator.params) == digest


def test_labels_are_cycled_over_the_samples():
    def painted(params, xt, sigma, cond):
        return jnp.broadcast_to((cond @ params)[:, None, None, None], xt.shape)

    model = simjax.from_function(painted, jnp.arange(3.0), shape=(2, 2, 1), classes=3)
    levels = simjax.draw(model, 5, labels=[2, 0])[:, 0, 0, 0]
    np.testing.assert_array_equal(levels, [2, 0, 2, 0, 2])
    np.testing.assert_array_equal(simjax.draw(model, 4)[:, 0, 0, 0], [0, 1, 2, 0])
    with pytest.raises(simjax.ConfigError, match="has 3 classes"):
        simjax.draw(model, labels=[3])


def test_samples_of_a_gaussian_teacher_match_the_closed_form(teacher):
    z = simjax.draw(teacher, 5, seed=1) / (SCALE**2 / (SCALE**2 + SIGMA_INIT**2) * SIGMA_INIT)
    many = simjax.draw(teacher, 5, seed=1, steps=200)  # the flow maps N(0, 80^2 + scale^2) to it
    expected = z * 80 * SCALE / np.hypot(SCALE, 80)
    np.testing.assert_allclose(many, expected, rtol=2e-3)


@pytest.mark.whole_runs
def test_distillation_recovers_the_scale_of_its_teacher(teacher):
    # G(z) = D(sigma_init z) has standard deviation v / (v + sigma_init^2) sigma_init, v = scale^2
    settings = simjax.Config(batch=64, steps=300)
    for part in (settings.generator, settings.fake_score):
        part.optim.lr = 0.02
    settings.generator.ema.half_life_kimg = 0.5
    distillation = simjax.Distillation(teacher, settings, distance=distances.l2_squared)
    before = simjax.draw(distillation.generator, 500).std()
    distillation.train(300)
    after = simjax.draw(distillation.generator, 500).std()
    assert abs(before - 0.976) < 0.1 and abs(after - SCALE) < 0.3, (before, after)
    assert len(distillation.metrics) == 300
    assert np.isfinite(distillation.metrics[-1]["generator/loss"])


def test_metrics_are_complete_after_an_interrupted_train(teacher):
    distillation = simjax.Distillation(teacher)
    call, count = distillation._call, 0

    def interrupted(*given):
        nonlocal count
        count += 1
        if count == 7:  # during a call, after the state was donated
            os.kill(os.getpid(), signal.SIGINT)
        if count == 10:  # before a call
            raise KeyboardInterrupt
        return call(*given)

    distillation._call = interrupted
    for done in (7, 9):
        with pytest.raises(KeyboardInterrupt):
            distillation.train(40)
        assert int(distillation.state.step) == len(distillation.metrics) == done
    distillation.train(1)
    again = simjax.Distillation(teacher)
    again.train(10)
    assert distillation.metrics == again.metrics
    np.testing.assert_array_equal(
        *(each.state.generator["scale"] for each in (distillation, again))
    )


def test_loss_and_gradient_of_a_custom_distance_and_a_custom_loss(teacher):
    def doubled(y):
        return 2 * distances.l2_squared(y)

    def own(x0, d_teacher, d_fake, sigma):
        return sim.generator_loss(
            x0, d_teacher, d_fake, jnp.full_like(sigma, 2.0), distance=distances.l2_squared
        )

    def found(**options):
        distillation = simjax.Distillation(teacher, **options)
        moved = jax.tree.map(lambda leaf: leaf + 0.5, distillation.state.fake_score)
        distillation.state = distillation.state.with_role("fake_score", params=moved)
        loss, grads = distillation.loss_and_grad(seed=3)
        return np.array([loss, grads["scale"]])

    plain = found(distance=distances.l2_squared)
    assert np.abs(plain).min() > 1e-3
    np.testing.assert_allclose(found(distance=doubled), 2 * plain, rtol=1e-5)
    np.testing.assert_allclose(found(loss=own), 2 * plain, rtol=1e-5)


def test_show_arranges_a_batch_in_a_grid():
    picture = simjax.show(np.zeros((6, 8, 8, 1), np.float32), columns=3)
    assert isinstance(picture, Image.Image) and picture.size == (3 * 72, 2 * 72)
    assert simjax.show(np.zeros((5, 64, 64, 3), np.float32)).size == (3 * 72, 2 * 72)


def test_show_accepts_one_image_uint8_float64_and_jax_arrays():
    x = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    expected = np.asarray(simjax.show(x))
    levels = np.clip(x * 127.5 + 128, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(simjax.show(levels), expected)
    np.testing.assert_array_equal(simjax.show(x.astype(np.float64)), expected)
    np.testing.assert_array_equal(simjax.show(jnp.asarray(x)), expected)
    one = np.asarray(simjax.show(x[:1]))
    np.testing.assert_array_equal(simjax.show(x[0]), one)
    np.testing.assert_array_equal(simjax.show(x[0, ..., 0]), one)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 8, 8, 1)), r"shape \(0, 8, 8, 1\), expected"),
        ([], r"shape \(0,\), expected"),
        ("runs/digits", r"shape \(\), expected"),
        (np.zeros((2, 8, 8, 4)), "Latents become images by load"),
        (np.full((1, 8, 8, 1), np.nan), "NaN or infinite"),
        (np.zeros((1, 8, 8, 1), int), "images are int64, expected floats"),
    ],
)
def test_show_rejects_other_shapes_dtypes_and_nan(images, message):
    with pytest.raises(simjax.ConfigError, match=message):
        simjax.show(images)


@pytest.mark.parametrize("columns", [-1, 1.5, "3"])
def test_show_rejects_columns_that_are_not_whole_numbers(columns):
    with pytest.raises(simjax.ConfigError, match="columns = .*expected a whole number from 0"):
        simjax.show(np.zeros((2, 8, 8, 1)), columns=columns)


class Reader:
    """Stand-in for the text encoder; records the prompts."""

    def __call__(self, prompts):
        self.prompts = prompts
        return np.zeros((len(prompts), 0), np.float32)


def test_one_prompt_may_be_a_string(teacher):
    model = dataclasses.replace(teacher, read=Reader())
    simjax.draw(model, 2, prompts="a red cat")
    assert model.read.prompts == ["a red cat"]
    for wrong in ([], [3], 3, ["a", None]):
        with pytest.raises(simjax.ConfigError, match=r"prompts = .*strings, e\.g\. prompts=\["):
            simjax.draw(model, 2, prompts=wrong)
    with pytest.raises(simjax.ConfigError, match="labels and prompts were given"):
        simjax.draw(model, 2, prompts=["a"], labels=[0])


def test_labels_must_be_integers_below_the_number_of_classes():
    model = simjax.from_function(lambda p, x, s, c: x, {}, shape=(2, 2, 1), classes=3)
    for right in (1, [0, 2], (1,), np.uint8([2]), jnp.array([1, 2])):
        assert simjax.draw(model, 3, labels=right).shape == (3, 2, 2, 1)
    for wrong in ("1", [1.0], [True], [], [-1], [[0]], [[0], [1, 2]], ["1"], [2**70], 1.0):
        with pytest.raises(simjax.ConfigError, match=r"labels = .*3 classes.*e\.g\. labels=\[0\]"):
            simjax.draw(model, 3, labels=wrong)


def own(**changes):
    """from_function of an identity denoiser, with these arguments changed."""
    values = {"denoise": lambda p, x, s, c: x, "params": {}, "shape": (2, 2, 1)} | changes
    return simjax.from_function(values.pop("denoise"), values.pop("params"), **values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: simjax.draw(t, 0), "count = 0: expected a whole number from 1"),
        (lambda t: simjax.draw(t, -1), "count = -1"),
        (lambda t: simjax.draw(t, 2.5), "count = 2.5"),
        (lambda t: simjax.draw(t, True), "count = True"),
        (lambda t: simjax.draw(t, seed=-1), "seed = -1: expected a whole number from 0 to 429496"),
        (lambda t: simjax.draw(t, seed=12345678901), "seed = 12345678901"),
        (lambda t: simjax.draw(t, steps=-1), "steps = -1: expected a whole number from 0"),
        (lambda t: simjax.draw("runs/digits"), r"model is 'runs/digits', expected a Model: simjax"),
        (lambda t: simjax.Distillation("runs/digits"), "teacher is 'runs/digits', expected a Mod"),
        (lambda t: simjax.Distillation(t, t), "config is a Model, expected a Config"),
        (lambda t: simjax.Distillation(t, distance=3), "distance = 3: expected a function"),
        (lambda t: simjax.Distillation(t, distance="hubert"), "loss.distance = 'hubert' is not"),
        (
            lambda t: simjax.Distillation(t, updates=lambda u: u[:1]),
            "updates have roles fake_score: expected fake_score and generator",
        ),
        (lambda t: simjax.Distillation(t, generator="one"), "generator is 'one', expected a OneSt"),
        (lambda t: simjax.Distillation(t, loss="sids"), "loss.name = 'sids' is not known"),
        (lambda t: simjax.Distillation(t).train(-1), "steps = -1"),
        (lambda t: simjax.Distillation(t).loss_and_grad(seed=-1), "seed = -1"),
        (lambda t: simjax.distill("configs/digits.py", "x"), "config is 'configs/digits.py', exp"),
        (lambda t: simjax.load(t), "source is a Model, expected text or a pathlib.Path"),
        (lambda t: simjax.load("x", config=t), "config is a Model, expected a Config"),
        (lambda t: simjax.load("x", autoencoder=3), "autoencoder is 3, expected text"),
        (
            lambda t: simjax.load("net.pkl", network="best"),
            "has only one network; leave network out",
        ),
        (lambda t: simjax.load(Path("org/name")), "hf download org/name --local-dir name"),
        (lambda t: own(shape=(2, 2)), r"shape = \(2, 2\): expected \(height, width, channels\)"),
        (lambda t: own(shape=4), "shape = 4: expected"),
        (lambda t: own(shape=(0, 0, 1)), "each number of shape = 0"),
        (lambda t: own(shape=(2.0, 2.0, 1)), "each number of shape = 2.0"),
        (lambda t: own(classes=-1), "classes = -1"),
        (lambda t: own(denoise="net.pkl"), "denoise is 'net.pkl', expected a function"),
        (lambda t: own(config=t), "config is a Model, expected a Config"),
    ],
)
def test_arguments_of_wrong_value_or_type_are_rejected(teacher, call, message):
    with pytest.raises(simjax.ConfigError, match=message):
        call(teacher)


def test_numpy_integers_and_zero_steps_are_accepted(teacher):
    assert simjax.draw(teacher, np.int64(2), seed=np.uint32(2**32 - 1)).shape == (2, 1, 1, 2)
    distillation = simjax.Distillation(teacher)
    distillation.train(0)
    assert int(distillation.state.step) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: simjax.draw(t, labels=[0]), "has 0 classes"),
        (lambda t: simjax.draw(t, prompts=["seven"]), "text-to-image"),
        (lambda t: simjax.load("nowhere", network="student"), "network = 'student'"),
        (
            lambda t: simjax.from_function(gaussian, {"scale": 1.0}, shape=(1, 2, 1)),
            "must be equal",
        ),
        (
            lambda t: simjax.from_function(lambda p, x, s, c: x[0], {}, shape=(2, 2, 1)),
            "expected the shape of xt",
        ),
        (lambda t: simjax.Distillation(t, simjax.Config(batch=0)), "batch = 0 must be positive"),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_rejected(teacher, call, message):
    with pytest.raises(simjax.ConfigError, match=message):
        call(teacher)


def test_a_text_to_image_model_without_prompts_is_rejected():
    network = config.PixArt(
        resolution=4, image_channels=1, width=24, depth=1, heads=2, caption_channels=8
    )
    settings = config.complete(simjax.Config(batch=2), network, "ddpm_linear", 1.0)
    denoise, like = build.blank(settings)
    mesh, params = sharding.make_mesh(), programs.random_params(like)
    model = simjax.Model(settings, mesh, denoise, params, {}, {})
    with pytest.raises(simjax.ConfigError, match="this model is conditioned on prompts"):
        simjax.draw(model, 2)
    with pytest.raises(simjax.ConfigError, match="reads captions, but there are none"):
        simjax.Distillation(model)


def test_parsing_flags_does_not_import_jax():
    program = "import simjax, simjax.commands.flags, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.whole_runs
def test_load_reads_an_export(finished, tmp_path):
    program = ["-m", "simjax", "export", f"--source={finished}", f"--out={tmp_path}"]
    done = subprocess.run([sys.executable, *program], capture_output=True)
    assert done.returncode == 0, done.stderr
    exported, generator = simjax.load(str(tmp_path)), simjax.load(str(finished))
    images = (simjax.draw(model, 3, labels=[1], seed=2) for model in (exported, generator))
    np.testing.assert_allclose(*images, rtol=1e-5, atol=1e-6)
