"""Where arrays live: one mesh with axes `data` and `fsdp`. The only file that names mesh axes.

Batches are split over both axes. Parameters and optimizer states are whole on every device.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from simjax.typing import Any

AXES = ("data", "fsdp")


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices along `data`, one along `fsdp`."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices).reshape(-1, 1), AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_split(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Asks the compiler to split every array's leading axis over all devices."""
    return jax.lax.with_sharding_constraint(tree, batch_split(mesh))
