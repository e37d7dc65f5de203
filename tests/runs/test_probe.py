"""The probe on exact teachers: finds wrong calls, passes correct ones, proposes a config."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simjax
from simjax import config
from simjax.errors import ConfigError
from simjax.runs import probe as probing
from simjax.runs.probe import files, proposals
from simjax.runtime import sharding
from tests.helpers import idx_files, subprocesses

CLASSES, MODES, SHAPE, NARROW = 3, 4, (4, 4, 1), 0.15


def exact(params, xt, sigma, cond):
    """E[x0 | xt] of a Gaussian mixture with MODES centres per class; all if unconditional."""
    square = NARROW**2 + sigma**2
    centres = params["centres"].reshape(CLASSES * MODES, -1)
    flat = xt.reshape(len(xt), -1)
    distance = jnp.sum((flat[:, None] - centres) ** 2, -1)
    given = jnp.where(cond.sum(-1, keepdims=True) > 0, cond, 1)
    allowed = jnp.repeat(given > 0.5, MODES, axis=-1)
    odds = jnp.where(allowed, -distance / (2 * square[:, None]), -jnp.inf)
    centre = jax.nn.softmax(odds) @ centres
    inside = (NARROW**2 / square)[:, None]
    return (inside * flat + (1 - inside) * centre).reshape(xt.shape)


def centres() -> np.ndarray:
    drawn = np.random.default_rng(0).choice([-0.6, 0.6], (CLASSES, MODES, *SHAPE))
    return drawn.astype(np.float32)


def teacher(
    change=lambda denoise: denoise, *, classes=CLASSES, data=config.Data(), **fields
) -> simjax.Model:
    options = config.Config(data=data)
    options.evaluation.batch = 256
    for name, value in fields.items():
        setattr(options.teacher, name, value)

    def called(params, xt, sigma, cond):
        return change(lambda *args: exact(params, *args))(xt, sigma, cond)

    params = {"centres": centres()}
    return simjax.from_function(called, params, shape=SHAPE, classes=classes, config=options)


def names(found: probing.Probe) -> list[str]:
    return [finding.name for finding in found.findings]


def halved_float(x):
    return (3000 * x).astype(jnp.float16).astype(jnp.float32) / 3000


BROKEN = {
    "sigma": lambda denoise: lambda x, s, cond: denoise(x, 2 * s, cond),
    "shift": lambda denoise: lambda x, s, cond: denoise(x + 0.5, s, cond),
    "scale": lambda denoise: lambda x, s, cond: denoise(2 * x, s, cond),
    "guidance": lambda denoise: (
        lambda x, s, cond: 5 * denoise(x, s, cond) - 4 * denoise(x, s, 0 * cond)
    ),
    "overflow": lambda denoise: lambda x, s, cond: denoise(halved_float(x), s, cond),
}


@pytest.mark.parametrize("name", BROKEN)
def test_wrong_call_is_identified(name):
    assert names(probing.probe(teacher(BROKEN[name]))) == [name]


def test_halved_sigma_is_identified_with_its_remedy():
    found = probing.probe(teacher(lambda d: lambda x, s, cond: d(x, 0.5 * s, cond)))
    assert names(found) == ["sigma"]
    assert "Calling it with 2 * sigma fixes this" in found.findings[0].message


def test_too_few_sampler_steps_are_identified():
    assert names(probing.probe(teacher(), steps=4)) == ["steps"]


def test_excessive_config_guidance_is_identified():
    assert names(probing.probe(teacher(guidance=5.0))) == ["guidance"]
    assert names(probing.probe(teacher(guidance=1.2))) == []


def test_nonfinite_parameters_are_identified():
    broken = teacher()
    params = {"centres": centres()}
    params["centres"][0, 0] = np.nan
    found = probing.probe(dataclasses.replace(broken, params=sharding.place(params, broken.mesh)))
    assert names(found) == ["weights"]
    assert "centres" in found.findings[0].message
    assert found.curves is None and not found.changes
    json.dumps(found.to_dict())


def test_permuted_classes_are_identified_with_data(tmp_path):
    """Undetectable without data: sampler and denoiser share the permutation."""
    drawn = np.random.default_rng(1).normal(0, NARROW, (30, CLASSES, *SHAPE))
    images = drawn + centres()[:, 0]
    pixels = np.clip(np.round(127.5 * (images + 1)), 0, 255).astype(np.uint8)
    labels = np.tile(np.arange(CLASSES, dtype=np.uint8), 30)
    source = idx_files.write(tmp_path, pixels.reshape(-1, *SHAPE[:2]), labels)

    def moved(denoise):
        return lambda x, s, cond: denoise(x, s, jnp.roll(cond, 1, axis=-1))

    assert names(probing.probe(teacher(moved))) == []
    found = probing.probe(teacher(moved, data=config.Data(source=source)))
    assert names(found) == ["labels"]
    assert "class 0" in found.table() and "the network's class 2 best, and 3 of 3" in found.table()
    assert names(probing.probe(teacher(data=config.Data(source=source)))) == []


def test_more_classes_than_trained_are_identified():
    def clamped(denoise):
        return lambda x, s, cond: denoise(
            x, s, jax.nn.one_hot(jnp.minimum(cond.argmax(-1), CLASSES - 1), CLASSES)
        )

    found = probing.probe(teacher(clamped, classes=5))
    assert names(found) == ["labels"]
    assert "identical for classes 2 and 3; 2 of 5" in found.findings[0].message


def test_ignored_classes_are_identified():
    found = probing.probe(teacher(lambda denoise: lambda x, s, cond: denoise(x, s, 0 * cond)))
    assert names(found) == ["labels"] and "ignores the class" in found.findings[0].message


def test_diverging_samples_are_explained_by_the_correction():
    """D is finite where sampling starts, but the samples diverge."""

    def changed(denoise):
        def called(x, s, cond):
            far = (s > 60)[:, None, None, None]  # reached only with a doubled sigma
            return denoise(x, 2 * s, cond) + jnp.where(far, 1e12 * x, 0)

        return called

    found = probing.probe(teacher(changed))
    assert names(found) == ["sigma"] and "are not finite. Calling it" in found.findings[0].message


def test_unexplained_fault_is_uncalibrated():
    def changed(denoise):
        return lambda x, s, cond: 0.5 * denoise(x, s, cond)

    found = probing.probe(teacher(changed))
    assert names(found) == ["uncalibrated"] and "none fixed it" in found.table()
    unexplained = probing.probe(teacher(changed), explain=False)
    assert names(unexplained) == ["uncalibrated"] and "fixed it" not in unexplained.table()


@pytest.fixture(scope="module")
def good() -> tuple[simjax.Model, probing.Probe]:
    model = teacher()
    return model, simjax.probe(model)


def test_correct_teacher_has_no_findings(good):
    model, found = good
    assert found.findings == ()
    assert "No fault found" in found.table()
    deviation = np.sqrt(np.mean(_within(model)))
    assert found.proposal.scale == pytest.approx(deviation, rel=0.1)
    assert found.proposal.sigma_init == pytest.approx(5 * deviation, rel=0.1)


def _within(model):
    """Variance of each pixel given the class."""
    return centres().reshape(CLASSES, MODES, -1).var(1) + NARROW**2


def test_points_in_the_plane_have_no_findings():
    ring = 0.7 * np.exp(2j * np.pi * np.arange(8) / 8)
    points = np.stack([ring.real, ring.imag], -1).astype(np.float32)

    def denoise(params, xt, sigma, cond):
        square = (0.05**2 + sigma**2)[:, None]
        flat = xt.reshape(-1, 2)
        distance = jnp.sum((flat[:, None] - params) ** 2, -1)
        inside = 0.05**2 / square
        found = inside * flat + (1 - inside) * (jax.nn.softmax(-distance / (2 * square)) @ params)
        return found.reshape(xt.shape)

    found = probing.probe(simjax.from_function(denoise, points, shape=(1, 1, 2)))
    assert found.findings == ()


def test_proposed_config_trains(good):
    model, found = good
    proposed = proposals.with_changes(model.config, found.changes)
    assert proposed.generator.sigma.law == proposed.fake_score.sigma.law == "lognormal"
    assert proposed.generator.sigma_init == found.proposal.sigma_init
    proposed = dataclasses.replace(proposed, batch=4)
    made = simjax.Distillation(model, proposed)
    made.train(1)
    assert np.isfinite(made.metrics[-1]["fake_score/loss"])


def test_proposed_law_resets_options_of_the_previous_one(good):
    """The t_max of a karras law would have no effect with lognormal, and be refused."""
    model, found = good
    before = copy.deepcopy(model.config)
    before.generator.sigma = config.Sigma(law="karras", t_max=0.5)
    sigma = proposals.with_changes(before, found.changes).generator.sigma
    expected = found.proposal
    assert sigma == config.Sigma(
        mean=expected.mean, std=expected.std, low=expected.low, high=expected.high
    )


def test_output_files_are_a_figure_and_a_config(good):
    model, found = good
    picture = files.picture(found)
    assert picture.size == (1100, 900) and np.asarray(picture).std() > 20
    options = config.Config(teacher=config.Teacher(source="SOURCE", family="sit"))
    text = files.config_text(options, found, 'a """ b')
    scope = {}
    exec(compile(text, "mine.py", "exec"), scope)
    written = scope["get_config"]()
    assert (written.teacher.source, written.teacher.family) == ("SOURCE", "sit")
    assert written.generator.sigma.mean == pytest.approx(found.proposal.mean, rel=1e-3)
    for reason in ("standard deviations of the data", "the error rises from 2 to 98 %"):
        assert reason in text


def test_invalid_arguments_are_refused():
    with pytest.raises(ConfigError, match="model is"):
        simjax.probe("runs/digits")
    with pytest.raises(ConfigError, match="samples"):
        simjax.probe(teacher(), samples=0)
    with pytest.raises(ConfigError, match="levels"):
        simjax.probe(teacher(), levels=3)


DEVICES = """
import numpy as np
from tests.runs import test_probe as t
found = t.probing.probe(t.teacher(), samples=64, levels=9)
curves, init = found.curves, found.proposal.sigma_init
np.savez("{file}", error=curves.error, slope=curves.slope, init=init)
"""


@pytest.mark.whole_runs
def test_eight_devices_equal_one(tmp_path):
    alone = probing.probe(teacher(), samples=64, levels=9)
    subprocesses.on_devices(8, DEVICES.format(file=tmp_path / "found.npz"))
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["error"], alone.curves.error, rtol=1e-4)
        np.testing.assert_allclose(found["slope"], alone.curves.slope, rtol=1e-4)
        np.testing.assert_allclose(found["init"], alone.proposal.sigma_init, rtol=1e-4)
