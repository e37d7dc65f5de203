"""Checkpoints: bitwise restores, detected damage, fallback to the previous one."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simjax.errors import ConfigError
from simjax.runtime import checkpoint
from simjax.train import state

TX = optax.sgd(0.1, momentum=0.9)


def make(step: int) -> state.TrainState:
    params = {"layer": {"kernel": jax.random.normal(jax.random.key(step), (64, 48))}}
    made = state.init_distillation(params, params, fake_score_tx=TX, generator_tx=TX)
    return made.replace(step=jnp.int32(step))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def saved(tmp_path, said):
    """The writer of a directory with checkpoints 1 and 2."""
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=2, say=said.append)
    for step in (1, 2):
        checkpoints.save(make(step))
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_newest_checkpoint_is_restored_bitwise(saved, said):
    assert_same(saved.restore_latest(make(0)), make(2))
    assert not said


def test_restoring_without_a_checkpoint_returns_none(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path / "none", keep=1, say=print)
    assert checkpoints.restore_latest(make(0)) is None
    checkpoints.close()


def array_files(directory):
    """Files with a tree's arrays, largest first."""
    files = [f for f in Path(directory).rglob("*") if f.is_file() and f.parent.name == "d"]
    return sorted(files, key=lambda f: -f.stat().st_size)


def truncate(step_directory):
    for file in array_files(step_directory):
        file.write_bytes(file.read_bytes()[:100])


def flip_bits(step_directory):
    file = array_files(step_directory)[0]
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    file.write_bytes(bytes(content))


def remove_item(step_directory):
    for file in Path(step_directory / "generator").rglob("*"):
        if file.is_file():
            file.unlink()


def empty_note(step_directory):
    for file in (step_directory / "note").glob("*"):
        file.write_text("{}")


@pytest.mark.parametrize("damage", [truncate, flip_bits, remove_item, empty_note])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_restored(saved, said, damage):
    damage(saved.directory / "2")
    assert_same(saved.restore_latest(make(0)), make(1))
    assert len(said) == 1
    assert "checkpoint 2 is damaged" in said[0]
    saved.save(make(2))  # its directory is free again
    saved.wait()
    assert_same(saved.restore_latest(make(0)), make(2))


def test_changed_values_in_readable_files_fail_the_checksum(saved, said, monkeypatch):
    real = checkpoint._checksums
    monkeypatch.setattr(
        checkpoint, "_checksums", lambda trees: {k: v + 1 for k, v in real(trees).items()}
    )
    assert saved.restore_latest(make(0)) is None
    assert "the checksum of fake_score does not match" in said[0]


def reader(saved, said):
    return checkpoint.Checkpoints(saved.directory, keep=None, say=said.append)


def test_a_reader_restores_one_tree_while_a_run_is_saving(saved, said):
    unfinished = saved.directory / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    only_read = reader(saved, said)
    tree, step = only_read.restore_tree("generator", make(0).generator)
    assert step == 2
    assert_same(tree, make(2).generator)
    assert unfinished.exists()  # the other process's save in progress is kept
    only_read.close()


@pytest.mark.parametrize("damage", [truncate, flip_bits, remove_item, empty_note])
def test_restoring_a_damaged_tree_is_refused(saved, said, damage):
    damage(saved.directory / "2")
    only_read = reader(saved, said)
    with pytest.raises(ConfigError, match="is damaged .* resume the run"):
        for name in ("generator", "fake_score", "generator_ema"):
            only_read.restore_tree(name, make(0).generator)


def test_reading_without_a_checkpoint_is_refused(tmp_path, said):
    with pytest.raises(ConfigError, match="nothing was saved there yet"):
        checkpoint.Checkpoints(tmp_path / "none", keep=None, say=said.append)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        checkpoint.Checkpoints(tmp_path / "empty", keep=None, say=said.append).restore_tree("x", {})


def test_a_stored_teacher_keeps_its_provenance_and_damage_is_refused(tmp_path):
    params = make(3).generator
    checkpoint.save_teacher(tmp_path / "teacher", params, {"source": "a test"})
    restored = checkpoint.load_teacher(tmp_path / "teacher", params)
    provenance = checkpoint.load_provenance(tmp_path / "teacher")
    assert_same(restored, params)
    assert provenance["source"] == "a test"
    assert provenance["sha256"] == checkpoint.params_sha256(params)
    truncate(tmp_path / "teacher")
    with pytest.raises(ConfigError, match="delete that directory to rebuild it"):
        checkpoint.load_teacher(tmp_path / "teacher", params)


def test_a_teacher_with_changed_values_is_refused(tmp_path, monkeypatch):
    params = make(3).generator
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_checksums", lambda trees: {"params": 7})
        checkpoint.save_teacher(tmp_path / "teacher", params, {"source": "a test"})
    with pytest.raises(ConfigError, match=r"its checksum is \d+, expected 7; delete"):
        checkpoint.load_teacher(tmp_path / "teacher", params)


def test_params_sha256_depends_on_names_shapes_dtypes_and_bits():
    params = {"a": np.zeros((2, 3), np.float32)}
    variants = [
        {"b": params["a"]},
        {"a": params["a"].reshape(3, 2)},
        {"a": params["a"].view(np.int32)},
        {"a": np.float32([[0, 0, 0], [0, 0, -0.0]])},
    ]
    hashes = {checkpoint.params_sha256(variant) for variant in [params, *variants]}
    assert len(hashes) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_checksums_of_host_and_devices_agree(dtype):
    leaves = [jnp.arange(7).reshape(7, 1).astype(dtype) * 3 - 5, jnp.ones((), dtype)]
    on_devices = list(map(int, checkpoint._on_devices(leaves)))
    assert checkpoint._leaf_checksums(leaves) == on_devices
    swapped = [leaves[0][::-1], leaves[1]]
    assert checkpoint._leaf_checksums(swapped) != on_devices


def test_checksums_equal_those_of_earlier_versions():
    leaves = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.float32([1, -1])}
    assert checkpoint._checksums({"params": leaves}) == {"params": 228589568}  # by commit 365bb59


@pytest.mark.parametrize("dtype", ["float", "int"])
def test_64_bit_leaves_have_the_checksum_of_their_32_bit_cast(dtype):
    wide = np.arange(12).reshape(3, 4).astype(f"{dtype}64") - 5
    narrow = [wide.astype(f"{dtype}32")]
    assert checkpoint._leaf_checksums([wide]) == checkpoint._leaf_checksums(narrow)
    assert checkpoint._leaf_checksums([wide]) == list(map(int, checkpoint._on_devices([wide])))
    with jax.enable_x64(True):
        assert list(map(int, checkpoint._on_devices([wide]))) == checkpoint._leaf_checksums(narrow)
