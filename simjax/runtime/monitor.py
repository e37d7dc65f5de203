"""Logging of process 0: metrics.jsonl, TensorBoard, progress line, pictures.

Objects in a bucket (gs://...) cannot be appended to, only rewritten. There, metrics are buffered
until `flush`, which the loop calls before every checkpoint: a killed run resumes from a checkpoint
and drops later metrics anyway. TensorBoard events are then written locally and copied by `flush`.
"""

import datetime
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from simjax.runtime import storage
from simjax.typing import Float

if TYPE_CHECKING:
    from clu.metric_writers import MetricWriter

TILE = 64  # pixels, to which smaller images are enlarged
FRAME, FRAME_GREY = 4, 64  # width of the frame around each image in pixels, and its grey level
NO_TENSORBOARD = 'TensorBoard is off: pip install "simjax[tensorboard]"'

# TensorFlow only writes TensorBoard files here: silence its start-up messages. It reads these
# variables on import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


class Monitor:
    """Writes scalars and pictures of a run, and its console log."""

    def __init__(self, workdir: epath.Path):
        self.workdir = epath.Path(workdir)
        self.active = jax.process_index() == 0
        self._writer: MetricWriter | None = None
        self._bar = None
        if self.active:
            (self.workdir / "samples").mkdir(parents=True, exist_ok=True)
            self._metrics = self.workdir / "metrics.jsonl"
            self._rewrites = storage.in_bucket(self.workdir)
            self._pending: list[str] = []
            self._open_tensorboard()

    def say(self, text: str) -> None:
        """Prints a line to the console, above the progress bar if any."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def begin(self, stage: str, *, step: int, steps: int, batch: int) -> None:
        """Starts a stage's log at `step` and drops later metrics.

        Those are from a killed run that resumes at `step`.
        """
        if not self.active:
            return
        self._stage, self._steps, self._batch = stage, steps, batch
        self._clock = None  # starts after the first call, to exclude compilation
        self._forget_after(step)
        if sys.stdout.isatty():
            self._bar = tqdm(total=steps, initial=step, desc=stage, unit="step", dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        if self.active and self._clock is None:
            self._clock = (time.monotonic(), step)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs a window's scalars and the images/s since the last window."""
        if not self.active:
            return
        now, (before, step_before) = time.monotonic(), self._clock
        self._clock = (now, step)
        speed = (step - step_before) / (now - before)  # 0 if the window is the first call alone
        values = dict(values) | {"images_per_second": speed * self._batch}
        self._log(step, values)
        losses = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if k.endswith("/loss"))
        left = datetime.timedelta(seconds=round((self._steps - step) / speed)) if speed else "?"
        self.say(
            f"{self._stage} {step}/{self._steps}  images {step * self._batch}  "
            f"{values['images_per_second']:.0f} images/s  ETA {left}  {losses}"
        )
        bad = {k: v for k, v in values.items() if "nonfinite" in k and v > 0}
        if bad:
            self.say(f"warning: non-finite values per step: {bad}")

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Logs evaluation metrics of the generator during training."""
        if not self.active:
            return
        self._log(step, {f"evaluation/{name}": value for name, value in values.items()})
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(f"{self._stage} {step}/{self._steps}  {text}")

    def flush(self) -> None:
        """Writes buffered metrics and events."""
        if not self.active:
            return
        if self._pending:
            self._write_pending()
        if self._writer is not None:
            self._writer.flush()
            if self._rewrites:
                self._copy_events()

    def end(self) -> None:
        """Closes the progress bar and writes buffered metrics and events."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self.flush()

    def picture(self, name: str, images: Float[np.ndarray, "n h w c"], *, columns: int) -> None:
        """Writes samples/<name>.png, a grid of images in [-1, 1]."""
        if self.active:
            write_png(self.workdir / "samples" / f"{name}.png", grid(to_uint8(images), columns))

    def strip(self, name: str, sources: Sequence[str], tile_rows: int) -> None:
        """Writes samples/<name>.png: the top rows of other pictures, stacked.

        Args:
          sources: names of pictures in samples/.
          tile_rows: rows of images in each of them.
        """
        if not self.active:
            return
        rows = []
        for source in sources:
            written = (self.workdir / "samples" / f"{source}.png").read_bytes()
            picture = np.asarray(Image.open(io.BytesIO(written)))
            rows.append(picture[: picture.shape[0] // tile_rows])
        write_png(self.workdir / "samples" / f"{name}.png", np.concatenate(rows))

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        line = {"stage": self._stage, "step": step} | values
        self._pending.append(json.dumps(line) + "\n")
        if not self._rewrites:
            self._write_pending()
        if self._writer is not None:
            tagged = {f"{self._stage}/{name}": value for name, value in values.items()}
            self._writer.write_scalars(step, tagged)

    def _write_pending(self) -> None:
        with self._metrics.open("a") as file:
            file.write("".join(self._pending))
        self._pending = []

    def _open_tensorboard(self) -> None:
        try:
            from clu.metric_writers import SummaryWriter  # imports TensorFlow
        except ImportError:
            self.say(NO_TENSORBOARD)
            return
        self._events = self.workdir / "tensorboard"
        if self._rewrites:  # TensorFlow would rewrite the whole object for every event
            self._local = tempfile.TemporaryDirectory(prefix="simjax-tensorboard-")
            self._writer = SummaryWriter(self._local.name)
        else:
            self._writer = SummaryWriter(str(self._events))

    def _copy_events(self) -> None:
        self._events.mkdir(parents=True, exist_ok=True)
        for file in epath.Path(self._local.name).iterdir():
            (self._events / file.name).write_bytes(file.read_bytes())

    def _forget_after(self, step: int) -> None:
        if not self._metrics.exists():
            return
        kept = []
        for line in self._metrics.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # a line truncated by a kill
                continue
            if entry["stage"] != self._stage or entry["step"] <= step:
                kept.append(line + "\n")
        replacement = self._metrics.with_suffix(".tmp")
        replacement.write_text("".join(kept))
        replacement.replace(self._metrics)


def to_uint8(images: Float[np.ndarray, "n h w c"]) -> np.ndarray:
    """Images in [-1, 1] as uint8: clamp(127.5 x + 128), truncated.

    The rounding of the official evaluations (SiD, EDM).

    >>> to_uint8(np.array([-1.0, 0.0, 1.0])).tolist()
    [0, 128, 255]
    """
    return np.clip(images * 127.5 + 128, 0, 255).astype(np.uint8)


def grid(images: UInt8[np.ndarray, "n h w c"], columns: int) -> np.ndarray:
    """One uint8 picture (h, w, c) of framed images, `columns` per row.

    Small images are enlarged by an integer factor.

    >>> grid(np.zeros((3, 64, 64, 1), np.uint8), columns=2).shape
    (144, 144, 1)
    """
    enlarge = max(1, TILE // images.shape[1])
    images = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    frame = [(0, 0), (FRAME, FRAME), (FRAME, FRAME), (0, 0)]
    images = np.pad(images, frame, constant_values=FRAME_GREY)
    n, h, w, ch = images.shape
    rows = math.ceil(n / columns)
    blank = np.full((rows * columns - n, h, w, ch), FRAME_GREY, np.uint8)
    tiles = np.concatenate([images, blank]).reshape(rows, columns, h, w, ch)
    return tiles.swapaxes(1, 2).reshape(rows * h, columns * w, ch)


def write_png(path: epath.Path, picture: np.ndarray) -> None:
    """Writes a uint8 picture (height, width, 1 or 3)."""
    if picture.ndim == 3 and picture.shape[-1] == 1:
        picture = picture[..., 0]
    written = io.BytesIO()  # one write: a bucket rewrites the object at every flush
    Image.fromarray(picture).save(written, format="png")
    epath.Path(path).write_bytes(written.getvalue())
