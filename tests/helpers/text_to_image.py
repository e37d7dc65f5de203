"""Folders of a small PixArt-alpha and a small AutoencoderKL in diffusers' format."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax import config
from simjax.networks.vae import Autoencoder
from simjax.porting.maps import pixart, rules
from tests.helpers.runs import random_weights
from tests.helpers.transformer_files import CONFIG, write_folder


def write_pixart(folder, channels=32):
    """Writes two blocks with random weights; channels: of the caption embedding."""
    network = config.PixArt(
        resolution=8, width=48, depth=2, heads=3, caption_channels=channels, caption_length=0
    )
    options = config.complete(config.Config(), network, "ddpm_linear", 1.0)
    tensors = rules.export(pixart.DIFFUSERS, random_weights(options, 0), network.depth)
    write_folder(folder, tensors, CONFIG | {"caption_channels": channels})


def write_autoencoder(folder):
    """Writes a small AutoencoderKL with random weights."""
    sizes = {"channels": (8,) * 4, "groups": 4, "blocks": 1} | {
        "image_channels": 3,
        "latent_channels": 4,
        "scaling": 0.5,
    }
    like = nnx.eval_shape(lambda: Autoencoder(**sizes, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    draw, tensors = np.random.default_rng(0), {}
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(like))):
        value = 0.3 * draw.standard_normal(leaf.shape, np.float32)
        *_, last = names = [key.key for key in path]
        if last == "kernel":
            value = np.ascontiguousarray(value.transpose(3, 2, 0, 1))
        tensors[diffusers_name(".".join(names))] = value
    values = {"block_out_channels": [8] * 4, "norm_num_groups": 4, "layers_per_block": 1}
    values |= {"latent_channels": 4, "scaling_factor": 0.5, "_class_name": "AutoencoderKL"}
    write_folder(folder, tensors, values)


def diffusers_name(ours):
    for pattern, theirs in (
        (r"^encoder\.blocks\.level(\d)", r"encoder.down_blocks.\1"),
        (r"^decoder\.blocks\.level(\d)", r"decoder.up_blocks.\1"),
        (r"_block(\d)\.", r".resnets.\1."),
        (r"_(down|up)\.conv", r".\1samplers.0.conv"),
        (r"blocks\.mid\.resnets", "mid_block.resnets"),
        (r"blocks\.mid_attention\.norm", "mid_block.attentions.0.group_norm"),
        (r"blocks\.mid_attention\.(q|k|v)\w*", r"mid_block.attentions.0.to_\1"),
        (r"blocks\.mid_attention\.proj", "mid_block.attentions.0.to_out.0"),
        (r"\.mid_block(\d)\.", r".mid_block.resnets.\1."),
        (r"\.skip\.", ".conv_shortcut."),
        (r"\.norm_out\.", ".conv_norm_out."),
        (r"\.(kernel|scale)$", ".weight"),
    ):
        ours = re.sub(pattern, theirs, ours)
    return ours
