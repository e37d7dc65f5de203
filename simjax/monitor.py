"""What a run shows: metrics.jsonl, TensorBoard, a progress line, pictures. Process 0 only."""

import datetime
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from simjax.typing import Float

TILE = 64  # pixels that a small image is enlarged to
FRAME, FRAME_GREY = 4, 64  # pixels around every tile, and their level


class Monitor:
    """Writes scalars and pictures under a run directory, and tells a person how it goes."""

    def __init__(self, workdir: epath.Path):
        self.workdir = epath.Path(workdir)
        self.active = jax.process_index() == 0
        self._summary = None
        self._bar = None
        if self.active:
            (self.workdir / "samples").mkdir(parents=True, exist_ok=True)
            self._metrics = self.workdir / "metrics.jsonl"
            self._open_tensorboard()

    def say(self, text: str) -> None:
        """One line to the console, above the progress line if there is one."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def begin(self, stage: str, *, step: int, steps: int, batch: int) -> None:
        """Starts a stage's progress at `step`; drops what a killed run logged beyond it."""
        if not self.active:
            return
        self._stage, self._steps, self._batch = stage, steps, batch
        self._clock = None  # starts at the first call's end: compilation is not speed
        self._forget_after(step)
        if sys.stdout.isatty():
            self._bar = tqdm(total=steps, initial=step, desc=stage, unit="step", dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """Moves the live line."""
        if self.active and self._clock is None:
            self._clock = (time.monotonic(), step)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs one window's scalars, with the speed since the last ones."""
        if not self.active:
            return
        now, (before, step_before) = time.monotonic(), self._clock
        self._clock = (now, step)
        speed = (step - step_before) / (now - before)  # 0 when the first call fills a window
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
            self.say(f"warning: values that are not finite, per step: {bad}")

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics of the images that training makes."""
        if not self.active:
            return
        self._log(step, {f"evaluation/{name}": value for name, value in values.items()})
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(f"{self._stage} {step}/{self._steps}  {text}")

    def end(self) -> None:
        """Closes the live line and what is buffered."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._summary is not None:
            self._summary.flush()

    def picture(self, name: str, images: Float[np.ndarray, "n h w c"], *, columns: int) -> None:
        """Writes samples/<name>.png, a grid of images in [-1, 1]."""
        if self.active:
            write_png(self.workdir / "samples" / f"{name}.png", grid(images, columns))

    def strip(self, name: str, sources: Sequence[str], tile_rows: int) -> None:
        """Writes samples/<name>.png: the top row of tiles of each named picture, stacked."""
        if not self.active:
            return
        rows = []
        for source in sources:
            picture = np.asarray(Image.open(self.workdir / "samples" / f"{source}.png"))
            rows.append(picture[: picture.shape[0] // tile_rows])
        write_png(self.workdir / "samples" / f"{name}.png", np.concatenate(rows))

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        line = {"stage": self._stage, "step": step} | values
        with self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._summary is not None:
            self._summary.write_scalars(step, {f"{self._stage}/{k}": v for k, v in values.items()})

    def _open_tensorboard(self) -> None:
        # TensorFlow only writes event files here: its start-up messages concern nobody.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        try:
            from clu import metric_writers  # imports TensorFlow, which nothing else here needs

            self._summary = metric_writers.SummaryWriter(str(self.workdir / "tensorboard"))
        except ImportError as error:
            self.say(f"TensorBoard is off: {error}.")

    def _forget_after(self, step: int) -> None:
        if not self._metrics.exists():
            return
        kept = []
        for line in self._metrics.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line that a kill cut short
                continue
            if entry["stage"] != self._stage or entry["step"] <= step:
                kept.append(line + "\n")
        replacement = self._metrics.with_suffix(".tmp")
        replacement.write_text("".join(kept))
        replacement.replace(self._metrics)


def to_uint8(images: Float[np.ndarray, "n h w c"]) -> np.ndarray:
    """[-1, 1] to 0..255 as the official evaluations do it: clamp(127.5 x + 128), truncated."""
    return np.clip(images * 127.5 + 128, 0, 255).astype(np.uint8)


def grid(images: Float[np.ndarray, "n h w c"], columns: int) -> np.ndarray:
    """Framed images in rows of `columns`, small ones enlarged in whole pixels; uint8 (h, w, c)."""
    images = to_uint8(np.asarray(images))
    enlarge = max(1, TILE // images.shape[1])
    images = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    frame = [(0, 0), (FRAME, FRAME), (FRAME, FRAME), (0, 0)]
    images = np.pad(images, frame, constant_values=FRAME_GREY)
    n, h, w, ch = images.shape
    rows = -(-n // columns)
    blank = np.full((rows * columns - n, h, w, ch), FRAME_GREY, np.uint8)
    tiles = np.concatenate([images, blank]).reshape(rows, columns, h, w, ch)
    return tiles.swapaxes(1, 2).reshape(rows * h, columns * w, ch)


def write_png(path: epath.Path, picture: np.ndarray) -> None:
    """Writes a uint8 picture (height, width, 1 or 3)."""
    if picture.ndim == 3 and picture.shape[-1] == 1:
        picture = picture[..., 0]
    with epath.Path(path).open("wb") as file:
        Image.fromarray(picture).save(file, format="png")
