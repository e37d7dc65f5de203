"""Checkpoints in EDM's pickle format with random weights, for any of its networks."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simjax import config
from simjax.models import build
from simjax.porting.maps import edm
from tests.helpers import files

FILTER = np.full((1, 1, 2, 2), 0.25, np.float32)


def arguments(network: config.Network) -> dict[str, Any]:
    """Constructor arguments of EDMPrecond, as set by EDM's training code."""
    model = next(k for k, a in edm.ARCHITECTURES.items() if isinstance(network, a.schema))
    ours = dataclasses.asdict(network)
    values = {name: ours[field] for name, (field, _) in edm.ARCHITECTURES[model].arguments.items()}
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    if model == "SongUNet":
        values["decoder_type"] = "standard"
    return {"use_fp16": False, "sigma_min": 0, "sigma_max": float("inf")} | {
        "sigma_data": 0.5,
        "model_type": model,
        **values,
    }


def tensors(network: config.Network, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights and resampling filters by official name, in PyTorch layout."""
    completed = config.complete(config.Config(), network, "edm", 0.5)
    rng = np.random.default_rng(seed)
    found = {}
    for path, leaf in jax.tree.leaves_with_path(build.weights_like(completed)):
        parts = [str(key.key) for key in path][1:]
        fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
        value = rng.standard_normal(leaf.shape, np.float32) / np.float32(np.sqrt(fan_in))
        if parts[-1] == "kernel":
            value = np.ascontiguousarray(np.moveaxis(value, (-1, -2), (0, 1)))
        found[official_name(parts, network)] = value
    for name in [name for name in found if name.endswith("conv0.weight")]:
        if "_down." in name or "_up." in name:
            for layer in ("conv0", "skip"):
                found[name.replace("conv0.weight", f"{layer}.resample_filter")] = FILTER
    return found


def official_name(parts: list[str], network: config.Network) -> str:
    *owners, own = parts
    own = {"kernel": "weight", "scale": "weight", "frequencies": "freqs"}.get(own, own)
    if owners[-1] == "conv" and owners[-2].endswith("_aux_residual"):
        owners = owners[:-1]
    if owners[0].startswith("out_") and isinstance(network, config.SongUNet):
        size = network.resolution
        owners = ["dec", f"{size}x{size}_aux_{owners[0].removeprefix('out_')}"]
    return ".".join(["model", *owners, own])


def write(
    path: Path, network: config.Network, *, seed: int = 0, suffix: str = "", **options: Any
) -> dict:
    """Writes a checkpoint; returns its tensors.

    Args:
      suffix: appended to the class names; SiDA's release has "_EncoderDecoder".
    """
    made = tensors(network, seed)
    buffers = [name for name in made if name.endswith(("resample_filter", "freqs"))]
    values = arguments(network)
    values["model_type"] += suffix
    files.write_network_pickle(
        path, f"EDMPrecond{suffix}", values, made, buffers=buffers, **options
    )
    return made
