"""Output files of a probe: a figure and a proposed config."""

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from simjax import config as c
from simjax.runs.probe.proposals import with_changes
from simjax.runs.probe.teacher_probe import Probe
from simjax.runtime.monitor import grid, to_uint8

SIZE = (11.0, 9.0)  # of the figure, inches; our choice


def picture(found: Probe) -> Image.Image:
    """Figure of the curves over sigma, the teacher's samples and one-step samples."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    with matplotlib.rc_context({"font.size": 9}):
        above, below = figure.subfigures(2, 1, height_ratios=(2, 1.2))
        _draw_curves(above.subplots(2, 2), found)
        axes = below.subplots(len(found.images), 1, squeeze=False)[:, 0]
        for axis, (name, images) in zip(axes, found.images.items(), strict=True):
            tiles = grid(to_uint8(images[..., :3]), len(images))  # latents: first three channels
            axis.imshow(tiles.squeeze(), cmap="gray", vmin=0, vmax=255, aspect="equal")
            axis.set_ylabel(name, rotation=0, ha="right", va="center")
            axis.set(xticks=[], yticks=[])
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
    return Image.open(file).convert("RGB")


def _draw_curves(axes: np.ndarray, found: Probe) -> None:
    curves, proposal = found.curves, found.proposal
    sigma = curves.sigma
    for axis in axes.flat:
        axis.set(xscale="log", xlabel="sigma")
        axis.axvspan(proposal.low, proposal.high, color="0.92", zorder=0)
    error, calibration, omega, contrast = axes.flat
    error.plot(sigma, curves.share, "o-", ms=3, label="e(sigma) / plateau")
    rise = np.gradient(curves.share, np.log(sigma))
    error.plot(sigma, rise, "--", label="derivative, de / d ln(sigma)")
    law = np.exp(-0.5 * ((np.log(sigma) - proposal.mean) / proposal.std) ** 2)
    law /= proposal.std * np.sqrt(2 * np.pi)
    error.plot(sigma, law, ":", label="proposed generator.sigma")
    error.set_title("where the error rises (grey: 2 to 98 %)")
    inside = curves.share < 0.9
    calibration.plot(
        sigma[inside], curves.slope[inside], "o-", ms=3, label="slope <x0, D> / <D, D>"
    )
    inside = curves.share < 0.5
    calibration.plot(sigma[inside], curves.trace[inside], "s-", ms=3, label="trace of D's Jacobian")
    calibration.axhline(1, color="0.5", lw=0.8)
    calibration.set(ylim=(0, 2), title="calibration: 1 for an exact denoiser")
    omega.loglog(sigma, curves.omega, "o-", ms=3, label="omega = mean |x0 - D|")
    omega.loglog(sigma, curves.error / sigma**2, "s-", ms=3, label="e / sigma^2, at most 1")
    omega.set_title("size of the error")
    contrast.plot(sigma, curves.contrast, "o-", ms=3, label="contrast, one step / teacher")
    contrast.axvline(proposal.sigma_init, color="C3", label="proposed sigma_init")
    contrast.set_title("one-step samples D(sigma eps; sigma)")
    for axis in axes.flat:
        axis.legend(fontsize=7)


def config_text(config: c.Config, found: Probe, source: str) -> str:
    """Source of a config file: this config with the probe's proposals."""
    lines = _assignments(with_changes(config, found.changes), c.Config(), "config", found.changes)
    body = "\n".join(f"    {line}" for line in lines)
    return (
        '"""Proposed by simjax probe, with reasons as comments."""\n\n'
        f"# --source={source!r}\n"
        "from simjax import config as c\n\n\n"
        "def get_config() -> c.Config:\n"
        f"    config = c.Config()\n{body}\n    return config\n"
    )


def _assignments(
    part: Any, plain: Any, path: str, changes: dict[str, tuple[Any, str]]
) -> list[str]:
    """Lines `path.field = value` for every field that differs from its default."""
    lines = []
    for field in dataclasses.fields(part):
        value, default = getattr(part, field.name), getattr(plain, field.name)
        name = f"{path}.{field.name}"
        if isinstance(value, c.Network):
            made = ", ".join(f"{k}={v!r}" for k, v in dataclasses.asdict(value).items())
            lines.append(f"{name} = c.{type(value).__name__}({made})")
        elif dataclasses.is_dataclass(value):
            lines += _assignments(value, default, name, changes)
        elif value != default:
            _, reason = changes.get(name.removeprefix("config."), (None, ""))
            rounded = float(f"{value:.4g}") if reason and isinstance(value, float) else value
            lines.append(f"{name} = {rounded!r}" + (f"  # {reason}" if reason else ""))
    return lines
