"""Improved precision and recall from k-nearest-neighbour manifolds.

Reference: Kynkäänniemi et al., arXiv:1904.06991, section 2, k = 3. Distances are float32 matmuls on
the device, BLOCK rows at a time. Called from evaluation/evaluator.py.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from simjax.errors import ConfigError
from simjax.evaluation.statistics import require_comparable
from simjax.runtime import sharding
from simjax.typing import Array, typed

BLOCK = 1024  # rows of the distance matrix in memory at a time; our choice
# Tolerance of |a - b|^2 for float32 rounding, relative to |a|^2 + |b|^2: a pair within it of the
# radius counts as inside, so ties count. Equal rows of 2048 numbers reach 5e-7; our choice.
ROUNDING = 2e-6


@typed
def precision_recall(
    real: Float[np.ndarray, "n d"],
    generated: Float[np.ndarray, "m d2"],
    *,
    k: int = 3,
    mesh: Mesh | None = None,
) -> tuple[float, float]:
    """(precision, recall) of generated features.

    Precision is the fraction of generated rows on the manifold of the real ones, recall the
    fraction of real rows on the manifold of the generated ones.

    A set's manifold is the union of balls around its members, each with the distance to the
    member's k-th nearest neighbour in the set as radius.

    >>> real = np.arange(4.0)[:, None]
    >>> generated = np.array([[0.0], [1.0], [2.0], [9.0]])  # 9 is far from the real ones
    >>> precision_recall(real, generated, k=1)
    (0.75, 1.0)

    Args:
      mesh: devices over which the rows of a block are split; None: local devices.

    Raises:
      ConfigError: the feature dimensions differ, a number is not finite, or a set has at most k
        rows.
    """
    require_comparable("real features", real, "generated features", generated)
    if not 1 <= k < min(len(real), len(generated)):
        raise ConfigError(
            f"{len(real)} real and {len(generated)} generated images: precision and recall with "
            f"k = {k} need at least k + 1 of each, and k >= 1."
        )
    mesh = sharding.local_mesh() if mesh is None else mesh
    centre = real.mean(0, dtype=np.float64).astype(np.float32)  # centring reduces rounding errors
    real, generated = ((rows - centre).astype(np.float32) for rows in (real, generated))
    real_radius = _squared_radii(real, k, mesh)
    generated_radius = _squared_radii(generated, k, mesh)
    members = jax.device_put(real, sharding.replicated(mesh))
    near, reached = [], np.zeros(len(real), bool)
    for block, radius in _blocks(mesh, generated, generated_radius):
        in_real, in_block = _coverage(block, radius, members, real_radius, mesh)
        near.append(np.asarray(in_real))
        reached |= np.asarray(in_block)
    return float(np.concatenate(near)[: len(generated)].mean()), float(reached.mean())


def _squared_radii(rows: np.ndarray, k: int, mesh: Mesh) -> np.ndarray:
    """Squared distance from each row to its k-th nearest neighbour, excluding itself."""
    members = jax.device_put(rows, sharding.replicated(mesh))
    found = [np.asarray(_kth(block, members, k, mesh)) for (block,) in _blocks(mesh, rows)]
    return np.concatenate(found)[: len(rows)]


def _blocks(mesh: Mesh, *arrays: np.ndarray) -> Iterator[tuple[Array, ...]]:
    """Blocks of BLOCK rows; the last block wraps around to row 0."""
    size = sharding.rounded_up(BLOCK, mesh)
    for start in range(0, len(arrays[0]), size):
        index = np.arange(start, start + size) % len(arrays[0])
        yield jax.device_put(tuple(x[index] for x in arrays), sharding.batch_split(mesh))


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def _kth(
    rows: Float[Array, "b d"], members: Float[Array, "n d"], k: int, mesh: Mesh
) -> Float[Array, "b"]:
    squared, _ = _squared_distances(rows, members)
    nearest = -jax.lax.top_k(-squared, k + 1)[0]  # the first is the row itself
    return jax.lax.with_sharding_constraint(nearest[:, -1], sharding.replicated(mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def _coverage(
    rows: Float[Array, "b d"],
    row_radius: Float[Array, "b"],
    members: Float[Array, "n d"],
    member_radius: Float[Array, "n"],
    mesh: Mesh,
) -> tuple[Array, Array]:
    """Rows inside a ball around some member, and vice versa.

    Radii are squared.
    """
    squared, rounding = _squared_distances(rows, members)
    near = squared <= member_radius + rounding
    reached = squared <= row_radius[:, None] + rounding
    return jax.lax.with_sharding_constraint(
        (near.any(1), reached.any(0)), sharding.replicated(mesh)
    )


def _squared_distances(
    rows: Float[Array, "b d"], members: Float[Array, "n d"]
) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    """|a - b|^2 for every pair, and its rounding tolerance."""
    size = jnp.sum(rows**2, 1)[:, None] + jnp.sum(members**2, 1)
    products = jnp.matmul(rows, members.T, precision="highest")
    return size - 2 * products, ROUNDING * size
