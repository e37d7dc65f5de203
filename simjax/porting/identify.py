"""Identifies a transformer checkpoint by its config.json or its tensor names.

Properties that neither determines come from the family, if it is given; `assumed` lists them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simjax.errors import ConfigError
from simjax.networks.dit import DiT
from simjax.networks.network import Network
from simjax.networks.pixart import PixArt
from simjax.porting.files.foreign_file import shown
from simjax.porting.files.read_weights import Weights, read_json
from simjax.porting.maps import dit, pixart
from simjax.porting.maps.rules import Rule

SIT = "sit"
DDPM = "ddpm_linear"  # the family of DiT and PixArt-alpha
# Families that a file may not record: network class, and name in diffusion/families.py.
FAMILIES = {"dit": (DiT, DDPM), "sit": (DiT, SIT), "sit_gvp": (DiT, "sit_gvp")}
PIPELINE = "model_index.json"  # in a diffusers pipeline, whose transformer is in a subfolder
SCHEDULER = "scheduler/scheduler_config.json"  # inside a pipeline
CLASSES = {  # diffusers' classes by norm_type in config.json; older versions have the first only
    "ada_norm_zero": ("Transformer2DModel", "DiTTransformer2DModel"),
    "ada_norm_single": ("Transformer2DModel", "PixArtTransformer2DModel"),
}
SCHEDULE = {  # the schedule of DiT and PixArt-alpha, in diffusers' fields
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
}
STUDENT = "model."  # prefix of the tensor names of SIM's released student
BESIDE_STUDENT = ("text_encoder.", "vae.")  # prefixes of other networks in such a file
MOST_SHOWN = 4  # names in a message; our choice


class Identified(NamedTuple):
    """A network with its name map, tensors, family and unconfirmed assumptions."""

    network: Network
    rules: Sequence[Rule]
    tensors: Mapping[str, np.ndarray]
    assumed: tuple[str, ...] = ()
    precondition: str = DDPM


def identify(weights: Weights, family: str = "") -> Identified:
    """Identifies the network that these weights belong to.

    Args:
      family: one of FAMILIES, for a file that does not record it; "" otherwise.

    Raises:
      ConfigError: unknown architecture, or a family is needed and missing.
    """
    if weights.config is not None:
        return _folder(weights)
    tensors = _without_student(weights.tensors)
    if "y_embedder.embedding_table.weight" in tensors:
        if family not in FAMILIES:
            raise ConfigError(
                "this may be a checkpoint of DiT or of SiT: both have these tensors, and the file "
                "does not record which it is. Pass --family=dit or --family=sit (sit_gvp if SiT "
                "was trained with --path-type GVP); in a run --config.teacher.family=... (or "
                'generator.family); in Python simjax.load(..., family="sit").'
            )
        network, (_, precondition) = dit.describe(tensors), FAMILIES[family]
        null = f"class {network.label_dim} is the null class of classifier-free guidance"
        which = "DiT, not SiT" if precondition == DDPM else "SiT, not DiT"
        assumed = (which, _heads(network), null)
        return Identified(network, dit.rules(dit.ORIGINAL), tensors, assumed, precondition)
    if "y_embedder.y_embedding" in tensors:
        network = pixart.describe(tensors)
        return Identified(network, pixart.rules(pixart.ORIGINAL), tensors, (_heads(network),))
    if any(name.startswith("transformer_blocks.") for name in tensors):
        raise ConfigError(
            "tensor names of diffusers without a config.json, which has the network's sizes: give "
            "the folder that holds both."
        )
    names = ", ".join(map(shown, list(tensors)[:MOST_SHOWN]))
    raise ConfigError(
        f"not a checkpoint of DiT or PixArt-alpha: the first of its {len(tensors)} tensors are "
        f"{names}. Supported: facebookresearch/DiT's .pt, PixArt-alpha's .pth, SIM's student, and "
        "diffusers' folders of DiT and PixArt-alpha transformers."
    )


def require_schedule(transformer: Path) -> bool:
    """Checks the DDPM schedule of the pipeline around a diffusers transformer.

    Returns:
      Whether there is such a pipeline with a scheduler config.

    Raises:
      ConfigError: its schedule is not that of DiT and PixArt-alpha.
    """
    file = transformer.parent / SCHEDULER
    if not (transformer.parent / PIPELINE).exists() or not file.exists():
        return False
    values = read_json(file)
    wrong = [
        f"{name} = {shown(repr(values.get(name)))} (known: {expected!r})"
        for name, expected in SCHEDULE.items()
        if values.get(name, expected if name == "prediction_type" else None) != expected
    ]
    if wrong:
        kind = shown(str(values.get("_class_name")))
        raise ConfigError(
            f"{file}: {kind} is not the schedule of DiT and PixArt-alpha: {'; '.join(wrong)}. "
            "Networks trained with other schedules are not supported."
        )
    return True


def _heads(network: DiT | PixArt) -> str:
    return f"{network.heads} attention heads, as in published networks of width {network.width}"


def _folder(weights: Weights) -> Identified:
    """Identifies a diffusers folder by its class and norm_type."""
    name, norm = (str(weights.config.get(key)) for key in ("_class_name", "norm_type"))
    is_known = name in CLASSES.get(norm, ())
    if is_known and norm == "ada_norm_zero":
        network = dit.describe_folder(weights.config)
        return Identified(network, dit.rules(dit.DIFFUSERS), weights.tensors)
    if is_known and norm == "ada_norm_single":
        network = pixart.describe_folder(weights.config)
        return Identified(network, pixart.rules(pixart.DIFFUSERS), weights.tensors)
    kind = shown(str(weights.config.get("_class_name", weights.config.get("model_type"))))
    raise ConfigError(
        f"config.json describes {kind}, norm_type {shown(norm)}; known: "
        "DiTTransformer2DModel, PixArtTransformer2DModel, and Transformer2DModel with norm_type "
        "ada_norm_zero (DiT) or ada_norm_single (PixArt-alpha)."
    )


def _without_student(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Tensors of SIM's student under the original names, without its other networks."""
    if not any(name.startswith(STUDENT) for name in tensors):
        return tensors
    return {
        name.removeprefix(STUDENT): tensor
        for name, tensor in tensors.items()
        if not name.startswith(BESIDE_STUDENT)
    }
