"""References for FID and other metrics, from images or files.

Images: a data set, a folder, a zip, or an .npz like ADM's reference batches (arr_0). Statistics: an
.npz like EDM's fid-refs (mu, sigma). Computed references are kept in simjax's cache. Called by
evaluation/evaluator.py and simjax/commands/evaluate.py.
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
LARGEST_DIMENSION = 64 * 64 * 3  # features; the covariance then takes 1.2 GB; our choice
DDOF = 1  # EDM's (fid.py)
UNKNOWN = "reference of unknown protocol"


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Feature statistics that samples are compared with.

    Args:
      name: data source, path or URL.
      count: number of images; None if the file does not record it.
      mean, covariance: moments of the features; denominator n - protocol["ddof"], or the file's.
      features, labels: of every image; None if the file has only statistics, or no labels.
      protocol: "extractor" is the extractor's protocol, or UNKNOWN for files without one; and
        "data" (fingerprint of the images), "count", "ddof" and "split" if known.
      sha256: checksum of the file, or of the computed arrays.
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
    """Reference from a data source, a folder, a file or a URL.

    Args:
      split: split of a data source.
      limit: use only the first `limit` images; ignored for files of statistics.
      sha256: expected checksum of a file; "" accepts any.

    Raises:
      ConfigError: no such source, or statistics of other features than the extractor's.
    """
    if source.partition(":")[0] in data.SOURCES:
        dataset = data.open(source, split=split)
        return of_dataset(dataset, extractor, limit=limit, split=split, say=say)
    folder = None if zoo.is_url(source) else epath.Path(source).expanduser()
    if folder is None or source in zoo.ZOO or not folder.is_dir():
        return of_file(source, extractor, limit=limit, sha256=sha256, say=say)
    if (folder / "config.json").exists():
        raise ConfigError(f"{source} is a run or a model, expected a folder of images.")
    return of_dataset(images.read(folder), extractor, limit=limit, say=say)


def of_dataset(
    dataset: Dataset,
    extractor: Extractor,
    *,
    limit: int | None = None,
    split: str | None = None,
    say: Say = print,
) -> Reference:
    """Reference from the first `limit` images of a data set; cached.

    Args:
      split: recorded in the protocol.

    Raises:
      ConfigError: fewer than two images, or too many features for a covariance matrix.
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
    """Reference from a file, given by path or URL (porting.zoo.fetch).

    The format is detected from the content: .npz with arr_0 (images), .npz with mu and sigma
    (statistics), or a zip of images.

    Raises:
      ConfigError: the file is missing, has another checksum or another format, or its statistics
        are not of this extractor's features.
    """
    file = zoo.fetch(source, sha256=sha256, say=say)
    members = _members(file.path)
    is_npz = any(name.endswith(".npy") for name in members)
    if "arr_0.npy" in members:
        if "mu.npy" in members:
            say(f"{source}: using only its images; its mu and sigma are of another extractor")
        dataset = dataclasses.replace(images.read(file.path), name=source)
        found = of_dataset(dataset, extractor, limit=limit, say=say)
    elif members and not is_npz:
        dataset = dataclasses.replace(data.open(f"zip:{file.path}"), name=source)
        found = of_dataset(dataset, extractor, limit=limit, say=say)
    else:
        found = _loaded(file.path)
        protocol = _comparable(source, found, extractor)
        if protocol["extractor"] == UNKNOWN:
            say(f"{source}: {UNKNOWN}; assuming {extractor.frechet} statistics")
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
            f"{dataset.name}: {dimension} features per image, expected at most {LARGEST_DIMENSION} "
            "for the covariance to fit in memory; choose the features 'inception' or 'classifier'."
        )
    return statistics.empty(dimension), np.empty((dataset.size, dimension), np.float32)


def _write(path: Any, found: Reference) -> None:
    """Writes the layout of statistics.load, plus features and labels."""
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
    """Reference from the cache; None if missing or damaged."""
    if not path.exists():
        return None
    try:
        found = _loaded(epath.Path(path))
        if found.protocol != protocol or found.features is None:
            raise ConfigError(f"{path} holds another reference.")
        return found
    except ConfigError as error:
        say(f"{error} Computing it again.")
        return None


def _loaded(path: epath.Path) -> Reference:
    """Reads a file of statistics, with features and labels if present.

    Raises:
      ConfigError: another format, or damaged.
    """
    stats = statistics.load(path)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            rows, labels = (file.get(name) for name in ("features", "labels"))
    except Exception as error:  # any damage has the same remedy
        raise ConfigError(f"{path} is damaged ({error}); fetch or compute it again.") from error
    expected = (stats.count, len(stats.mean)), np.float32
    if rows is not None and (rows.shape, rows.dtype) != expected:
        raise ConfigError(f"{path} is damaged: features are {rows.dtype} {rows.shape}.")
    if labels is not None and labels.shape != (stats.count,):
        raise ConfigError(
            f"{path} is damaged: labels of shape {labels.shape} for {stats.count} images."
        )
    moments = stats.mean, stats.covariance
    return _hashed(Reference(str(path), stats.count, *moments, rows, labels, stats.protocol, ""))


def _hashed(found: Reference) -> Reference:
    """Adds the sha256 of everything but the name."""
    total = hashlib.sha256(json.dumps([found.count, found.protocol], sort_keys=True).encode())
    for array in (found.mean, found.covariance, found.features, found.labels):
        total.update(b"" if array is None else np.ascontiguousarray(array))
    return dataclasses.replace(found, sha256=total.hexdigest())


def _members(path: epath.Path) -> list[str]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return []  # statistics.load raises the error


def _comparable(source: str, found: Reference, extractor: Extractor) -> dict[str, Any]:
    """Protocol of a file of statistics, checked against the extractor."""
    dimension = extractor.protocol.get("dimension", len(found.mean))
    if len(found.mean) != dimension:
        raise ConfigError(
            f"{source} has statistics of {len(found.mean)} features, but {extractor.name} has "
            f"{dimension}; choose the features that it was computed with."
        )
    if found.protocol:
        saved = found.protocol.get("extractor", found.protocol)
        different = differences(saved, extractor.protocol)
        if different:
            lines = "\n  ".join(different)
            raise ConfigError(
                f"{source} was computed with other features than {extractor.name} here (file -> "
                f"here):\n  {lines}\nCompute it again, or choose the features of the file."
            )
        return found.protocol
    if extractor.name != "inception":
        raise ConfigError(
            f"{source} does not record its features, so they are assumed to be Inception's, but "
            f"the features here are {extractor.name!r}; choose 'inception'."
        )
    return {"extractor": UNKNOWN}
