"""References: what samples are compared with. Computed from real images, or read from a file.

Images: a data set, a folder, a zip, or an .npz as ADM's reference batches (arr_0). Statistics: an
.npz as EDM's fid-refs (mu, sigma). What is computed is kept in simjax's cache. Called by
evaluation/evaluator.py and the program that evaluates.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from simjax import data
from simjax.config import differences
from simjax.data.dataset import Dataset
from simjax.errors import ConfigError
from simjax.evaluation import features as spaces
from simjax.evaluation import images, statistics
from simjax.evaluation.features import Extractor
from simjax.porting import zoo

Say = Callable[[str], None]

BATCH = 512  # images read at a time; our choice
LARGEST_DIMENSION = 64 * 64 * 3  # of features: their covariance takes 1.2 GB; our choice
DDOF = 1  # EDM's (fid.py)
UNKNOWN = "reference of unknown protocol"


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What samples are compared with.

    Args:
      name: where it comes from.
      count: of images; None where a file does not tell.
      mean, covariance: of the features; denominator n - protocol["ddof"], or as the file has it.
      features, labels: of every image; None where a file holds statistics only, or no classes.
      protocol: "extractor" is the extractor's protocol, or UNKNOWN for files from elsewhere; then
        "data" (the fingerprint of the images), "count", "ddof" and "split" as far as known.
      sha256: of the file, or of what was computed.
    """

    name: str
    count: int | None
    mean: Float[np.ndarray, "d"]
    covariance: Float[np.ndarray, "d d"]
    features: Float[np.ndarray, "n d"] | None
    labels: Int[np.ndarray, "n"] | None
    protocol: dict[str, Any]
    sha256: str


def of(
    source: str,
    extractor: Extractor,
    *,
    split: str = "train",
    limit: int | None = None,
    sha256: str = "",
    say: Say = print,
) -> Reference:
    """The reference that a data source (simjax/data), a folder, a file or a URL stands for.

    Args:
      split: of a data source.
      limit: at most so many images, the first; statistics have the count that they have.
      sha256: what a file must be; "" accepts any.

    Raises:
      ConfigError: no such source, or one that is not comparable with the extractor's features.
    """
    if source.partition(":")[0] in data.SOURCES:
        dataset = data.open(source, split=split)
        return of_dataset(dataset, extractor, limit=limit, split=split, say=say)
    folder = None if zoo.is_url(source) else epath.Path(source).expanduser()
    if folder is None or source in zoo.ZOO or not folder.is_dir():
        return of_file(source, extractor, limit=limit, sha256=sha256, say=say)
    if (folder / "config.json").exists():
        raise ConfigError(f"{source} is a run or weights, expected a folder of images.")
    return of_dataset(images.read(folder), extractor, limit=limit, say=say)


def of_dataset(
    dataset: Dataset,
    extractor: Extractor,
    *,
    limit: int | None = None,
    split: str | None = None,
    say: Say = print,
) -> Reference:
    """Features and moments of the first `limit` images; from the cache, if it was done before.

    Args:
      split: for the protocol.

    Raises:
      ConfigError: fewer than two images, or features too long for a covariance.
    """
    count = dataset.size if limit is None else min(limit, dataset.size)
    if count < 2:
        raise ConfigError(f"{dataset.name}: {count} image(s) have no covariance; use at least two.")
    protocol = {
        "extractor": extractor.protocol,
        "data": dataset.fingerprint(),
        "count": count,
        "ddof": DDOF,
    }
    path = spaces.cache_file("references", protocol)
    found = _cached(path, protocol, say)
    if found is None:
        say(f"{dataset.name}: {extractor.name} features of {count} images")
        found = _computed(_first(dataset, count), extractor, protocol)
        _write(path, found)
    protocol = protocol | {"split": split}
    return dataclasses.replace(found, name=dataset.name, protocol=protocol)


def of_file(
    source: str,
    extractor: Extractor,
    *,
    limit: int | None = None,
    sha256: str = "",
    say: Say = print,
) -> Reference:
    """A file of statistics or of images, by its path or URL (porting.zoo.fetch).

    Its content tells which: mu and sigma, or arr_0, or a zip of images.

    Raises:
      ConfigError: missing, another file than sha256 says, none of the three, or statistics that
        are not of this extractor's features.
    """
    file = zoo.fetch(source, sha256=sha256, say=say)
    members = _members(file.path)
    is_npz = any(name.endswith(".npy") for name in members)
    if "arr_0.npy" in members:
        if "mu.npy" in members:
            say(f"{source}: its mu and sigma are of another extractor; only its images are used")
        dataset = dataclasses.replace(images.read(file.path), name=source)
        found = of_dataset(dataset, extractor, limit=limit, say=say)
    elif members and not is_npz:
        dataset = dataclasses.replace(data.open(f"zip:{file.path}"), name=source)
        found = of_dataset(dataset, extractor, limit=limit, say=say)
    else:
        found = _loaded(file.path)
        protocol = _comparable(source, found, extractor)
        if protocol["extractor"] == UNKNOWN:
            say(f"{source}: {UNKNOWN}; taken for {extractor.frechet} statistics")
        found = dataclasses.replace(found, name=source, protocol=protocol)
    return dataclasses.replace(found, sha256=file.sha256)


def _first(dataset: Dataset, count: int) -> Dataset:
    labels = None if dataset.labels is None else dataset.labels[:count]
    return dataclasses.replace(dataset, size=count, labels=labels)


def _computed(dataset: Dataset, extractor: Extractor, protocol: dict[str, Any]) -> Reference:
    stats, rows = None, None
    for batch, _ in data.batches(dataset, BATCH):
        features = extractor.extract(images.as_bytes(batch)).features
        if stats is None:
            stats, rows = _empty(dataset, features.shape[1])
        rows[stats.count : stats.count + len(features)] = features
        stats = statistics.add(stats, features)
    moments = statistics.moments(stats, ddof=DDOF)
    found = Reference(dataset.name, stats.count, *moments, rows, dataset.labels, protocol, "")
    return _hashed(found)


def _empty(dataset: Dataset, dimension: int) -> tuple[statistics.Statistics, np.ndarray]:
    if dimension > LARGEST_DIMENSION:
        raise ConfigError(
            f"{dataset.name}: {dimension} features an image, at most {LARGEST_DIMENSION} have a "
            "covariance that fits in memory; choose the features 'inception' or 'classifier'."
        )
    return statistics.empty(dimension), np.empty((dataset.size, dimension), np.float32)


def _write(path: Any, found: Reference) -> None:
    """The layout of statistics.load, with features and labels beside."""
    labels = {} if found.labels is None else {"labels": found.labels}
    images.write_arrays(
        path,
        mu=found.mean,
        sigma=found.covariance,
        count=np.array(found.count),
        protocol=np.array(json.dumps(found.protocol)),
        features=found.features,
        **labels,
    )


def _cached(path: Any, protocol: dict[str, Any], say: Say) -> Reference | None:
    """What was computed before; None if nothing was, or it is damaged."""
    if not path.exists():
        return None
    try:
        found = _loaded(epath.Path(path))
        if found.protocol != protocol or found.features is None:
            raise ConfigError(f"{path} is another reference.")
        return found
    except ConfigError as error:
        say(f"{error} It is computed again.")
        return None


def _loaded(path: epath.Path) -> Reference:
    """A file of statistics, with features and labels if it is ours.

    Raises:
      ConfigError: not such a file, or damaged.
    """
    stats = statistics.load(path)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            rows, labels = (file.get(name) for name in ("features", "labels"))
    except Exception as error:  # whatever is wrong with the file, the remedy is the same
        raise ConfigError(f"{path} is damaged ({error}); fetch or compute it again.") from error
    expected = (stats.count, len(stats.mean)), np.float32
    if rows is not None and (rows.shape, rows.dtype) != expected:
        raise ConfigError(f"{path} is damaged: features of {rows.dtype} {rows.shape}.")
    if labels is not None and labels.shape != (stats.count,):
        raise ConfigError(f"{path} is damaged: {labels.shape} labels of {stats.count} images.")
    moments = stats.mean, stats.covariance
    return _hashed(Reference(str(path), stats.count, *moments, rows, labels, stats.protocol, ""))


def _hashed(found: Reference) -> Reference:
    """With the sha256 of all but the name."""
    total = hashlib.sha256(json.dumps([found.count, found.protocol], sort_keys=True).encode())
    for array in (found.mean, found.covariance, found.features, found.labels):
        total.update(b"" if array is None else np.ascontiguousarray(array))
    return dataclasses.replace(found, sha256=total.hexdigest())


def _members(path: epath.Path) -> list[str]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return []  # statistics.load says what it is not


def _comparable(source: str, found: Reference, extractor: Extractor) -> dict[str, Any]:
    """The protocol of a file of statistics, if they are of the extractor's features."""
    dimension = extractor.protocol.get("dimension", len(found.mean))
    if len(found.mean) != dimension:
        raise ConfigError(
            f"{source} has statistics of {len(found.mean)} features, but {extractor.name} has "
            f"{dimension}; choose the extractor that it was made with."
        )
    if found.protocol:
        saved = found.protocol.get("extractor", found.protocol)
        different = differences(saved, extractor.protocol)
        if different:
            lines = "\n  ".join(different)
            raise ConfigError(
                f"{source} was made with other features than {extractor.name} here (file -> "
                f"here):\n  {lines}\nCompute it anew, or choose what it was made with."
            )
        return found.protocol
    if extractor.name != "inception":
        raise ConfigError(
            f"{source} does not say what it was made with, so it is taken for Inception "
            f"statistics, but the features here are {extractor.name!r}; choose 'inception'."
        )
    return {"extractor": UNKNOWN}
