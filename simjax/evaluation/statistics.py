"""Streaming mean and covariance of features, and files of them.

Devices sum one batch in float32; batches are merged on the host in float64 (Chan, Golub and
LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979).
Files have the layout of EDM's fid-refs. Called by evaluator.py, reference.py and the metrics.
"""

import dataclasses
import functools
import io
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float

from simjax.errors import ConfigError
from simjax.runtime import sharding
from simjax.typing import Array, typed

ROWS = 512  # summed at once on one device, for a float32 error of 1e-7; our choice
# Largest |C - C^T| / max |C| of a stored covariance, enough for float32; our choice.
SYMMETRY = 1e-5


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Streaming moments of n rows, float64.

    Attributes:
      count: n.
      mean: sum / n.
      scatter: sum of (row - mean) (row - mean)^T.
    """

    count: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Contents of a file of statistics.

    Files not written by simjax have no count (None) and no protocol ({}).
    """

    mean: Float[np.ndarray, "d"]
    covariance: Float[np.ndarray, "d d"]
    count: int | None
    protocol: dict[str, Any]


def empty(dim: int) -> Statistics:
    """Statistics of zero rows.

    >>> empty(2).mean.tolist()
    [0.0, 0.0]
    """
    return Statistics(0, np.zeros(dim), np.zeros((dim, dim)))


@typed
def add(
    stats: Statistics,
    features: Float[Array, "n d"],
    *,
    count: int | None = None,
    mesh: Mesh | None = None,
) -> Statistics:
    """Adds the first `count` rows of a batch, summed in float32.

    >>> stats = add(empty(1), np.array([[1.0], [3.0]], np.float32))
    >>> mean, cov = moments(stats)
    >>> mean.tolist(), cov.tolist()
    ([2.0], [[2.0]])

    Args:
      count: rows from this index on are padding and may hold anything; None: no padding.
      mesh: devices over which rows are split, not necessarily evenly; None: local devices.

    Raises:
      ConfigError: the number of features has changed, or a feature is not finite.
    """
    count = len(features) if count is None else count
    if not 0 <= count <= len(features):
        raise ConfigError(f"count = {count} for a batch of {len(features)} rows.")
    _require_width("a batch of features", features.shape[1], "those before it", len(stats.mean))
    mesh = sharding.local_mesh() if mesh is None else mesh
    step = ROWS * mesh.size
    for start in range(0, count, step):
        used = min(step, count - start)
        stats = merge(stats, _batch(features[start : start + step], used, mesh))
    return stats


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of the union of two sets of rows.

    >>> zero, one = (Statistics(1, np.full(1, x), np.zeros((1, 1))) for x in (0.0, 1.0))
    >>> merge(zero, one)
    Statistics(count=2, mean=array([0.5]), scatter=array([[0.5]]))
    """
    count = a.count + b.count
    share = b.count / max(count, 1)
    step = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(step, step) * (a.count * share)
    return Statistics(count, a.mean + step * share, scatter)


def moments(
    stats: Statistics, *, ddof: int = 1
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """Mean and covariance, denominator n - ddof.

    ddof = 1 is EDM's (fid.py), 0 SiD's.

    Raises:
      ConfigError: fewer than two rows.
    """
    if stats.count < 2:
        raise ConfigError(f"{stats.count} image(s) have no covariance; use at least two.")
    return stats.mean, stats.scatter / (stats.count - ddof)


def load(path: Any) -> Reference:
    """Reads mu and sigma from an .npz as EDM's fid.py writes it.

    Count and protocol are read too if present.

    Raises:
      ConfigError: another format, or mu and sigma are not a mean and a covariance.
    """
    try:
        with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as file:
            mean = file["mu"].astype(np.float64, casting="same_kind")
            covariance = file["sigma"].astype(np.float64, casting="same_kind")
            count = int(file["count"]) if "count" in file else None
            protocol = dict(json.loads(str(file["protocol"]))) if "protocol" in file else {}
    except Exception as error:  # any damage has the same remedy
        raise ConfigError(
            f"{path} is not a file of feature statistics ({type(error).__name__}: {error}); "
            "expected an .npz of arrays mu and sigma, like EDM's fid-refs."
        ) from error
    if mean.ndim != 1 or not mean.size or covariance.shape != 2 * mean.shape:
        raise ConfigError(
            f"{path}: mu has shape {mean.shape} and sigma {covariance.shape}; expected (d,) and "
            "(d, d)."
        )
    require_finite(f"{path}: mu and sigma", mean, covariance)
    asymmetry = np.abs(covariance - covariance.T).max()
    if asymmetry > SYMMETRY * np.abs(covariance).max():
        raise ConfigError(
            f"{path}: sigma is not a covariance: it differs from its transpose by {asymmetry:.3g}."
        )
    return Reference(mean, covariance, count, protocol)


def require_finite(name: str, *arrays: np.ndarray) -> None:
    """Raises if an array has NaN or infinity.

    Raises:
      ConfigError: with `name` in the message.
    """
    if not all(np.isfinite(x).all() for x in arrays):
        raise ConfigError(
            f"{name}: not all numbers are finite, so no metric is defined; check the images and "
            "the parameters of the network that drew them."
        )


def require_comparable(name_a: str, a: np.ndarray, name_b: str, b: np.ndarray) -> None:
    """Raises unless both are finite and have the same number of features.

    Raises:
      ConfigError: with both dimensions in the message.
    """
    _require_width(name_a, a.shape[-1], name_b, b.shape[-1])
    require_finite(name_a, a)
    require_finite(name_b, b)


def _batch(features: Float[Array, "n d"], count: int, mesh: Mesh) -> Statistics:
    """Statistics of the first `count` rows, centred first to avoid cancellation."""
    if padding := -len(features) % mesh.size:
        features = jnp.pad(features, ((0, padding), (0, 0)))
    rows = jax.device_put(features, sharding.batch_split(mesh))
    centre = np.asarray(_total(rows, 0.0, count, mesh)) / np.float32(count)
    off = np.asarray(_total(rows, centre, count, mesh), np.float64)  # rounding error of centre
    scatter = np.asarray(_scatter(rows, centre, count, mesh), np.float64)
    require_finite("a batch of features", off, scatter)
    return Statistics(count, centre + off / count, scatter - np.outer(off, off) / count)


@functools.partial(jax.jit, static_argnames="mesh")
def _total(features: Array, centre: Array, count: Array, mesh: Mesh) -> Float[Array, "d"]:
    """Sum of (row - centre) over the first `count` rows."""
    total = _centred(features, centre, count).sum(0)
    return jax.lax.with_sharding_constraint(total, sharding.replicated(mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def _scatter(features: Array, centre: Array, count: Array, mesh: Mesh) -> Float[Array, "d d"]:
    """Scatter matrix of the first `count` rows about `centre`."""
    rest = _centred(features, centre, count)
    scatter = jnp.matmul(rest.T, rest, precision="highest")
    return jax.lax.with_sharding_constraint(scatter, sharding.replicated(mesh))


def _centred(features: Array, centre: Array, count: Array) -> Float[Array, "n d"]:
    """Rows after `count` become zero."""
    used = (jnp.arange(len(features)) < count)[:, None]
    return jnp.where(used, features.astype(jnp.float32) - centre, 0)


def _require_width(name_a: str, a: int, name_b: str, b: int) -> None:
    if a != b:
        raise ConfigError(
            f"{name_a}: rows of {a} numbers, {name_b}: of {b}; expected features of the same "
            "network for both."
        )
