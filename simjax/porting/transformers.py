"""Which transformer a set of weights is, by its config.json or by the names of its tensors."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from simjax import config as c
from simjax.porting.foreign_file import shown
from simjax.porting.maps import dit, pixart
from simjax.porting.read_weights import Weights
from simjax.porting.rules import Rule

PIPELINE = "model_index.json"  # of a diffusers pipeline; its transformer has a folder inside
STUDENT = "model."  # before the names of SIM's released student
BESIDE_STUDENT = ("text_encoder.", "vae.")  # other networks, which such a file may hold too
MOST_SHOWN = 4  # names in a message; our choice


class Identified(NamedTuple):
    """A network, and how its tensors get there."""

    network: c.Network
    rules: Sequence[Rule]
    tensors: Mapping[str, np.ndarray]


def identify(weights: Weights) -> Identified:
    """The network that weights are of.

    Raises:
      ConfigError: they are of something else, or what is known of it is not enough.
    """
    if weights.config is not None:
        return _folder(weights)
    tensors = _without_student(weights.tensors)
    if "y_embedder.embedding_table.weight" in tensors:
        return Identified(dit.describe(tensors), dit.rules(dit.ORIGINAL), tensors)
    if "y_embedder.y_embedding" in tensors:
        return Identified(pixart.describe(tensors), pixart.rules(pixart.ORIGINAL), tensors)
    if any(name.startswith("transformer_blocks.") for name in tensors):
        raise c.ConfigError(
            "names of diffusers without its config.json, which tells the network's sizes: give the "
            "folder that holds both."
        )
    names = ", ".join(map(shown, list(tensors)[:MOST_SHOWN]))
    raise c.ConfigError(
        f"neither DiT nor PixArt-alpha: its {len(tensors)} tensors begin with {names}. Known: "
        "facebookresearch/DiT's .pt, PixArt-alpha's .pth, SIM's student, and diffusers' folders "
        "of DiT and PixArt-alpha transformers."
    )


def _folder(weights: Weights) -> Identified:
    """By diffusers' name of the norm, which its older and newer classes share."""
    norm = weights.config.get("norm_type")
    if norm == "ada_norm_zero":
        network = dit.describe_folder(weights.config)
        return Identified(network, dit.rules(dit.DIFFUSERS), weights.tensors)
    if norm == "ada_norm_single":
        network = pixart.describe_folder(weights.config)
        return Identified(network, pixart.rules(pixart.DIFFUSERS), weights.tensors)
    kind = shown(str(weights.config.get("_class_name", weights.config.get("model_type"))))
    raise c.ConfigError(
        f"config.json is of {kind}, norm_type {shown(str(norm))}; known: norm_type ada_norm_zero "
        "(DiT) and ada_norm_single (PixArt-alpha)."
    )


def _without_student(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """SIM's student under the names of its backbone."""
    if not any(name.startswith(STUDENT) for name in tensors):
        return tensors
    return {
        name.removeprefix(STUDENT): tensor
        for name, tensor in tensors.items()
        if not name.startswith(BESIDE_STUDENT)
    }
