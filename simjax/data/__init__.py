"""Real images: `open` a source, `read` what is asked for. Few distillations need any."""

from simjax.data.dataset import Dataset, batches, to_unit
from simjax.data.loader import SOURCES, open

__all__ = ["SOURCES", "Dataset", "batches", "open", "to_unit"]
