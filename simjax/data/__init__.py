"""Real images: `open` a data set, iterate its `batches`.

Only teacher training, evaluation and a few distillation methods need any.
"""

from simjax.data.dataset import Dataset, batches, to_unit
from simjax.data.loader import SOURCES, open

__all__ = ["SOURCES", "Dataset", "batches", "open", "to_unit"]
