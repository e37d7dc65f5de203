"""Results are independent of device count, accumulation and steps per call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from simjax import config
from simjax.models import build
from simjax.networks.denoiser import as_denoise
from simjax.runs import real, setup
from simjax.runtime import sharding
from simjax.train.step import Constants
from simjax.train.update import ImageRows
from tests.helpers import subprocesses

TOLERANCE = 1e-5  # relative to the largest element of an array
TWO_LOSSES = 1e-4  # likewise, with real images: gradients of the two losses partly cancel
STEPS = 5


def options(**changes) -> config.Config:
    network = config.SongUNet(
        resolution=8,
        image_channels=1,
        label_dim=10,
        augment_dim=9,
        channels=32,  # a kernel axis for each of eight devices
        channel_mult=(1,),
        blocks=1,
        attention_resolutions=(),
        dropout=0.3,
    )
    # A large eps: otherwise Adam turns rounding errors of zero gradients into full steps.
    optim = config.Optim(lr=0.01, eps=1.0)
    return config.Config(
        batch=8,
        network=network,
        generator=config.Generator(optim=optim),
        fake_score=config.FakeScore(optim=optim, augment=0.5),
        **changes,
    )


def stack() -> config.Config:
    """`options` with a small PixArt network."""
    network = config.PixArt(
        resolution=8, width=48, depth=2, heads=3, caption_channels=16, caption_length=6
    )
    changed = dataclasses.replace(options(), network=network, remat="blocks")
    changed.fake_score.augment = 0.0
    changed.teacher.precondition, changed.teacher.guidance = "ddpm_linear", 2.0
    return changed


def chain(**changes) -> config.Config:
    """`options` with a four-step generator and fresh noise."""
    changed = options(**changes)
    changed.generator.steps = 4
    return changed


def with_real(method: str = "sida", **changes) -> config.Config:
    """`options` with real images: SiDA, f-divergence weights, or RealUID."""
    changed = options(**changes)
    changed.real.source = "digits"
    if method == "real_uid":
        changed.loss = config.Loss(name="real_uid")
        return changed
    changed.adversarial = config.Adversarial(fake_score_scale=1.0, start=16)
    if method == "js":
        changed.loss = config.Loss(name="diff_instruct")
        changed.adversarial.divergence = "js"
    else:
        changed.loss = config.Loss(name="sid", alpha=1.0)
        changed.adversarial.generator_scale = 0.1
    return changed


def real_images(settings: config.Config, mesh: Mesh, as_rows: bool) -> object:
    """The digits, replicated or as examples read for calls of one step."""
    dataset = real.open_images(settings)
    if dataset is None:
        return None
    table = real.images_at(settings, dataset, mesh, 1)(0)
    if not as_rows:
        return table
    rows = jax.tree.map(
        lambda leaf: np.asarray(leaf)[: 3 * settings.batch].reshape(
            3, 1, settings.batch, *leaf.shape[1:]
        ),
        table,
    )
    where = sharding.abstract_rows(rows, mesh)
    rows = ImageRows(rows.images, rows.labels)
    where = ImageRows(where.images, where.labels)
    return jax.tree.map(lambda leaf, like: sharding.placed(leaf, like.sharding), rows, where)


def few_steps(
    settings: config.Config, mesh: Mesh, steps: int = STEPS, as_rows: bool = False
) -> dict[str, np.ndarray]:
    """All arrays of the state and the metrics of every step, after a few steps."""
    denoise, params = as_denoise(build.module(settings))
    training = setup.distillation(settings, denoise, mesh)
    params = sharding.place(sharding.to_host(params), mesh)
    captions = build.any_captions(settings, (1, 2, settings.batch))
    captions = jax.tree.map(
        lambda leaf, like: sharding.placed(np.asarray(leaf), like.sharding),
        captions,
        sharding.abstract_rows(captions, mesh),
    )
    constants = Constants(params, captions, real_images(settings, mesh, as_rows))
    state, seen = training.init(params, params), []
    for _ in range(steps // settings.steps_per_call):
        key = build.key_on(settings, "distillation", mesh)
        state, metrics = training.call(state, constants, key)
        seen.append(metrics)
    where = sharding.by_rules(state, mesh)
    kept = jax.tree.map(lambda x, w: x.sharding.is_equivalent_to(w, x.ndim), state, where)
    assert all(jax.tree.leaves(kept))  # shardings are unchanged
    leaves = jax.tree.leaves_with_path(sharding.to_host((state, seen)))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], within=TOLERANCE):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(found[path], value, rtol=0, atol=within * scale, err_msg=path)


def of_states(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: leaf for path, leaf in leaves.items() if path.startswith("[0]")}


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return few_steps(options(), sharding.make_mesh())


@pytest.mark.whole_runs
def test_parameters_change_by_more_than_the_tolerance(reference):
    _, params = as_denoise(build.module(options()))
    paths = [path for path in reference if path.startswith("[0].roles['generator'].params[")]
    moved = [
        np.abs(reference[path] - start).max() / np.abs(reference[path]).max()
        for path, start in zip(paths, jax.tree.leaves(params), strict=True)
    ]
    assert np.median(moved) > 50 * TOLERANCE


@pytest.mark.whole_runs
@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"steps_per_call": STEPS}])
def test_accumulation_and_scanned_steps_change_nothing(changes, reference):
    found = of_states(few_steps(options(**changes), sharding.make_mesh()))
    assert_close(found, of_states(reference))


@pytest.mark.whole_runs
@pytest.mark.parametrize("fsdp", [1, 4, 8])
def test_eight_devices_equal_one(fsdp, reference, tmp_path):
    """Data 8; fsdp 8; data 2 x fsdp 4: losses, gradient norms, second moments, parameters."""
    subprocesses.on_devices(8, PROGRAM.format(fsdp=fsdp, file=tmp_path / "found.npz"))
    with np.load(tmp_path / "found.npz") as found:
        assert_close(dict(found), reference)


@pytest.mark.whole_runs
@pytest.mark.parametrize("fsdp", [8, 4])
def test_scanned_blocks_on_eight_devices_equal_one(fsdp, tmp_path):
    """Blocks gathered one by one, captions sharded over devices, a guided teacher."""
    settings, program = "t.stack()", PROGRAM.replace("t.options()", "t.stack()")
    assert settings in program
    subprocesses.on_devices(8, program.format(fsdp=fsdp, file=tmp_path / "found.npz"))
    with np.load(tmp_path / "found.npz") as found:
        assert_close(dict(found), few_steps(stack(), sharding.make_mesh()), within=1e-4)


@pytest.mark.whole_runs
def test_two_processes_equal_one(reference, tmp_path):
    """Two processes of two devices each, connected over the network."""
    files = [tmp_path / f"{fsdp}.npz" for fsdp in (1, 4)]
    programs = (
        PROGRAM.format(fsdp=fsdp, file=file) for fsdp, file in zip((1, 4), files, strict=True)
    )
    program = "from simjax.runtime import processes\nprocesses.join()\n" + "".join(programs)
    started = subprocesses.start(["-c", program], processes=2, devices=2)
    for output in [process.communicate(timeout=300)[0] for process in started]:
        assert "4 devices" in output, output
    for file in files:
        with np.load(file) as found:
            assert_close(dict(found), reference)


@pytest.mark.whole_runs
def test_a_four_step_generator_on_eight_devices_or_in_microbatches_equals_one(tmp_path):
    """All devices and microbatches share one k; an example's noise is placement-independent."""
    expected = few_steps(chain(), sharding.make_mesh())
    assert len({path for path in expected if "calls/" in path}) == 5 * STEPS
    counts = [value for path, value in expected.items() if "calls/steps" in path]
    assert len({int(np.argmax(count)) for count in counts}) > 1  # not always the same k
    sliced = of_states(few_steps(chain(accumulate=4), sharding.make_mesh()))
    assert_close(sliced, of_states(expected))
    program = PROGRAM.replace("t.options()", "t.chain()")
    subprocesses.on_devices(8, program.format(fsdp=4, file=tmp_path / "found.npz"))
    with np.load(tmp_path / "found.npz") as found:
        assert_close(dict(found), expected)


@pytest.mark.whole_runs
@pytest.mark.parametrize("as_rows", [False, True])
@pytest.mark.parametrize("method", ["sida", "js", "real_uid"])
def test_real_images_on_eight_devices_or_in_microbatches_equal_one(method, as_rows, tmp_path):
    """Means of the discriminator and of the f-divergence are over the full batch."""
    alone = sharding.make_mesh()
    expected = few_steps(with_real(method), alone, as_rows=as_rows)
    sliced = few_steps(with_real(method, accumulate=4), alone, as_rows=as_rows)
    assert_close(of_states(sliced), of_states(expected), within=TWO_LOSSES)
    call = f"t.few_steps(t.with_real('{method}'), sharding.make_mesh({{fsdp}}), as_rows={as_rows})"
    program = PROGRAM.replace("t.few_steps(t.options(), sharding.make_mesh({fsdp}))", call)
    assert call in program
    subprocesses.on_devices(8, program.format(fsdp=4, file=tmp_path / "found.npz"))
    with np.load(tmp_path / "found.npz") as found:
        assert_close(dict(found), expected, within=TWO_LOSSES)


@pytest.mark.parametrize("method", ["sida", "js"])
def test_the_discriminator_affects_the_generator_from_its_start_on(method):
    """Start after 16 images, i.e. two steps of 8: its loss appears in the third step."""
    mesh, without = sharding.make_mesh(), with_real(method)
    without.adversarial.start = 10**6
    same = [
        of_states(few_steps(settings, mesh, steps))
        for steps in (2, 3)
        for settings in (with_real(method), without)
    ]
    generators = [
        {path: leaf for path, leaf in found.items() if "'generator'].params" in path}
        for found in same
    ]
    for path, leaf in generators[0].items():
        np.testing.assert_array_equal(leaf, generators[1][path])
    assert any((generators[2][path] != leaf).any() for path, leaf in generators[3].items())


@pytest.mark.whole_runs
def test_one_compiled_program_trains_every_k():
    settings = chain()
    denoise, params = as_denoise(build.module(settings))
    training = setup.distillation(settings, denoise, sharding.make_mesh())
    state, seen = training.init(params, params), set()
    constants, key = Constants(params), build.key_on(settings, "distillation", training.mesh)
    state, _ = training.call(state, constants, key)
    compiled = []

    def listener(name: str, seconds: float, **_: str) -> None:
        compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listener)
    for _ in range(8):
        state, metrics = training.call(state, constants, key)
        seen.add(int(np.argmax(jax.device_get(metrics["calls/steps"]))))
    jax.monitoring.unregister_event_duration_listener(listener)
    assert len(seen) > 2 and not [name for name in compiled if "compile" in name]


PROGRAM = """
import jax, numpy as np
from simjax.runtime import processes, sharding
from tests.train import test_devices as t
found = t.few_steps(t.options(), sharding.make_mesh({fsdp}))
if processes.is_first():
    np.savez("{file}", **found)
print(jax.device_count(), "devices")
"""


def test_with_a_bf16_teacher_the_state_stays_float32():
    settings = options(teacher=config.Teacher(dtype="bfloat16"), compute_dtype="bfloat16")
    denoise, params = as_denoise(build.module(settings))
    training = setup.distillation(settings, denoise, sharding.make_mesh())
    state, constants, key = setup.arguments_like(settings, training, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(constants)} == {jnp.dtype("bfloat16")}
    after, _ = jax.eval_shape(training.call, state, constants, key)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert {str(x.dtype) for x in jax.tree.leaves(after)} == {"float32", "int32"}


def test_states_are_sharded_over_fsdp():
    """Each of eight devices holds little over an eighth of the CIFAR-10 state."""
    share = float(
        subprocesses.on_devices(8, "from tests.train import test_devices as t\nt.share()")
    )
    assert 1 / 8 <= share <= 1 / 8 * 1.05


def share() -> None:
    """Prints the largest fraction of the state's bytes on one device, from the actual arrays."""
    settings = config.Config(network=config.SongUNet(label_dim=10), fsdp=8)
    shapes = jax.eval_shape(lambda: as_denoise(build.module(settings))[1])
    training = setup.distillation(settings, lambda *_: None, build.mesh(settings))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = training.init(*2 * [sharding.place(params, training.mesh)])
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) > 5 * 55e6
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(state):
        for part in leaf.addressable_shards:
            held[part.device] += part.data.nbytes
    print(max(held.values()) / sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
