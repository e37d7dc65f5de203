"""What DiT's and PixArt's checkpoints have in common: names of layers, and sizes read off shapes.

Two families of names: those of the papers' own repositories ("blocks.0.attn.qkv.weight"), and those
of diffusers ("transformer_blocks.0.attn1.to_q.weight").
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simjax.errors import ConfigError
from simjax.networks.dit import DiT
from simjax.networks.pixart import PixArt
from simjax.porting.files.foreign_file import shown
from simjax.porting.maps.rules import AS_IT_IS, CONVOLUTION, LINEAR, Layout, Name

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by width: S, B, L, XL of DiT's table 1
LARGEST = 16384  # of any size: a file's claim must not cost time or memory
MOST_LAYERS = 256
REQUIRED = object()


def dense(foreign: str, path: str, **options: Any) -> list[Name]:
    """Weight and bias of a linear layer; `foreign` and `path` without their last names."""
    return [
        Name(f"{foreign}.weight", f"network/{path}/kernel", LINEAR, **options),
        Name(f"{foreign}.bias", f"network/{path}/bias", AS_IT_IS, **options),
    ]


def patches(foreign: str) -> list[Name]:
    """The convolution that makes tokens."""
    weight, bias = dense(foreign, "patches/proj")
    return [weight._replace(layout=CONVOLUTION), bias]


def joined(foreign: Sequence[str], path: str) -> list[Name]:
    """Linear layers that are one of ours, their outputs side by side."""
    parts = len(foreign)
    return [
        name
        for index, layer in enumerate(foreign)
        for name in dense(layer, path, part=(index, parts))
    ]


def array(foreign: str, path: str, layout: Layout = AS_IT_IS, **options: Any) -> Name:
    """A tensor that is no layer's weight or bias."""
    return Name(foreign, f"network/{path}", layout, **options)


class Shapes:
    """Sizes read off the shapes of tensors, each refused where the file does not have it."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors

    def size(self, name: str, axis: int) -> int:
        """The length of one axis.

        Raises:
          ConfigError: no such tensor, no such axis, or a length that is not sensible.
        """
        tensor = self._tensors.get(name)
        if tensor is None or tensor.ndim <= axis or not 0 < tensor.shape[axis] <= LARGEST:
            found = "is missing" if tensor is None else f"has shape {tensor.shape}"
            raise ConfigError(f"tensor {name}, which tells a size of the network, {found}.")
        return tensor.shape[axis]

    def depth(self, pattern: str) -> int:
        """How many layers have the tensor `pattern`, whose "{}" counts them from 0."""
        return next(
            (n for n in range(MOST_LAYERS) if pattern.format(n) not in self._tensors), MOST_LAYERS
        )

    def side(self, name: str) -> int:
        """Tokens along a side of the square grid that a table (1, n, c) of positions covers."""
        tokens = self.size(name, 1)
        side = round(tokens**0.5)
        if side**2 != tokens:
            raise ConfigError(f"{name}: {tokens} positions are no square grid.")
        return side


def heads(width: int) -> int:
    """Attention heads of a published network, which no tensor's shape tells.

    Raises:
      ConfigError: no published network is of this width.
    """
    if width not in HEADS:
        raise ConfigError(
            f"a transformer of width {width}: the file does not tell its attention heads, and no "
            f"published network is so wide ({', '.join(map(str, HEADS))}); use the folder with its "
            "config.json of diffusers."
        )
    return HEADS[width]


def setting(values: Mapping[str, Any], name: str, default: Any = REQUIRED) -> int:
    """A whole number of a config.json.

    Raises:
      ConfigError: it is missing, no whole number, or not sensible.
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
    """What both kinds' config.json of diffusers say alike; variances are put out beside means."""
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
    """Refuses settings of a config.json that simjax's network does not have.

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
