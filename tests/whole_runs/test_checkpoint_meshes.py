"""A checkpoint written on one mesh is restored bitwise on every other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from simjax.runtime import checkpoint, sharding
from simjax.train import state
from tests.helpers import subprocesses

pytestmark = pytest.mark.whole_runs

TX = optax.sgd(0.1, momentum=0.9)
MESHES = {"1": (1, 1), "8": (8, 8), "2x4": (8, 4)}  # devices, fsdp
STEP = 3


def known(mesh) -> state.TrainState:
    """A state with known values, sharded over the mesh."""
    made = jax.eval_shape(
        lambda p: state.init_distillation(p, p, fake_score_tx=TX, generator_tx=TX),
        {"layer": {"kernel": jnp.zeros((24, 48)), "bias": jnp.zeros(48)}},
    )
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), made)
    return sharding.place(values, mesh).replace(step=sharding.place(np.int32(STEP), mesh))


def blank(mesh) -> state.TrainState:
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), known(mesh))
    return sharding.place(zeros, mesh)


def mesh_named(name: str):
    devices, fsdp = MESHES[name]
    return sharding.make_mesh(fsdp, jax.devices()[:devices])


def write(directory: epath.Path, mesh) -> None:
    checkpoints = checkpoint.Checkpoints(epath.Path(directory), keep=1, say=print)
    checkpoints.save(known(mesh))
    checkpoints.close()


def read(directory: epath.Path, mesh) -> None:
    """Restores onto the mesh and compares all values and shardings."""
    checkpoints = checkpoint.Checkpoints(epath.Path(directory), keep=None, say=print)
    like = blank(mesh)
    found, expected = checkpoints.restore_latest(like), known(mesh)
    checkpoints.close()
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(f"{a.sharding}"), found, like)
    jax.tree.map(np.testing.assert_array_equal, sharding.to_host(found), sharding.to_host(expected))


def test_checkpoints_restore_on_every_mesh_and_process_count(tmp_path):
    one_process = """
from tests.whole_runs import test_checkpoint_meshes as t
for name in t.MESHES:
    t.write("{0}/" + name, t.mesh_named(name))
for written in t.MESHES:
    for name in t.MESHES:
        t.read("{0}/" + written, t.mesh_named(name))
"""
    two_processes = """
from simjax.runtime import processes, sharding
from tests.whole_runs import test_checkpoint_meshes as t
processes.join()
for fsdp in (1, 4):
    t.write("{0}/two" + str(fsdp), sharding.make_mesh(fsdp))
    for written in ("two" + str(fsdp), *t.MESHES):
        t.read("{0}/" + written, sharding.make_mesh(fsdp))
"""
    back = """
from tests.whole_runs import test_checkpoint_meshes as t
for written in ("two1", "two4"):
    for name in t.MESHES:
        t.read("{0}/" + written, t.mesh_named(name))
"""
    subprocesses.on_devices(8, one_process.format(tmp_path))
    for process in subprocesses.start(["-c", two_processes.format(tmp_path)], 2, devices=2):
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    subprocesses.on_devices(8, back.format(tmp_path))


def test_damage_seen_by_one_process_makes_all_fall_back(tmp_path):
    program = f"""
import pathlib
from simjax.runtime import processes, sharding, checkpoint
from etils import epath
from tests.whole_runs import test_checkpoint_meshes as t
processes.join()
mesh = sharding.make_mesh(4)
checkpoints = checkpoint.Checkpoints(epath.Path("{tmp_path}/c"), keep=3, say=print)
for step in (1, 2):
    state = t.known(mesh)
    checkpoints.save(state.replace(step=sharding.place(t.np.int32(step), mesh)))
checkpoints.wait()
if processes.is_first():
    (pathlib.Path("{tmp_path}/c/2/note/metadata")).write_text("")
processes.wait("damaged")
found = checkpoints.restore_latest(t.blank(mesh))
print("restored", int(found.step))
checkpoints.close()
"""
    for process in subprocesses.start(["-c", program], 2, devices=2):
        output = process.communicate(timeout=300)[0]
        assert "restored 1" in output, output
    assert (tmp_path / "c_damaged" / "2").exists()
