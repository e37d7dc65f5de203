"""Which transformer a set of weights is, by its config.json or by the names of its tensors.

What neither tells is taken from the family, if that is known, and named in `assumed`.
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
# That a file may not tell by itself: its network, and what that is in diffusion/families.py.
FAMILIES = {"dit": (DiT, DDPM), "sit": (DiT, SIT), "sit_gvp": (DiT, "sit_gvp")}
PIPELINE = "model_index.json"  # of a diffusers pipeline; its transformer has a folder inside
SCHEDULER = "scheduler/scheduler_config.json"  # of such a pipeline
CLASSES = {  # of diffusers, by the norm_type of their config.json; the first was once for both
    "ada_norm_zero": ("Transformer2DModel", "DiTTransformer2DModel"),
    "ada_norm_single": ("Transformer2DModel", "PixArtTransformer2DModel"),
}
SCHEDULE = {  # what that is (DiT, PixArt-alpha), in diffusers' words
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
}
STUDENT = "model."  # before the names of SIM's released student
BESIDE_STUDENT = ("text_encoder.", "vae.")  # other networks, which such a file may hold too
MOST_SHOWN = 4  # names in a message; our choice


class Identified(NamedTuple):
    """A network and its family, how its tensors get there, and what no file tells of it."""

    network: Network
    rules: Sequence[Rule]
    tensors: Mapping[str, np.ndarray]
    assumed: tuple[str, ...] = ()
    precondition: str = DDPM


def identify(weights: Weights, family: str = "") -> Identified:
    """The network that weights are of.

    Args:
      family: one of FAMILIES; "" if only the file tells.

    Raises:
      ConfigError: they are of something else, or what is known of it is not enough.
    """
    if weights.config is not None:
        return _folder(weights)
    tensors = _without_student(weights.tensors)
    if "y_embedder.embedding_table.weight" in tensors:
        if family not in FAMILIES:
            raise ConfigError(
                "a checkpoint of DiT or of SiT: both have these tensors, and the file does not "
                "tell which it is. Say it: --family=dit or --family=sit (sit_gvp where SiT was "
                "trained on --path-type GVP), in a run --config.teacher.family=... (or "
                'generator.family), in Python simjax.load(..., family="sit").'
            )
        network, (_, precondition) = dit.describe(tensors), FAMILIES[family]
        null = f"class {network.label_dim} is no class: it is trained for guidance"
        which = "DiT, not SiT" if precondition == DDPM else "SiT, not DiT"
        assumed = (which, _heads(network), null)
        return Identified(network, dit.rules(dit.ORIGINAL), tensors, assumed, precondition)
    if "y_embedder.y_embedding" in tensors:
        network = pixart.describe(tensors)
        return Identified(network, pixart.rules(pixart.ORIGINAL), tensors, (_heads(network),))
    if any(name.startswith("transformer_blocks.") for name in tensors):
        raise ConfigError(
            "names of diffusers without its config.json, which tells the network's sizes: give the "
            "folder that holds both."
        )
    names = ", ".join(map(shown, list(tensors)[:MOST_SHOWN]))
    raise ConfigError(
        f"neither DiT nor PixArt-alpha: its {len(tensors)} tensors begin with {names}. Known: "
        "facebookresearch/DiT's .pt, PixArt-alpha's .pth, SIM's student, and diffusers' folders "
        "of DiT and PixArt-alpha transformers."
    )


def require_schedule(transformer: Path) -> bool:
    """Whether a pipeline around a diffusers folder says that it was trained on our schedule.

    Raises:
      ConfigError: it says otherwise.
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
            f"{file}: {kind} is not the schedule of DiT and PixArt-alpha: {'; '.join(wrong)}. A "
            "network trained otherwise is not supported."
        )
    return True


def _heads(network: DiT | PixArt) -> str:
    return f"{network.heads} attention heads, as published networks of width {network.width}"


def _folder(weights: Weights) -> Identified:
    """By diffusers' class, and its name of the norm, which older and newer classes share."""
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
        f"config.json is of {kind}, norm_type {shown(norm)}; known: "
        "DiTTransformer2DModel, PixArtTransformer2DModel, and Transformer2DModel with norm_type "
        "ada_norm_zero (DiT) or ada_norm_single (PixArt-alpha)."
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
