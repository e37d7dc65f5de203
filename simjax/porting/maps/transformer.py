"""Shared by DiT and PixArt checkpoints: layer names, and sizes from shapes.

There are two sets of names: those of the original repositories ("blocks.0.attn.qkv.weight"), and
those of diffusers ("transformer_blocks.0.attn1.to_q.weight").
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simjax.errors import ConfigError
from simjax.networks.dit import DiT
from simjax.networks.pixart import PixArt
from simjax.porting.files.foreign_file import shown
from simjax.porting.maps.rules import CONVOLUTION, LINEAR, UNCHANGED, Layout, Name

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by width: S, B, L, XL of DiT's table 1
LARGEST = 16384  # limit of any size, so that no file can cost time or memory
MOST_LAYERS = 256
REQUIRED = object()


def dense(foreign: str, path: str, **options: Any) -> list[Name]:
    """Names of a linear layer's weight and bias, given their common prefixes."""
    return [
        Name(f"{foreign}.weight", f"network/{path}/kernel", LINEAR, **options),
        Name(f"{foreign}.bias", f"network/{path}/bias", UNCHANGED, **options),
    ]


def patches(foreign: str) -> list[Name]:
    """Names of the patch embedding, a convolution."""
    weight, bias = dense(foreign, "patches/proj")
    return [weight._replace(layout=CONVOLUTION), bias]


def joined(foreign: Sequence[str], path: str) -> list[Name]:
    """Names of linear layers whose outputs one layer of ours concatenates."""
    parts = len(foreign)
    return [
        name
        for index, layer in enumerate(foreign)
        for name in dense(layer, path, part=(index, parts))
    ]


def array(foreign: str, path: str, layout: Layout = UNCHANGED, **options: Any) -> Name:
    """Name of a tensor that is not a layer's weight or bias."""
    return Name(foreign, f"network/{path}", layout, **options)


class Shapes:
    """Network sizes from the shapes of a checkpoint's tensors."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors

    def size(self, name: str, axis: int) -> int:
        """The length of one axis of a tensor.

        Raises:
          ConfigError: no such tensor, no such axis, or a length beyond LARGEST.
        """
        tensor = self._tensors.get(name)
        if tensor is None or tensor.ndim <= axis or not 0 < tensor.shape[axis] <= LARGEST:
            found = "is missing" if tensor is None else f"has shape {tensor.shape}"
            raise ConfigError(f"tensor {name}, which determines a size of the network, {found}.")
        return tensor.shape[axis]

    def depth(self, pattern: str) -> int:
        """Number of layers with the tensor `pattern`; "{}" is the layer index."""
        return next(
            (n for n in range(MOST_LAYERS) if pattern.format(n) not in self._tensors), MOST_LAYERS
        )

    def side(self, name: str) -> int:
        """Side of the square grid of a position table (1, tokens, c)."""
        tokens = self.size(name, 1)
        side = round(tokens**0.5)
        if side**2 != tokens:
            raise ConfigError(f"{name} has {tokens} positions, expected a square number.")
        return side


def heads(width: int) -> int:
    """Attention heads of the published network of this width.

    No tensor's shape determines them.

    >>> heads(1152)
    16

    Raises:
      ConfigError: no published network has this width.
    """
    if width not in HEADS:
        raise ConfigError(
            f"a transformer of width {width}: the file does not record its attention heads, and no "
            f"published network has this width (known: {', '.join(map(str, HEADS))}); use a "
            "diffusers folder with its config.json."
        )
    return HEADS[width]


def setting(values: Mapping[str, Any], name: str, default: Any = REQUIRED) -> int:
    """A whole number in a config.json.

    Raises:
      ConfigError: it is missing, not a whole number, or out of range.
    """
    value = values.get(name)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= LARGEST:
        found = "is missing" if value is REQUIRED else f"= {shown(repr(value))}"
        raise ConfigError(
            f"config.json: {name} {found}; expected a whole number from 1 to {LARGEST}."
        )
    return value


def shared_config(network: DiT | PixArt) -> dict[str, int]:
    """Fields that diffusers' DiT and PixArt share; outputs include variances."""
    return {
        "num_attention_heads": network.heads,
        "attention_head_dim": network.width // network.heads,
        "num_layers": network.depth,
        "sample_size": network.resolution,
        "patch_size": network.patch,
        "in_channels": network.image_channels,
        "out_channels": 2 * network.image_channels,
    }


def require(values: Mapping[str, Any], known: Mapping[str, tuple]) -> None:
    """Rejects settings of a config.json that simjax's network does not support.

    Raises:
      ConfigError: naming all of them.
    """
    wrong = [
        f"{name} = {shown(repr(values[name]))} (known: {', '.join(map(repr, options))})"
        for name, options in known.items()
        if name in values and values[name] not in options
    ]
    if wrong:
        raise ConfigError(f"config.json: not supported: {'; '.join(wrong)}.")
