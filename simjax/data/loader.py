"""Data sets by source string: "digits", "idx:DIR", "zip:PATH", "tfds:NAME".

A new one is a function (what follows the colon, split) -> Dataset in a file of its own, and a line
in SOURCES.
"""

from collections.abc import Callable

from simjax.data import digits, edm_zip, idx, tfds
from simjax.data.dataset import Dataset
from simjax.errors import ConfigError

SOURCES: dict[str, Callable[[str, str], Dataset]] = {  # (what follows the colon, split)
    "digits": digits.open_digits,
    "idx": idx.open_idx,
    "tfds": tfds.open_tfds,
    "zip": edm_zip.open_zip,
}


def open(source: str, *, split: str = "train") -> Dataset:
    """The data set that a source names; images are read when they are asked for.

    Raises:
      ConfigError: unknown source, missing file (and where to put it), or malformed content.
    """
    kind, _, where = source.partition(":")
    if kind not in SOURCES:
        raise ConfigError(
            f"data source {source!r} is not known; expected digits, idx:DIR (MNIST-format files), "
            "zip:PATH (an EDM data set) or tfds:NAME (TensorFlow Datasets)."
        )
    return SOURCES[kind](where, split)
