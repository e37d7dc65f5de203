"""Where arrays live: one mesh with axes `data` and `fsdp`. The only file that names mesh axes.

Batches are split over both axes. Parameters, their EMA and optimizer states are split over `fsdp`
by RULES, and gathered where a network uses them. The same program runs on one CPU and on a pod.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from simjax.typing import Params

AXES = ("data", "fsdp")

# Path of a leaf (names joined by /) -> how its LAST axes are split. The first match counts; an
# axis that fsdp does not divide stays whole.
RULES = (
    (r"out_conv/kernel$", PartitionSpec("fsdp", None)),  # its outputs are image channels
    (r"kernel$", PartitionSpec("fsdp")),  # output features
    (r"", PartitionSpec()),  # biases, scales, counters: small, and a gather each
)


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes; at most `fsdp` along that axis (the largest that divides)."""
    devices = jax.devices() if devices is None else devices
    split = math.gcd(fsdp, len(devices))
    shape = (len(devices) // split, split)
    # Slices are tori; an axis of the mesh may need a part of one of theirs (8 of 4 x 4 x 4 chips).
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def local_mesh() -> Mesh:
    """The devices of this process alone, along `data`."""
    return make_mesh(devices=jax.local_devices())


def rounded_up(rows: int, mesh: Mesh) -> int:
    """The least number of rows, not below `rows`, that the devices share evenly."""
    return math.ceil(rows / mesh.size) * mesh.size


def on_cpus(mesh: Mesh) -> bool:
    """Whether the devices are CPUs; they are all of one kind."""
    return mesh.devices.flat[0].platform == "cpu"


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_split(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Asks the compiler to split every array's leading axis over all devices."""
    return jax.lax.with_sharding_constraint(tree, batch_split(mesh))


def gathered(params: Params, mesh: Mesh) -> Params:
    """Asks the compiler for whole parameters where a network uses them, and no longer.

    So are their gradients: summed over all devices, before each device updates its own part. Asked
    for split gradients at once, the compiler (of 2026) cuts convolutions into hundreds of pieces.
    """
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


STACK = "blocks"  # name of the parameters of equal blocks, which have a leading axis of blocks


def gathered_outside_stack(params: Params, mesh: Mesh) -> Params:
    """`gathered`, but for the parameters of a stack of blocks: they wait for `gathered_layer`."""

    def place(path: Any, leaf: Any) -> Any:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return leaf if STACK in names else gathered(leaf, mesh)

    return jax.tree.map_with_path(place, params)


def gathered_layer(layer: Params, mesh: Mesh) -> Params:
    """Whole parameters of one block, whose gradients are split again as soon as they are there."""

    @jax.custom_vjp
    def gather(layer: Params) -> Params:
        return gathered(layer, mesh)

    def backward(_: None, grads: Params) -> tuple[Params]:
        return (jax.lax.with_sharding_constraint(grads, by_rules(grads, mesh)),)

    gather.defvjp(lambda layer: (gather(layer), None), backward)
    return gather(layer)


def by_rules(tree: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every leaf (arrays or their shapes) of parameters or of a state."""
    return jax.tree.map_with_path(functools.partial(_by_rules, mesh=mesh), tree)


def _by_rules(path: Any, leaf: Any, *, mesh: Mesh) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    rule = next(spec for pattern, spec in RULES if re.search(pattern, name))
    axes = (None,) * (len(leaf.shape) - len(rule)) + tuple(rule)
    fits = (
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, leaf.shape, strict=True)
    )
    return NamedSharding(mesh, PartitionSpec(*fits))


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Shapes, types and shardings of parameters or of a state, without their values."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        by_rules(tree, mesh),
    )


def abstract_rows(rows: Any, mesh: Mesh) -> Any:
    """Shapes, types and shardings of rows (n, updates, b, ...): their third axis is split."""
    where = NamedSharding(mesh, PartitionSpec(None, None, AXES))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), rows
    )


def place(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds whole, split by the rules."""
    return jax.tree.map(placed, tree, by_rules(tree, mesh))


def place_whole(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds, whole on every device."""
    return jax.tree.map(lambda leaf: placed(leaf, replicated(mesh)), tree)


def placed(leaf: Any, where: NamedSharding) -> jax.Array:
    """One array that every process holds whole, where it belongs."""
    if isinstance(leaf, jax.Array) and leaf.sharding == where:
        return leaf
    if where.is_fully_addressable:
        return jax.device_put(leaf, where)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def to_host(tree: Any) -> Any:
    """Whole numpy arrays, one leaf after another; every process must call it, and gets all."""
    return jax.tree.map(_to_host, tree)


def _to_host(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
