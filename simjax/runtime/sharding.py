"""Sharding over a mesh with axes `data` and `fsdp`, named only here.

Batches are sharded over both axes. Parameters, their EMA and optimizer states are sharded over
`fsdp` by RULES, and all-gathered where a network uses them. The same program runs on one CPU and on
a pod.
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

# Path of a leaf (names joined by /) -> sharding of its LAST axes. The first match applies; an axis
# whose size fsdp does not divide is replicated.
RULES = (
    (r"out_conv/kernel$", PartitionSpec("fsdp", None)),  # input features: outputs are channels
    (r"kernel$", PartitionSpec("fsdp")),  # output features
    (r"", PartitionSpec()),  # biases, scales, counters: small, not worth an all-gather each
)


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh (data, fsdp) over all devices of all processes.

    Args:
      fsdp: size of that axis; reduced to the greatest common divisor with the device count.

    >>> mesh = make_mesh(fsdp=8, devices=jax.devices()[:1])
    >>> dict(mesh.shape)
    {'data': 1, 'fsdp': 1}
    """
    devices = jax.devices() if devices is None else devices
    split = math.gcd(fsdp, len(devices))
    shape = (len(devices) // split, split)
    # TPU slices are tori; a mesh axis may need part of a physical axis (8 of 4 x 4 x 4 chips).
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def local_mesh() -> Mesh:
    """Mesh of this process's devices, all along `data`."""
    return make_mesh(devices=jax.local_devices())


def rounded_up(rows: int, mesh: Mesh) -> int:
    """Rounds a batch size up to a multiple of the device count.

    >>> rounded_up(5, make_mesh(devices=jax.devices()[:1]))
    5
    """
    return math.ceil(rows / mesh.size) * mesh.size


def on_cpus(mesh: Mesh) -> bool:
    """Whether the mesh's devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def replicated(mesh: Mesh) -> NamedSharding:
    """Replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_split(mesh: Mesh) -> NamedSharding:
    """Leading axis sharded over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Constrains every array's leading axis to be sharded over all devices."""
    return jax.lax.with_sharding_constraint(tree, batch_split(mesh))


def gathered(params: Params, mesh: Mesh) -> Params:
    """All-gathers parameters where a network uses them.

    Their gradients are all-reduced before each device updates its own shard. With a
    reduce-scatter constraint instead, the XLA of 2026 splits convolutions into hundreds of pieces.
    """
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


STACK = "blocks"  # path name of the stacked parameters of equal blocks; their first axis is depth


def gathered_outside_stack(params: Params, mesh: Mesh) -> Params:
    """`gathered` for all parameters except those of a block stack.

    Those are gathered block by block, by `gathered_layer`.
    """

    def place(path: Any, leaf: Any) -> Any:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return leaf if STACK in names else gathered(leaf, mesh)

    return jax.tree.map_with_path(place, params)


def gathered_layer(layer: Params, mesh: Mesh) -> Params:
    """All-gathers one block's parameters; their gradients are resharded immediately."""

    @jax.custom_vjp
    def gather(layer: Params) -> Params:
        return gathered(layer, mesh)

    def backward(_: None, grads: Params) -> tuple[Params]:
        return (jax.lax.with_sharding_constraint(grads, by_rules(grads, mesh)),)

    gather.defvjp(lambda layer: (gather(layer), None), backward)
    return gather(layer)


def by_rules(tree: Any, mesh: Mesh) -> Any:
    """NamedSharding of every leaf of parameters or of a state, by RULES.

    Args:
      tree: of arrays, or of their shapes.
    """
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
    """ShapeDtypeStructs with shardings of parameters or of a state."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        by_rules(tree, mesh),
    )


def abstract_rows(rows: Any, mesh: Mesh) -> Any:
    """ShapeDtypeStructs of examples (n, updates, b, ...) with b sharded."""
    where = NamedSharding(mesh, PartitionSpec(None, None, AXES))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), rows
    )


def place(tree: Any, mesh: Mesh) -> Any:
    """Shards arrays by RULES; every process passes the full arrays."""
    return jax.tree.map(placed, tree, by_rules(tree, mesh))


def place_whole(tree: Any, mesh: Mesh) -> Any:
    """Replicates arrays on every device; every process passes the full arrays."""
    return jax.tree.map(lambda leaf: placed(leaf, replicated(mesh)), tree)


def placed(leaf: Any, where: NamedSharding) -> jax.Array:
    """Places one array with a sharding; every process passes the full array."""
    if isinstance(leaf, jax.Array) and leaf.sharding == where:
        return leaf
    if where.is_fully_addressable:
        return jax.device_put(leaf, where)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def to_host(tree: Any) -> Any:
    """Full numpy arrays on every process, gathered leaf by leaf.

    A collective: every process must call it.
    """
    return jax.tree.map(_to_host, tree)


def _to_host(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
