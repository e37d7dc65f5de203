"""Every config file is valid, traces its whole training step, and can be overridden."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from simjax import config
from simjax.errors import ConfigError
from simjax.losses.distances import DISTANCES
from simjax.losses.registry import LOSSES, WITH_REAL_IMAGES
from simjax.models import build, port
from simjax.networks.denoiser import as_denoise
from simjax.runs import check, setup
from simjax.runtime import sharding
from simjax.train.step import Constants
from tests.helpers.configs import DIRECTORY, PARAMETERS, load, shrunk, small

WITH_SID = ("cifar10", "cifar10_uncond", "imagenet64", "ffhq64", "afhqv2_64")
LATENTS = ("imagenet256_dit", "imagenet256_sit", "pixart512")
EXPERIMENTS = ("digits", "captioned_digits", "emoji", "fashion", *WITH_SID, *LATENTS)
VARIANTS = (
    *((name, "sid") for name in (*WITH_SID, "imagenet256_sit")),
    *((name, "lsg") for name in ("imagenet256_dit", "imagenet256_sit")),
    *(("digits", method) for method in ("flow", "flow_guided", "sid", "sid_half", "real_uid")),
    *(("fashion", method) for method in ("sid", "sid_half", "diff_instruct", "real_uid")),
)
WITH_LOGITS = (
    ("digits", "sida"),
    ("fashion", "sida"),
    *((name, method) for name in WITH_SID for method in ("sida", "sid2a")),
)
OTHER_TEACHERS = {
    "edm-cifar10-32x32-uncond-ve": 56_397_827,
    "edm-cifar10-32x32-cond-ve": 56_400_643,
    "edm-ffhq-64x64-uncond-ve": 62_761_091,
    "edm-afhqv2-64x64-uncond-ve": 62_761_091,
}


def parameters(options: config.Config) -> int:
    module = nnx.eval_shape(lambda: build.module(options))
    return build.count(as_denoise(module)[1])


def abstract_steps(options: config.Config, network=build.blank):
    """Shapes of state and metrics before and after one distillation call, by eval_shape."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    options = port.plan(options)
    denoise, like = network(options)
    training = setup.distillation(options, denoise, mesh)

    def whole(params):
        state = training.init(params, params)
        captions = build.any_captions(options, (1, 2, options.batch))
        like = setup.real_like(options, 1)
        real = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), like)
        constants = Constants(params, captions, real)
        return state, training.call(state, constants, jax.random.key(0))

    return jax.eval_shape(whole, like)


def test_every_config_file_is_tested():
    assert {path.stem for path in DIRECTORY.glob("*.py")} == {*EXPERIMENTS}


@pytest.fixture
def two_devices(monkeypatch):
    """Abstract mesh that shards states over two devices; tracing needs no real ones."""
    monkeypatch.setattr(sharding, "on_cpus", lambda mesh: True)
    return AbstractMesh((1, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 2)


def stand_in(options: config.Config):
    """One-parameter denoiser that reads its condition; traces quickly."""

    def denoise(params, xt, sigma, cond, **options):
        return xt * params["kernel"].sum() + sum(leaf.sum() for leaf in jax.tree.leaves(cond))

    return denoise, {"kernel": jax.ShapeDtypeStruct((2,), np.float32)}


def with_logits(options: config.Config):
    """`stand_in` with discriminator logits."""
    plain, like = stand_in(options)

    def denoise(*args, with_logits=False, **kwargs):
        denoised = plain(*args, **kwargs)
        return (denoised, denoised.mean(-1)) if with_logits else denoised

    return denoise, like


@pytest.mark.parametrize(
    ("name", "method", "network"),
    [(name, None, build.blank) for name in EXPERIMENTS]
    # These differ only in loss, guidance and noise levels: the network is not traced again.
    + [(name, method, stand_in) for name, method in VARIANTS]
    + [(name, method, with_logits) for name, method in WITH_LOGITS],
)
def test_traces_accumulation_in_two_step_calls_on_two_devices(name, method, network, two_devices):
    options = load(name, method)
    options.accumulate = options.steps_per_call = 2
    options.steps -= options.steps % 2
    check.check(options, devices=2)
    options = port.plan(options)
    options.network = shrunk(options.network)
    denoise, like = network(options)
    training = setup.distillation(options, denoise, two_devices)
    arguments = setup.arguments_like(options, training, like)
    assert arguments[0].generator  # not an empty tree, for which the check would be vacuous
    assert_kept(arguments[0], jax.eval_shape(training.call, *arguments))
    if options.teacher.steps:
        training = setup.pretraining(options, denoise, two_devices)
        state = jax.eval_shape(training.init, like)
        images = np.zeros((3, *build.image_shape(options)), np.uint8)
        constants = (images, np.zeros(3, int), build.any_captions(options, (10, 4)))
        assert_kept(state, jax.eval_shape(training.call, state, constants, jax.random.key(0)))


def assert_kept(before, results):
    """A call keeps the shapes and dtypes of its state and returns losses."""
    after, metrics = results
    kept = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), before, after)
    assert all(jax.tree.leaves(kept))
    assert any(key.endswith("/loss") for key in metrics)


@pytest.mark.full_size  # the small networks above cover the same code
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_full_size_step_keeps_the_shapes_of_its_state(name):
    options = load(name)
    check.check(options, devices=1)
    config.require_teacher(options)
    before, (after, metrics) = abstract_steps(options)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), before) == jax.tree.map(
        lambda a: (a.shape, a.dtype), after
    )
    assert {"generator/loss", "fake_score/loss"} <= set(metrics)
    assert build.count(before.generator) == PARAMETERS.get(name, build.count(before.generator))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_equals_the_official_networks(name):
    assert parameters(port.plan(load(name))) == PARAMETERS[name]


# million training images of SiDA and SiD2A
IMAGES = {name: (200 if name in ("ffhq64", "afhqv2_64") else 300, 100) for name in WITH_SID}


@pytest.mark.parametrize("name", WITH_SID)
def test_sida_presets_are_the_published_runs(name):
    for method, millions in zip(("sida", "sid2a"), IMAGES[name], strict=True):
        options = load(name, method)
        check.check(options, devices=1)
        assert options.loss == config.Loss(name="sid", alpha=1.0, scale=100.0)
        assert options.adversarial == config.Adversarial(1.0, 0.01, "", 200_000)
        assert options.generator.start == 100_000
        assert options.fake_score.optim.clip == 1.0 and options.generator.optim.clip == 0.0
        assert options.generator.optim.beta1 == 0.0
        assert options.steps == millions * 10**6 // options.batch
        assert options.real.source.startswith("zip:")
        assert bool(options.generator.source) == (method == "sid2a")


@pytest.mark.parametrize("name", WITH_SID)
def test_sid_preset_is_the_published_run(name):
    options = load(name, "sid")
    check.check(options, devices=1)
    published = {"alpha": 1.0 if name == "afhqv2_64" else 1.2, "scale": 100.0}
    assert options.loss == config.Loss(name="sid", **published)
    assert options.generator.optim.beta1 == (0.9 if name == "ffhq64" else 0.0)
    changed = {line.partition(":")[0] for line in config.differences(
        config.to_dict(load(name)), config.to_dict(options)
    )}  # fmt: skip
    assert {path.partition(".")[0] for path in changed} == {"generator", "loss"}


SEVERAL = {
    ("digits", "two_steps"): (1.25, 0.3846),
    ("digits", "four_steps"): (1.25, 0.7143, 0.3846, 0.1613),
    ("captioned_digits", "four_steps"): (1.25, 0.7143, 0.3846, 0.1613),
    ("fashion", "two_steps"): (2.33, 0.5381),
    ("fashion", "four_steps"): (2.33, 1.1043, 0.5381, 0.2120),
    ("emoji", "four_steps"): (5.0, 1.6667, 0.7143, 0.2632),
    ("imagenet256_sit", "four_steps"): (999.0, 2.988, 0.998, 0.3329),  # SiD-DiT
    ("imagenet256_sit", "sim_four_steps"): (999.0, 2.988, 0.998, 0.3329),
    ("pixart512", "four_steps"): (2.5, 1.1538, 0.5556, 0.2174),
}


@pytest.mark.parametrize(("name", "method"), SEVERAL)
def test_multistep_presets_are_valid_and_have_the_expected_levels(name, method):
    options = load(name, method)
    check.check(options, devices=1)
    config.require_teacher(options)
    levels = config.generator_levels(options.generator)
    assert levels == pytest.approx(SEVERAL[name, method], rel=1e-3)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_two_fields_of_a_config_share_an_object(name):
    # Overriding one would change the other.
    options = load(name)
    options.generator.optim.lr, options.generator.sigma.std = 0.5, 9.0
    assert options.fake_score.optim.lr != 0.5
    assert options.fake_score.sigma.std != 9.0


@pytest.mark.parametrize(("source", "expected"), OTHER_TEACHERS.items())
def test_another_teacher_needs_only_its_name(source, expected):
    options = load("cifar10")
    options.teacher.source = source
    assert parameters(port.plan(options)) == expected


def test_config_dropout_overrides_the_networks():
    options = load("cifar10")
    assert port.plan(options).network.dropout == 0.13
    options.dropout = 0.0
    assert port.plan(options).network.dropout == 0.0


def test_augmentation_without_augment_labels_is_rejected():
    options = load("imagenet64")
    options.fake_score.augment = 0.1
    with pytest.raises(ConfigError, match="set --config.fake_score.augment=0"):
        port.plan(options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": ""}, "there is no teacher: set a pretrained one"),
        ({"steps": 5}, "is pretrained and includes its network"),
    ],
)
def test_a_run_must_have_exactly_one_teacher(change, message):
    options = load("cifar10")
    options.teacher = dataclasses.replace(options.teacher, **change)
    with pytest.raises(ConfigError, match=message):
        config.require_teacher(options)


def test_adam_with_zero_beta1_stores_one_copy_of_the_parameters():
    options = small()
    options.generator.optim.beta1 = 0.0
    options.fake_score.optim.beta1 = 0.9
    before, _ = abstract_steps(options)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    parameters, counters = size(before.generator), 4
    assert size(before.roles["generator"].opt) <= parameters + counters
    assert size(before.roles["fake_score"].opt) >= 2 * parameters


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_traces_by_override_alone(name):
    options = small()
    options.loss.name = name
    options.real.source = "digits" if name in WITH_REAL_IMAGES else ""
    check.check(options, devices=1)
    abstract_steps(options, stand_in)


@pytest.mark.parametrize("units", ["denoiser", "score"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_traces_by_override_alone(distance, units):
    options = small()
    options.loss = config.Loss(distance=distance, units=units)
    check.check(options, devices=1)
    abstract_steps(options, stand_in)


def test_augmentation_traces_by_override_alone():
    options = small()
    options.network.augment_dim, options.fake_score.augment = 9, 0.12
    abstract_steps(options)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "loss.name",
            "simm",
            "loss.name = 'simm' is not known; known: diff_instruct, fgm, real_uid, sid, sim.",
        ),
        ("loss.distance", "l3", "loss.distance = 'l3' is not known; known: exponential, huber"),
        ("batch", 0, "batch = 0 must be positive"),
        ("evaluation.features", ("clip",), "evaluation.features = 'clip' is not known; known: cl"),
        ("evaluation.metrics", ("fid",), "evaluation.metrics = 'fid' is not known; known: class"),
        ("network.encoder", "skip", "network.encoder = 'skip' is not known; known: residual"),
        ("accumulate", 7, "batch = 64 is not divisible by accumulate = 7"),
        ("steps_per_call", 7, "steps = 7"),
        ("evaluation.every", 7, "evaluation.every = 7 is not a multiple of steps_per_call = 10: "),
        ("compute_dtype", "float16", "compute_dtype = 'float16' is not known; known: bfloat16"),
    ],
)
def test_wrong_values_are_rejected_with_the_expected_ones(field, value, message):
    options = load("digits")
    *parents, name = field.split(".")
    setattr(config.get_field(options, ".".join(parents)) if parents else options, name, value)
    if field == "steps_per_call":
        options.steps, message = 701, "steps = 701 is not a multiple of steps_per_call = 7: "
    with pytest.raises(ConfigError) as error:
        check.check(options, devices=1)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("flow", {"shift": 0.0}, "32 steps with shift = 0.0"),
        ("flow", {"u_max": 1.0}, "u_max = 1.0"),
        ("flow", {"solver": "flow_sde", "u_last": 1.5}, "1.5"),
        ("sim", {"sigma_min": 90.0}, r"'karras' in 18 steps .* \(80 to 90\)"),
        ("sim", {"ladder": "iddpm", "solver": "euler", "steps": 2000}, "'iddpm' in 2000 steps"),
    ],
)
def test_noise_levels_that_do_not_decrease_are_rejected_before_training(method, fields, message):
    options = load("digits", method)
    options.evaluation.teacher_steps = (fields.pop("steps", options.evaluation.teacher_steps[0]),)
    for name, value in fields.items():
        setattr(options.teacher.sampler, name, value)
    with pytest.raises(ConfigError, match=f"teacher.sampler: .*{message}"):
        check.check(options, devices=1)


def test_an_indivisible_batch_is_rejected_with_a_divisible_one():
    options = load("digits")
    options.batch = 66
    with pytest.raises(ConfigError, match=r"batch: 66 .* 8 devices.*--config\.batch=72"):
        check.check(options, devices=8)


def test_differences_name_the_fields():
    saved, current = config.to_dict(config.Config()), config.to_dict(config.Config(steps=7))
    del saved["loss"]["rate"]
    assert config.differences(saved, current) == [
        "loss.rate: '(absent)' -> 0.01",
        "steps: 1000 -> 7",
    ]
    assert config.differences(current, current) == []
