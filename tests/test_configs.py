"""Every config file is valid, builds its whole training step abstractly, and can be overridden."""

import importlib.util
from pathlib import Path

import jax
import pytest

from simjax import build, config, sharding

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def load(path: Path) -> config.Config:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def loaded(request) -> config.Config:
    return load(request.param)


def abstract_steps(options: config.Config):
    """Shapes of parameters, state and metrics around one distillation call; nothing is computed."""
    mesh = sharding.make_mesh(jax.devices()[:1])

    def whole():
        denoise, params = build.denoiser(options)
        training = build.distillation(options, denoise, mesh)
        state = training.init(params)
        return state, training.call(state, params, jax.random.key(0))

    return jax.eval_shape(whole)


def test_builds_abstractly_and_keeps_the_shapes_of_its_state(loaded):
    build.check(loaded, devices=1)
    before, (after, metrics) = abstract_steps(loaded)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), before) == jax.tree.map(
        lambda a: (a.shape, a.dtype), after
    )
    assert {"generator/loss", "fake_score/loss"} <= set(metrics)


def test_adam_with_zero_beta1_stores_one_copy_of_the_parameters(loaded):
    loaded.generator.optim.beta1 = 0.0
    loaded.fake_score.optim.beta1 = 0.9
    before, _ = abstract_steps(loaded)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    parameters, counters = size(before.generator), 4
    assert size(before.generator_opt) <= parameters + counters
    assert size(before.fake_score_opt) >= 2 * parameters


@pytest.mark.parametrize("name", build.step.LOSSES)
def test_every_method_builds_by_override_alone(name):
    options = load(CONFIGS[0])
    options.loss.name = name
    build.check(options, devices=1)
    abstract_steps(options)


@pytest.mark.parametrize("units", ["denoiser", "score"])
@pytest.mark.parametrize("distance", build.distances.DISTANCES)
def test_every_distance_builds_by_override_alone(distance, units):
    options = load(CONFIGS[0])
    options.loss.distance, options.loss.units = distance, units
    build.check(options, devices=1)
    abstract_steps(options)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss.name", "simm", "loss.name = 'simm' is not known; known: diff_instruct, sid, sim."),
        ("loss.distance", "l3", "loss.distance = 'l3' is not known; known: exponential, huber"),
        ("data.name", "mnist", "data.name = 'mnist' is not known; known: digits."),
        ("batch", 0, "batch = 0 must be positive"),
        ("teacher.steps", 0, "teacher.steps = 0: a run trains its own teacher first"),
        ("accumulate", 7, "batch = 64 is not divisible by accumulate = 7"),
        ("steps_per_call", 7, "steps = 7"),
        ("compute_dtype", "float16", "compute_dtype = 'float16' is not known; known: bfloat16"),
    ],
)
def test_wrong_values_are_refused_with_what_was_expected(field, value, message):
    options = load(Path(__file__).parent.parent / "configs" / "digits.py")
    *parents, name = field.split(".")
    setattr(config.get_field(options, ".".join(parents)) if parents else options, name, value)
    if field == "steps_per_call":
        options.steps, message = 701, "steps = 701 is not a multiple of steps_per_call = 7"
    with pytest.raises(config.ConfigError) as error:
        build.check(options, devices=1)
    assert message in str(error.value)


def test_a_batch_that_devices_cannot_share_is_refused_with_one_that_they_can():
    options = load(CONFIGS[0])
    options.batch = 66
    with pytest.raises(config.ConfigError, match=r"batch: 66 .* 8 devices.*--config\.batch=72"):
        build.check(options, devices=8)


def test_differences_name_the_fields():
    saved, current = config.to_dict(config.Config()), config.to_dict(config.Config(steps=7))
    del saved["loss"]["rate"]
    assert config.differences(saved, current) == [
        "loss.rate: '(absent)' -> 0.01",
        "steps: 1000 -> 7",
    ]
    assert config.differences(current, current) == []
