"""Every config field that is set is either read or refused.

Checked for every field, sigma law, loss, distance and teacher source.
"""

import copy
import dataclasses
import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simjax
from simjax import config
from simjax.config import Description
from simjax.diffusion.schedule import SIGMA_LAWS
from simjax.errors import ConfigError
from simjax.losses.distances import DISTANCES
from simjax.losses.registry import LOSSES
from simjax.models import build, samplers, stored
from simjax.networks.denoiser import as_denoise
from simjax.runs import check, distill, fields, setup
from simjax.runtime import sharding
from tests.helpers.configs import load, small
from tests.helpers.fields import LEAVES, changed, is_refused

# Fields that every run reads, or that other code refuses (its test is named). A new field of the
# schema must be listed here or handled in simjax/runs/fields.py.
READ_BY_EVERY_RUN = {
    *("seed", "steps", "batch", "accumulate", "steps_per_call", "fsdp"),
    *("fake_score_updates", "generator.start", "fake_score.pull"),
    *("network", "dropout"),  # complete, require_teacher: tests/test_configs.py
    *("teacher.family", "generator.family"),  # complete, port: tests/test_configs.py
    *("teacher.source", "teacher.steps", "teacher.sampler.solver", "teacher.sampler.ladder"),
    *("teacher.dtype", "generator.source", "generator.steps", "generator.levels"),
    *("generator.sigma.law", "generator.weight", "fake_score.sigma.law", "fake_score.weight"),
    *(f"generator.ema.{field.name}" for field in dataclasses.fields(config.Ema)),
    *(
        f"{part}.optim.{field.name}"
        for part in ("generator", "fake_score")
        for field in dataclasses.fields(config.Optim)
    ),
    *("fake_score.scale", "fake_score.augment"),  # augment_dim: tests/test_configs.py
    *("adversarial.fake_score_scale", "adversarial.generator_scale", "adversarial.divergence"),
    *("loss.name", "loss.distance", "loss.units", "loss.scale"),
    *("evaluation.reference", "evaluation.teacher_steps", "evaluation.batch"),
    *("probe", "grid", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints"),
    "checkpoint_limit",  # read only with several processes, whatever the config
}


def bases() -> dict[str, config.Config]:
    """One config per choice, with other fields at their defaults where possible."""
    trained = config.Config(network=load("digits").network)
    trained.teacher.steps, trained.data.source = 100, "digits"
    published = config.Config(teacher=config.Teacher(source="edm-cifar10-32x32-cond-vp"))
    named = config.Teacher(source="PixArt-XL-2-512x512")
    captioned = changed(load("captioned_digits"), text__words=(), text__held_out=())
    reference = changed(published, evaluation__reference="stats.npz", data__source="tfds:cifar10")
    made = {
        "trained": trained,
        "published": published,
        "file": config.Config(teacher=config.Teacher(source="teachers/net.pkl")),
        "uncond": config.Config(teacher=config.Teacher(source="edm-cifar10-32x32-uncond-vp")),
        "dit": config.Config(teacher=config.Teacher(source="DiT-XL-2-256x256")),
        "pixart": config.Config(teacher=named),
        "captions": captioned,
        "own": config.Config(network=config.Own(resolution=1, image_channels=2, label_dim=0)),
        "reference": reference,
        "two references": changed(reference, evaluation__features=("classifier",)),
        "no features": changed(trained, evaluation__features=()),
        "online": changed(trained, evaluation__every=100),
        "vp family": changed(
            trained, teacher__precondition="vp", teacher__weight="score", fake_score__weight="score"
        ),
        "flow": changed(
            published, teacher__sampler__ladder="flow", teacher__sampler__solver="euler"
        ),
        "sde": changed(published, teacher__sampler__solver="flow_sde"),
        "sida": changed(
            trained,
            adversarial__fake_score_scale=1.0,
            adversarial__generator_scale=1.0,
            real__source="digits",
        ),
        "levels": changed(trained, generator__levels=(2.0, 1.0)),
        "four steps": changed(trained, generator__steps=4),
        "lsg": changed(published, guidance="lsg", teacher__guidance=1.5),
        "zero_cfg": changed(published, guidance="zero_cfg"),
        "ddpm": changed(published, teacher__sampler__ladder="ddpm_linear"),
        "dpm": changed(published, teacher__sampler__solver="dpm_solver"),
        "churn": changed(published, teacher__sampler__churn=40.0),
    }
    for law, part in itertools.product(SIGMA_LAWS, ("teacher", "generator", "fake_score")):
        made[f"{part}, {law}"] = changed(trained, **{f"{part}__sigma__law": law})
    for loss in LOSSES:
        made[loss] = changed(trained, loss__name=loss)
    for distance in DISTANCES:
        made[distance] = changed(trained, loss__distance=distance)
    return made


BASES = bases()


@pytest.mark.parametrize("path", LEAVES)
def test_a_field_is_read_by_every_run_or_refused_by_some(path):
    refused = {name for name, base in BASES.items() if is_refused(base, path)}
    if path in READ_BY_EVERY_RUN:
        assert not refused
    else:
        assert refused, f"{path} is never refused: list it here, or handle it in fields.py"
        assert refused < set(BASES), f"{path} is never read: remove it, or add a config to bases()"


def test_only_fields_of_the_schema_are_listed():
    assert set(LEAVES) >= READ_BY_EVERY_RUN
    for base in BASES.values():
        for choice in fields.choices(base):
            groups = {path.rpartition(".")[0] for path in LEAVES} | set(LEAVES)
            assert {*choice.unread, *choice.read} <= groups, choice


def test_every_field_name_occurs_in_the_code():
    folder = Path(simjax.__file__).parent
    ours = (folder / "config" / "schema.py", folder / "runs" / "fields.py")
    text = "\n".join(path.read_text() for path in folder.rglob("*.py") if path not in ours)
    unnamed = [path for path in LEAVES if not re.search(rf"\b{path.rpartition('.')[2]}\b", text)]
    assert not unnamed


class Watched:
    """Wraps a config section and records which fields are read."""

    def __init__(self, record):
        self._record, self.seen = record, set()

    def __getattr__(self, name):
        value = getattr(self._record, name)
        self.seen.add(name)
        return value


def declared(options: config.Config, part: str) -> set[str]:
    """Fields of one config section that fields.py declares as read."""
    unread = {path for choice in fields.choices(options) for path in choice.unread}
    inside = [path for path in LEAVES if path.rpartition(".")[0] == part]
    return {path.rpartition(".")[2] for path in inside if path not in unread}


@pytest.mark.parametrize("law", SIGMA_LAWS)
def test_a_sigma_law_reads_the_declared_fields(law):
    options = BASES[f"generator, {law}"]
    watched = Watched(options.generator.sigma)
    jax.eval_shape(lambda: setup._draw_sigma(jax.random.key(0), law=watched, batch=2))
    assert watched.seen == declared(options, "generator.sigma")


@pytest.mark.parametrize("name", [*LOSSES, *DISTANCES])
def test_losses_and_distances_read_the_declared_fields(name):
    options = copy.deepcopy(BASES[name])
    options.loss = watched = Watched(options.loss)
    found = setup.generator_loss(options, setup.distance(watched))
    image = jax.ShapeDtypeStruct((1, 2, 2, 1), jnp.float32)
    sigma = jax.ShapeDtypeStruct((1,), jnp.float32)
    assert jax.eval_shape(found, image, image, image, sigma).shape == (1,)
    assert watched.seen == declared(BASES[name], "loss")


@pytest.mark.parametrize("name", ["published", "ddpm", "dpm", "churn", "flow", "sde"])
def test_a_sampler_reads_the_declared_fields(name):
    options = copy.deepcopy(BASES[name])
    options.network = load("digits").network
    options = config.resolved(options)
    expected = declared(options, "teacher.sampler")
    options.teacher.sampler = watched = Watched(options.teacher.sampler)
    draw = samplers.teacher_sampler(
        lambda params, xt, *_, **__: xt, options, 3, sharding.make_mesh()
    )
    keys = jax.random.split(jax.random.key(0), 1)
    jax.eval_shape(draw, {}, jnp.ones((1, 8, 8, 1)), jnp.ones((1, 10)), keys)
    assert watched.seen == expected


@pytest.mark.parametrize(
    ("base", "path", "value", "applies"),
    [
        ("generator, karras", "generator.sigma.mean", -2.0, "generator.sigma.t_max"),
        ("generator, lognormal", "generator.sigma.rho", 5.0, "generator.sigma.mean"),
        ("generator, ve", "generator.sigma.sigma_max", 90.0, "generator.sigma.law = 've'"),
        ("trained", "loss.alpha", 1.0, "loss.distance"),
        ("huber", "loss.c", 0.1, "loss.delta"),
        ("published", "teacher.batch", 512, "teacher.sampler"),
        ("published", "teacher.optim.lr", 0.1, "teacher.guidance"),
        ("published", "teacher.precondition", "vp", "teacher.sha256"),
        ("trained", "teacher.sha256", "ab", "teacher.source = ''"),
        ("dpm", "teacher.sampler.churn", 40.0, "dpm_solver"),
        ("published", "teacher.sampler.churn_low", 0.05, "teacher.sampler.churn"),
        ("ddpm", "teacher.sampler.rho", 5.0, "ddpm_linear"),
        ("uncond", "teacher.guidance", 2.0, "without classes"),
        ("trained", "scan_blocks", False, "SongUNet"),
        ("published", "autoencoder", "VAE", "pixel-space network SongUNet"),
        ("dit", "text.cache", "CACHE", "DiT"),
        ("captions", "text.cache", "CACHE", "text.words"),
        ("pixart", "text.words", ("one",), "text.cache"),
        ("pixart", "text.t5.width", 64, "text.cache"),
        ("published", "evaluation.samples", 100, "evaluation.reference"),
        ("published", "data.split", "test", "data.source"),
        ("reference", "data.source", "digits", "evaluation.reference"),
        ("trained", "evaluation.best", "pixels/frechet", "evaluation.every = 0"),
        ("trained", "evaluation.online_samples", 10, "evaluation.samples"),
        ("own", "compute_dtype", "bfloat16", "Python code"),
    ],
)
def test_the_error_names_applicable_fields_and_the_reset_flag(base, path, value, applies):
    options = changed(BASES[base], **{path.replace(".", "__"): value})
    with pytest.raises(ConfigError) as error:
        fields.require_read(options)
    message = str(error.value)
    default = config.get_field(config.Config(), path)
    assert f"{path} = {value!r}" in message
    assert applies in message
    assert f"--config.{path}={default}".rstrip("()'") in message
    fields.require_read(changed(options, **{path.replace(".", "__"): default}))


def test_one_error_lists_all_fields_without_effect():
    options = changed(BASES["trained"], loss__alpha=1.0, scan_blocks=False)
    with pytest.raises(ConfigError, match=r"(?s)scan_blocks = False.*loss.alpha = 1.0"):
        check.check(options, devices=1)


def test_default_values_of_another_law_do_not_count_as_set():
    # The generator's default is Sigma(mean=-3.5, std=2.5); a new Sigma has other defaults.
    options = changed(BASES["trained"], generator__sigma=config.Sigma(law="karras"))
    check.check(options, devices=1)


def test_a_refused_run_leaves_no_directory(tmp_path):
    with pytest.raises(ConfigError, match="loss.alpha"):
        distill.distill(changed(small(), loss__alpha=1.0), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_with_a_stored_field_without_effect_resumes(tmp_path, monkeypatch):
    def obtain(*arguments):
        raise InterruptedError

    monkeypatch.setattr(distill, "obtain", obtain)
    old = changed(small(), loss__alpha=1.0)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(old)))
    with pytest.raises(InterruptedError):
        distill.distill(old, str(tmp_path))
    with pytest.raises(ConfigError, match=r"have no effect:\s+evaluation.best = 'x'"):
        distill.distill(changed(old, evaluation__best="x"), str(tmp_path))


def test_a_stored_field_without_effect_loads_but_cannot_start_a_run(tmp_path):
    old = changed(small(), loss__alpha=1.0)
    module = build.module(old)
    weights = jax.tree.map(np.asarray, as_denoise(module)[1])
    description = Description(old.network, "edm", 0.5)
    stored.store(simjax.runtime.storage.absolute(tmp_path / "teacher"), weights, description, {})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(old)))
    model = simjax.load(str(tmp_path), network="teacher")
    assert model.config.loss.alpha == 1.0
    with pytest.raises(ConfigError, match="loss.alpha"):
        simjax.Distillation(model)
    model.config.loss.alpha = 1.2
    simjax.Distillation(model)
