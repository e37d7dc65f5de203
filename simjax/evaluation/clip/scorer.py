"""CLIP and aesthetic score of batches of images; keeps only the scores.

Image i is scored against prompt i modulo the number of prompts, the order in which
`simjax sample --prompts` draws them.
Called from simjax/commands/evaluate.py.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simjax.errors import ConfigError
from simjax.evaluation.clip import aesthetic, score
from simjax.evaluation.clip.score import Bytes, Embedder
from simjax.runtime import checkpoint
from simjax.typing import Params

SPACE = "clip"


class Prompts(NamedTuple):
    """Prompts of the images.

    Attributes:
      texts: in the order of the images.
      name: name of the file of prompts.
      sha256: checksum of the texts.
    """

    texts: Sequence[str]
    name: str
    sha256: str


class Scorer:
    """Accumulates scores over batches and averages them."""

    def __init__(
        self,
        clip: Embedder,
        prompts: Sequence[str] | None = None,
        head: Params | None = None,
        about: dict[str, Any] | None = None,
    ):
        """Embeds the prompts.

        Args:
          clip: from score.load_clip.
          prompts: for the CLIP score; None: no CLIP score.
          head: from aesthetic.load; None: no aesthetic score.
          about: more fields for `protocol`, by part: "extractor", "clip_score" or "aesthetic".

        Raises:
          ConfigError: an empty list of prompts, or a CLIP network of another width than the head's.
        """
        self._clip, self._head, self._about = clip, head, about or {}
        self._prompts, self._truncated = None, 0
        if head is not None:
            aesthetic.require_width(clip.width)
        if prompts is not None:
            if not prompts:
                raise ConfigError("no prompts; expected at least one.")
            self._prompts, self._truncated = clip.prompts(prompts)
        self._count = 0
        self._each: dict[str, list[np.ndarray]] = {}

    def watch(self, batches: Iterable[Bytes]) -> Iterator[Bytes]:
        """Scores batches and yields them unchanged."""
        for images in batches:
            prompts = None
            if self._prompts is not None:
                indices = np.arange(self._count, self._count + len(images)) % len(self._prompts)
                prompts = self._prompts[indices]
            found = score.of_embeddings(self._clip.images(images), prompts, self._head)
            for name, values in found.items():
                self._each.setdefault(name, []).append(values)
            self._count += len(images)
            yield images

    def metrics(self) -> dict[str, float]:
        """Means over all images so far, by "clip/NAME"."""
        return {
            f"{SPACE}/{name}": float(np.concatenate(parts).mean(dtype=np.float64))
            for name, parts in self._each.items()
        }

    def protocol(self) -> dict[str, Any]:
        """Everything that the scores depend on, as {"clip": ...} for JSON."""
        parts = {"extractor": {"features": SPACE, "weights_sha256": self._clip.sha256}}
        if self._prompts is not None:
            counts = {"prompts": len(self._prompts), "truncated": self._truncated}
            parts["clip_score"] = {"weight": score.WEIGHT, **counts}
        if self._head is not None:
            parts["aesthetic"] = {"weights_sha256": checkpoint.params_sha256(self._head)}
        return {SPACE: {name: part | self._about.get(name, {}) for name, part in parts.items()}}


def load(
    folder: str | os.PathLike,
    *,
    prompts: Prompts | None = None,
    head: str | os.PathLike | None = None,
    batch: int = score.BATCH,
) -> Scorer:
    """A Scorer from a transformers CLIP folder and an aesthetic-head file.

    Raises:
      ConfigError: files are missing, damaged, or do not fit together.
    """
    params = None if head is None else aesthetic.load(head)
    clip = score.load_clip(folder, batch=batch)
    about = {"extractor": {"network": Path(folder).resolve().name}}
    if head is not None:
        about["aesthetic"] = {"head": Path(head).name}
    if prompts is not None:
        about["clip_score"] = {"prompts_name": prompts.name, "prompts_sha256": prompts.sha256}
    try:
        return Scorer(clip, None if prompts is None else prompts.texts, params, about)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
