"""Name maps and sizes of PixArt-alpha: original state dict, diffusers' folders.

SIM's released student has the original names, prefixed with "model.".
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simjax.errors import ConfigError
from simjax.networks.pixart import PixArt
from simjax.networks.transformer import grid_embedding
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

_SIZES = {
    "csize_embedder": "size",
    "ar_embedder": "aspect_ratio",
}  # only in networks for 1024 pixels
ORIGINAL: Sequence[Name] = [
    *patches("x_embedder.proj"),
    *dense("t_embedder.mlp.0", "time/mlp/fc1"),
    *dense("t_embedder.mlp.2", "time/mlp/fc2"),
    *[
        name
        for foreign, ours in _SIZES.items()
        for layer, index in (("fc1", 0), ("fc2", 2))
        for name in dense(f"{foreign}.mlp.{index}", f"{ours}/mlp/{layer}")
    ],
    *dense("t_block.1", "modulation"),
    array("y_embedder.y_embedding", "no_caption"),
    *dense("y_embedder.y_proj.fc1", "caption/fc1"),
    *dense("y_embedder.y_proj.fc2", "caption/fc2"),
    array("blocks.{}.scale_shift_table", "blocks/table"),
    *dense("blocks.{}.attn.qkv", "blocks/attention/qkv"),
    *dense("blocks.{}.attn.proj", "blocks/attention/proj"),
    *dense("blocks.{}.cross_attn.q_linear", "blocks/cross_attention/query"),
    *dense("blocks.{}.cross_attn.kv_linear", "blocks/cross_attention/key_value"),
    *dense("blocks.{}.cross_attn.proj", "blocks/cross_attention/proj"),
    *dense("blocks.{}.mlp.fc1", "blocks/mlp/fc1"),
    *dense("blocks.{}.mlp.fc2", "blocks/mlp/fc2"),
    array("final_layer.scale_shift_table", "out_table"),
    *dense("final_layer.linear", "out"),
]

_BLOCK = "transformer_blocks.{}"
_EMBEDDERS = {"timestep": "time", "resolution": "size", "aspect_ratio": "aspect_ratio"}
DIFFUSERS: Sequence[Name] = [
    *patches("pos_embed.proj"),
    *[
        name
        for foreign, ours in _EMBEDDERS.items()
        for n in (1, 2)
        for name in dense(f"adaln_single.emb.{foreign}_embedder.linear_{n}", f"{ours}/mlp/fc{n}")
    ],
    *dense("adaln_single.linear", "modulation"),
    *dense("caption_projection.linear_1", "caption/fc1"),
    *dense("caption_projection.linear_2", "caption/fc2"),
    array(f"{_BLOCK}.scale_shift_table", "blocks/table"),
    *joined([f"{_BLOCK}.attn1.to_{name}" for name in "qkv"], "blocks/attention/qkv"),
    *dense(f"{_BLOCK}.attn1.to_out.0", "blocks/attention/proj"),
    *dense(f"{_BLOCK}.attn2.to_q", "blocks/cross_attention/query"),
    *joined([f"{_BLOCK}.attn2.to_{name}" for name in "kv"], "blocks/cross_attention/key_value"),
    *dense(f"{_BLOCK}.attn2.to_out.0", "blocks/cross_attention/proj"),
    *dense(f"{_BLOCK}.ff.net.0.proj", "blocks/mlp/fc1"),
    *dense(f"{_BLOCK}.ff.net.2", "blocks/mlp/fc2"),
    array("scale_shift_table", "out_table"),
    *dense("proj_out", "out"),
]

_KNOWN = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_type": ("ada_norm_single",),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-6,),
    "upcast_attention": (False,),
}
CAPTION_CHANNELS = 4096  # T5-XXL
SPACINGS = (1.0, 2.0)  # interpolation of the published networks: up to 512 pixels, and 1024
CLOSE = 1e-3  # largest difference of a float16 position table from ours; our choice


def rules(names: Sequence[Name]) -> list[Rule]:
    """Import rules; position tables and noise levels are computed, not read."""
    return [Rule(r"pos_embed(\.pos_embed)?|u", None), *(name.rule() for name in names)]


def describe(tensors: Mapping[str, np.ndarray]) -> PixArt:
    """The network of a state dict with the original names.

    Raises:
      ConfigError: a tensor that determines a size is missing, or no published network has such
        sizes.
    """
    shapes = Shapes(tensors)
    width, channels, patch = (shapes.size("x_embedder.proj.weight", axis) for axis in range(3))
    side = shapes.side("pos_embed")
    return PixArt(
        resolution=patch * side,
        image_channels=channels,
        patch=patch,
        width=width,
        depth=shapes.depth("blocks.{}.attn.qkv.weight"),
        heads=heads(width),
        caption_channels=shapes.size("y_embedder.y_embedding", 1),
        caption_length=shapes.size("y_embedder.y_embedding", 0),
        interpolation=_interpolation(tensors["pos_embed"], side, width),
        size_conditioning="csize_embedder.mlp.0.weight" in tensors,
    )


def describe_folder(values: Mapping[str, Any]) -> PixArt:
    """The network of a diffusers config.json.

    Raises:
      ConfigError: a setting is missing, or simjax's PixArt does not support it.
    """
    require(values, _KNOWN)
    count, resolution = setting(values, "num_attention_heads"), setting(values, "sample_size")
    is_large = resolution == 128  # diffusers' default of use_additional_conditions
    conditions = values.get("use_additional_conditions")
    return PixArt(
        resolution=resolution,
        image_channels=setting(values, "in_channels"),
        patch=setting(values, "patch_size"),
        width=count * setting(values, "attention_head_dim"),
        depth=setting(values, "num_layers"),
        heads=count,
        caption_channels=setting(values, "caption_channels", CAPTION_CHANNELS),
        caption_length=0,  # diffusers drops the null-caption embedding
        interpolation=float(setting(values, "interpolation_scale", max(resolution // 64, 1))),
        size_conditioning=is_large if conditions is None else conditions is True,
    )


def without_no_caption(network: PixArt) -> PixArt:
    """The network without the learned null-caption embedding, as in diffusers' folders."""
    return dataclasses.replace(network, caption_length=0)


def folder_config(network: PixArt) -> dict[str, Any]:
    """The inverse of `describe_folder`, except for the null-caption embedding."""
    whole = float(network.interpolation).is_integer()
    return {
        **{name: options[0] for name, options in _KNOWN.items()},
        "num_embeds_ada_norm": 1000,  # required by diffusers, but unused
        "cross_attention_dim": network.width,
        "caption_channels": network.caption_channels,
        "interpolation_scale": int(network.interpolation) if whole else network.interpolation,
        "use_additional_conditions": network.size_conditioning,
        **shared_config(network),
    }


def _interpolation(table: np.ndarray, side: int, width: int) -> float:
    """The factor by which the positions in a file's table are divided."""
    for spacing in SPACINGS:
        ours = grid_embedding(side, width, 1 / spacing)
        if table.shape == (1, *ours.shape) and np.abs(table[0] - ours).max() < CLOSE:
            return spacing
    raise ConfigError(
        f"pos_embed is not DiT's table of positions divided by {' or '.join(map(str, SPACINGS))}; "
        "such a network is not supported."
    )
