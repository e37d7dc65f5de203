"""Mean and covariance of features that are never in memory at once, their files, their refusals.

A device sums one batch in float32; batches are merged on the host in float64 (Chan, Golub and
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

ROWS = 512  # summed at a time on one device: float32 then keeps 1e-7; our choice
SYMMETRY = 1e-5  # largest |C - C^T| / max |C| of a stored covariance, float32's; our choice


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What n rows leave behind, float64: sum / n, and sum (row - mean) (row - mean)^T."""

    count: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]


@dataclasses.dataclass(frozen=True)
class Reference:
    """A file of statistics; files from elsewhere have no count (None) and no protocol ({})."""

    mean: Float[np.ndarray, "d"]
    covariance: Float[np.ndarray, "d d"]
    count: int | None
    protocol: dict[str, Any]


def empty(dim: int) -> Statistics:
    """Statistics of no rows."""
    return Statistics(0, np.zeros(dim), np.zeros((dim, dim)))


@typed
def add(
    stats: Statistics,
    features: Float[Array, "n d"],
    *,
    count: int | None = None,
    mesh: Mesh | None = None,
) -> Statistics:
    """Statistics with the first `count` rows of a batch too; the batch's sums are float32.

    Args:
      count: rows after these are padding and may hold anything; None takes all.
      mesh: devices that share the work; None takes this process's. Rows need not divide evenly.

    Raises:
      ConfigError: rows of another length than before, or not finite.
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
    """Statistics of the rows of both: scatters add up, and so does that of the two means."""
    count = a.count + b.count
    share = b.count / max(count, 1)
    step = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(step, step) * (a.count * share)
    return Statistics(count, a.mean + step * share, scatter)


def moments(
    stats: Statistics, *, ddof: int = 1
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """Mean, and covariance with denominator n - ddof: 1 is EDM's (fid.py), 0 SiD's.

    Raises:
      ConfigError: fewer than two rows.
    """
    if stats.count < 2:
        raise ConfigError(f"{stats.count} image(s) have no covariance; use at least two.")
    return stats.mean, stats.scatter / (stats.count - ddof)


def load(path: Any) -> Reference:
    """mu and sigma of an .npz, as EDM's fid.py writes it; count and protocol if they are there.

    Raises:
      ConfigError: not such a file, or its numbers cannot be a mean and a covariance.
    """
    try:
        with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as file:
            mean = file["mu"].astype(np.float64, casting="same_kind")
            covariance = file["sigma"].astype(np.float64, casting="same_kind")
            count = int(file["count"]) if "count" in file else None
            protocol = dict(json.loads(str(file["protocol"]))) if "protocol" in file else {}
    except Exception as error:  # whatever is wrong with the file, the remedy is the same
        raise ConfigError(
            f"{path} is not a file of feature statistics ({type(error).__name__}: {error}); it "
            "must be an .npz of arrays mu and sigma, as EDM's fid-refs."
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
            f"{path}: sigma is not symmetric (by {asymmetry:.3g}), so not a covariance."
        )
    return Reference(mean, covariance, count, protocol)


def require_finite(name: str, *arrays: np.ndarray) -> None:
    """Refuses NaN and infinity.

    Raises:
      ConfigError: with the name of what they are in.
    """
    if not all(np.isfinite(x).all() for x in arrays):
        raise ConfigError(
            f"{name}: not all numbers are finite, so no metric is defined; look at the images and "
            "the parameters that they came from."
        )


def require_comparable(name_a: str, a: np.ndarray, name_b: str, b: np.ndarray) -> None:
    """Refuses two sets of features (or means) that are not of one length, or not finite.

    Raises:
      ConfigError: with what came.
    """
    _require_width(name_a, a.shape[-1], name_b, b.shape[-1])
    require_finite(name_a, a)
    require_finite(name_b, b)


def _batch(features: Float[Array, "n d"], count: int, mesh: Mesh) -> Statistics:
    """Statistics of the first `count` rows; the device centres them, so that nothing cancels."""
    if padding := -len(features) % mesh.size:
        features = jnp.pad(features, ((0, padding), (0, 0)))
    rows = jax.device_put(features, sharding.batch_split(mesh))
    centre = np.asarray(_total(rows, 0.0, count, mesh)) / np.float32(count)
    off = np.asarray(_total(rows, centre, count, mesh), np.float64)  # what float32 lost of the mean
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
    """Sum of (row - centre) (row - centre)^T over the first `count` rows."""
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
            f"{name_a}: rows of {a} numbers, {name_b}: of {b}; both must come from the same "
            "feature network."
        )
