"""Name map and config.json of diffusers' AutoencoderKL.

Both current and older names of its attention are supported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simjax.errors import ConfigError
from simjax.porting.maps.rules import Rule, oihw_to_hwio
from simjax.porting.maps.settings import Settings


def _pointwise(kernel: np.ndarray) -> np.ndarray:
    """Converts (out, in) or a 1x1 kernel in OIHW to HWIO."""
    return oihw_to_hwio(kernel.reshape(*kernel.shape[:2], 1, 1))


_HALF = r"(encoder|decoder)\."
_BLOCK = _HALF + r"(?:down|up)_blocks\.(\d+)\.resnets\.(\d+)\."
_BLOCK_AT = r"\1/blocks/level\2_block\3/"
_MIDDLE = _HALF + r"mid_block\.resnets\.(\d+)\."
_MIDDLE_AT = r"\1/blocks/mid_block\2/"
_ATTENTION = _HALF + r"mid_block\.attentions\.0\."
_ATTENTION_AT = r"\1/blocks/mid_attention/"


def _residual(block: str, at: str, number: int) -> list[Rule]:
    """Rules of a residual block; group `number` matches a layer's name."""
    return [
        Rule(block + r"(norm\d)\.weight", rf"{at}\{number}/scale"),
        Rule(block + r"(conv\d)\.weight", rf"{at}\{number}/kernel", oihw_to_hwio),
        Rule(block + r"conv_shortcut\.weight", at + "skip/kernel", oihw_to_hwio),
        Rule(block + r"conv_shortcut\.bias", at + "skip/bias"),
        Rule(block + r"((?:norm|conv)\d)\.bias", rf"{at}\{number}/bias"),
    ]


def _projection(pattern: str, ours: str) -> list[Rule]:
    """Rules of an attention projection; `pattern` matches its current and older names."""
    return [
        Rule(_ATTENTION + pattern + r"\.weight", f"{_ATTENTION_AT}{ours}/kernel", _pointwise),
        Rule(_ATTENTION + pattern + r"\.bias", f"{_ATTENTION_AT}{ours}/bias"),
    ]


RULES: Sequence[Rule] = [
    *_residual(_BLOCK, _BLOCK_AT, number=4),
    *_residual(_MIDDLE, _MIDDLE_AT, number=3),
    Rule(_ATTENTION + r"group_norm\.weight", _ATTENTION_AT + "norm/scale"),
    Rule(_ATTENTION + r"group_norm\.bias", _ATTENTION_AT + "norm/bias"),
    *_projection(r"(?:to_q|query)", "query"),
    *_projection(r"(?:to_k|key)", "key"),
    *_projection(r"(?:to_v|value)", "value"),
    *_projection(r"(?:to_out\.0|proj_attn)", "proj"),
    Rule(
        _HALF + r"(?:down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.conv\.weight",
        r"\1/blocks/level\2_\3/conv/kernel",
        oihw_to_hwio,
    ),
    Rule(
        _HALF + r"(?:down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.conv\.bias",
        r"\1/blocks/level\2_\3/conv/bias",
    ),
    Rule(_HALF + r"conv_norm_out\.weight", r"\1/norm_out/scale"),
    Rule(_HALF + r"conv_norm_out\.bias", r"\1/norm_out/bias"),
    Rule(_HALF + r"(conv_in|conv_out)\.weight", r"\1/\2/kernel", oihw_to_hwio),
    Rule(_HALF + r"(conv_in|conv_out)\.bias", r"\1/\2/bias"),
    Rule(r"((?:post_)?quant_conv)\.weight", r"\1/kernel", oihw_to_hwio),
    Rule(r"((?:post_)?quant_conv)\.bias", r"\1/bias"),
]

# Field of config.json: our field and its largest value.
SIZES = {
    "in_channels": ("image_channels", 64),
    "latent_channels": ("latent_channels", 256),
    "layers_per_block": ("blocks", 8),
    "norm_num_groups": ("groups", 1024),
}
WIDEST = 2048  # channels of a level
MOST_LEVELS = 8
LARGEST_SCALING = 1000
# diffusers' defaults for missing fields.
DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
KNOWN = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
# Versions, training resolution and a float16 overflow flag: without effect on the networks.
IGNORED = ("_diffusers_version", "_name_or_path", "sample_size", "force_upcast")
FIELDS = {*SIZES, *DEFAULTS, *KNOWN, *BLOCK_TYPES, *IGNORED, "block_out_channels"}
SETTINGS = Settings("AutoencoderKL")


def describe(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Autoencoder` from a config.json's values.

    Raises:
      ConfigError: a field is missing, out of range or unknown, or has an unsupported value.
    """
    if unknown := sorted(values.keys() - FIELDS):
        raise ConfigError(
            f"AutoencoderKL: unknown field {unknown[0][:60]!r}; is this the config.json of an "
            "AutoencoderKL? Other autoencoders are not supported."
        )
    values = {**DEFAULTS, **values}
    sizes = {
        ours: SETTINGS.size(name, values.get(name), most) for name, (ours, most) in SIZES.items()
    }
    channels = _channels(values.get("block_out_channels"), sizes["groups"])
    known = KNOWN | {name: [kind] * len(channels) for name, kind in BLOCK_TYPES.items()}
    known |= {"out_channels": sizes["image_channels"]}
    for name, supported in known.items():
        if name in values and values[name] != supported:
            raise SETTINGS.refusal(name, values[name], repr(supported))
    scaling = values["scaling_factor"]
    if type(scaling) not in (int, float) or not 0 < scaling < LARGEST_SCALING:
        raise SETTINGS.refusal(
            "scaling_factor", scaling, f"a number between 0 and {LARGEST_SCALING}"
        )
    return sizes | {"channels": channels, "scaling": float(scaling)}


def _channels(value: Any, groups: int) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST_LEVELS:
        raise SETTINGS.refusal("block_out_channels", value, f"a list of 1 to {MOST_LEVELS} widths")
    channels = tuple(SETTINGS.size("block_out_channels", width, WIDEST) for width in value)
    if any(width % groups for width in channels):
        raise SETTINGS.refusal(
            "block_out_channels", value, f"multiples of norm_num_groups = {groups}"
        )
    return channels
