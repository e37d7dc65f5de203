"""DiT's names and sizes: facebookresearch/DiT's state dictionary, and diffusers' DiT folders."""

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
_TOLD = f"{_BLOCK}.norm1.emb"  # each block has a copy of what is one embedding in DiT
DIFFUSERS: Sequence[Name] = [
    *patches("pos_embed.proj"),
    *dense(f"{_TOLD}.timestep_embedder.linear_1", "time/mlp/fc1", copies=True),
    *dense(f"{_TOLD}.timestep_embedder.linear_2", "time/mlp/fc2", copies=True),
    array(f"{_TOLD}.class_embedder.embedding_table.weight", "classes", copies=True),
    *joined([f"{_BLOCK}.attn1.to_{name}" for name in "qkv"], "blocks/attention/qkv"),
    *dense(f"{_BLOCK}.attn1.to_out.0", "blocks/attention/proj"),
    *dense(f"{_BLOCK}.ff.net.0.proj", "blocks/mlp/fc1"),
    *dense(f"{_BLOCK}.ff.net.2", "blocks/mlp/fc2"),
    *dense(f"{_BLOCK}.norm1.linear", "blocks/modulation"),
    *dense("proj_out_1", "out_modulation"),
    *dense("proj_out_2", "out"),
]

# diffusers computes DiT's embedding of time with frequencies 1e-4^(i / 127), where DiT, and so its
# published weights, have 1e-4^(i / 128). A folder of diffusers' gives what diffusers computes.
DIFFUSERS_TIME_STEPS = 127

_KNOWN = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
    "upcast_attention": (False,),
}


def rules(names: Sequence[Name]) -> list[Rule]:
    """The way in; tables of fixed positions are computed here."""
    return [Rule(r"pos_embed(\.pos_embed)?", None), *(name.rule() for name in names)]


def describe(tensors: Mapping[str, np.ndarray]) -> DiT:
    """The network of a state dictionary under the original names.

    Raises:
      ConfigError: a tensor that tells a size is missing, or no published network is so wide.
    """
    shapes = Shapes(tensors)
    width, channels, patch = (shapes.size("x_embedder.proj.weight", axis) for axis in range(3))
    outputs = shapes.size("final_layer.linear.weight", 0) / patch**2
    if outputs not in (channels, 2 * channels):
        raise ConfigError(
            f"final_layer.linear.weight puts out {outputs:g} channels; expected {channels}, or "
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
    """The network of diffusers' config.json.

    Raises:
      ConfigError: a setting is missing, or one that simjax's DiT does not have.
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
      ConfigError: diffusers' class computes another function.
    """
    if network.time_steps != DIFFUSERS_TIME_STEPS:
        raise ConfigError(
            f"diffusers computes DiT's embedding of time with {DIFFUSERS_TIME_STEPS} steps, this "
            f"network, from the original repository, with {network.time_steps}: its outputs there "
            "would be others. Start from a folder of diffusers', or leave this format out."
        )
    if network.learn_sigma is False:
        raise ConfigError("diffusers' DiT puts out variances, which this network does not have.")
    return {
        **{name: options[0] for name, options in _KNOWN.items()},
        "norm_eps": 1e-6,  # networks/transformer.py
        "num_embeds_ada_norm": network.label_dim,
        **shared_config(network),
    }
