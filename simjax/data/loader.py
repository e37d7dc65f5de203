"""Data sets by source string: "digits", "idx:DIR", "zip:PATH", "tfds:NAME".

To add one, write a function (text after the colon, split) -> Dataset in a new file and add a line
to SOURCES.
"""

from collections.abc import Callable

from simjax.data import digits, edm_zip, idx, tfds
from simjax.data.dataset import Dataset
from simjax.errors import ConfigError

SOURCES: dict[str, Callable[[str, str], Dataset]] = {  # (text after the colon, split)
    "digits": digits.open_digits,
    "idx": idx.open_idx,
    "tfds": tfds.open_tfds,
    "zip": edm_zip.open_zip,
}


def open(source: str, *, split: str = "train") -> Dataset:
    """The data set of a source; images are read on demand.

    >>> digits = open("digits")
    >>> digits.size, digits.shape, digits.label_dim
    (1797, (8, 8, 1), 10)

    Raises:
      ConfigError: unknown source, missing file (with the path to put it), or malformed content.
    """
    kind, _, where = source.partition(":")
    if kind not in SOURCES:
        raise ConfigError(
            f"data source {source!r} is not known; expected digits, idx:DIR (MNIST-format files), "
            "zip:PATH (an EDM data set) or tfds:NAME (TensorFlow Datasets)."
        )
    return SOURCES[kind](where, split)
