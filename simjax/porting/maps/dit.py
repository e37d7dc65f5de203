"""Name maps and sizes of DiT: facebookresearch/DiT's state dict, diffusers' folders."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simjax.errors import ConfigError
from simjax.networks.dit import DiT
from simjax.porting.maps.rules import Name, Rule
from simjax.porting.maps.transformer import (
    Shapes,
    array,
    dense,
    heads,
    joined,
    patches,
    require,
    setting,
    shared_config,
)

ORIGINAL: Sequence[Name] = [
    *patches("x_embedder.proj"),
    *dense("t_embedder.mlp.0", "time/mlp/fc1"),
    *dense("t_embedder.mlp.2", "time/mlp/fc2"),
    array("y_embedder.embedding_table.weight", "classes"),
    *dense("blocks.{}.attn.qkv", "blocks/attention/qkv"),
    *dense("blocks.{}.attn.proj", "blocks/attention/proj"),
    *dense("blocks.{}.mlp.fc1", "blocks/mlp/fc1"),
    *dense("blocks.{}.mlp.fc2", "blocks/mlp/fc2"),
    *dense("blocks.{}.adaLN_modulation.1", "blocks/modulation"),
    *dense("final_layer.adaLN_modulation.1", "out_modulation"),
    *dense("final_layer.linear", "out"),
]

_BLOCK = "transformer_blocks.{}"
_EMBEDDING = f"{_BLOCK}.norm1.emb"  # every block has a copy of DiT's one embedding
DIFFUSERS: Sequence[Name] = [
    *patches("pos_embed.proj"),
    *dense(f"{_EMBEDDING}.timestep_embedder.linear_1", "time/mlp/fc1", copies=True),
    *dense(f"{_EMBEDDING}.timestep_embedder.linear_2", "time/mlp/fc2", copies=True),
    array(f"{_EMBEDDING}.class_embedder.embedding_table.weight", "classes", copies=True),
    *joined([f"{_BLOCK}.attn1.to_{name}" for name in "qkv"], "blocks/attention/qkv"),
    *dense(f"{_BLOCK}.attn1.to_out.0", "blocks/attention/proj"),
    *dense(f"{_BLOCK}.ff.net.0.proj", "blocks/mlp/fc1"),
    *dense(f"{_BLOCK}.ff.net.2", "blocks/mlp/fc2"),
    *dense(f"{_BLOCK}.norm1.linear", "blocks/modulation"),
    *dense("proj_out_1", "out_modulation"),
    *dense("proj_out_2", "out"),
]

# diffusers computes DiT's timestep embedding with frequencies 1e-4^(i / 127); DiT, and so its
# published weights, use 1e-4^(i / 128). A ported diffusers folder computes the same as diffusers.
DIFFUSERS_TIME_STEPS = 127

_KNOWN = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
    "upcast_attention": (False,),
}


def rules(names: Sequence[Name]) -> list[Rule]:
    """Import rules; fixed position tables are computed, not read."""
    return [Rule(r"pos_embed(\.pos_embed)?", None), *(name.rule() for name in names)]


def describe(tensors: Mapping[str, np.ndarray]) -> DiT:
    """The network of a state dict with the original names.

    Raises:
      ConfigError: a tensor that determines a size is missing, or no published network has this
        width.
    """
    shapes = Shapes(tensors)
    width, channels, patch = (shapes.size("x_embedder.proj.weight", axis) for axis in range(3))
    outputs = shapes.size("final_layer.linear.weight", 0) / patch**2
    if outputs not in (channels, 2 * channels):
        raise ConfigError(
            f"final_layer.linear.weight has {outputs:g} output channels; expected {channels}, or "
            f"{2 * channels} with learned variances."
        )
    return DiT(
        resolution=patch * shapes.side("pos_embed"),
        image_channels=channels,
        label_dim=shapes.size("y_embedder.embedding_table.weight", 0) - 1,
        patch=patch,
        width=width,
        depth=shapes.depth("blocks.{}.attn.qkv.weight"),
        heads=heads(width),
        learn_sigma=None if outputs == 2 * channels else False,
    )


def describe_folder(values: Mapping[str, Any]) -> DiT:
    """The network of a diffusers config.json.

    Raises:
      ConfigError: a setting is missing, or simjax's DiT does not support it.
    """
    require(values, _KNOWN)
    count = setting(values, "num_attention_heads")
    return DiT(
        resolution=setting(values, "sample_size"),
        image_channels=setting(values, "in_channels"),
        label_dim=setting(values, "num_embeds_ada_norm"),
        patch=setting(values, "patch_size"),
        width=count * setting(values, "attention_head_dim"),
        depth=setting(values, "num_layers"),
        heads=count,
        time_steps=DIFFUSERS_TIME_STEPS,
    )


def folder_config(network: DiT) -> dict[str, Any]:
    """The inverse of `describe_folder`.

    Raises:
      ConfigError: diffusers' class computes a different function.
    """
    if network.time_steps != DIFFUSERS_TIME_STEPS:
        raise ConfigError(
            f"diffusers computes DiT's timestep embedding with {DIFFUSERS_TIME_STEPS} steps, this "
            f"network, from the original repository, with {network.time_steps}: diffusers would "
            "compute other outputs. Start from a diffusers folder, or leave this format out."
        )
    if network.learn_sigma is False:
        raise ConfigError("diffusers' DiT outputs variances, which this network does not have.")
    return {
        **{name: options[0] for name, options in _KNOWN.items()},
        "norm_eps": 1e-6,  # networks/transformer.py
        "num_embeds_ada_norm": network.label_dim,
        **shared_config(network),
    }
