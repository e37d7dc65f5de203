"""The public EDM checkpoints' names and constructor arguments (NVlabs/edm state dictionaries)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simjax import config
from simjax.porting.rules import Rule, oihw_to_hwio, transposed

PRECONDITIONS = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
}

# What the constructor takes where a file does not say (documented defaults of EDM's SongUNet).
CONSTRUCTOR_DEFAULTS = {
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": (1, 2, 2, 2),
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": (16,),
    "dropout": 0.10,
    "label_dropout": 0,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": (1, 1),
}


def _qkv_blocks(bias: np.ndarray) -> np.ndarray:
    """Output channels c * 3 + j (one head) become j * C + c, j = 0, 1, 2 for query, key, value."""
    return bias.reshape(-1, 3, *bias.shape[1:]).swapaxes(0, 1).reshape(bias.shape)


def _qkv_kernel(kernel: np.ndarray) -> np.ndarray:
    return oihw_to_hwio(_qkv_blocks(kernel))


SONG_UNET: Sequence[Rule] = [
    Rule(r".*\.resample_filter", None),  # normalised taps, set by the config
    Rule(r"u", None),  # iDDPM's table of noise levels, computed in diffusion/precondition.py
    Rule(r"model\.map_noise\.freqs", "network/map_noise/frequencies"),
    Rule(r"model\.(map_\w+)\.weight", r"network/\1/kernel", transposed),
    Rule(r"model\.(map_\w+)\.bias", r"network/\1/bias"),
    Rule(r"model\.dec\.\w+_aux_norm\.weight", "network/out_norm/scale"),
    Rule(r"model\.dec\.\w+_aux_norm\.bias", "network/out_norm/bias"),
    Rule(r"model\.dec\.\w+_aux_conv\.weight", "network/out_conv/kernel", oihw_to_hwio),
    Rule(r"model\.dec\.\w+_aux_conv\.bias", "network/out_conv/bias"),
    Rule(r"model\.enc\.(\w+_aux_residual)\.weight", r"network/enc/\1/conv/kernel", oihw_to_hwio),
    Rule(r"model\.enc\.(\w+_aux_residual)\.bias", r"network/enc/\1/conv/bias"),
    Rule(r"model\.enc\.(\w+_conv)\.weight", r"network/enc/\1/kernel", oihw_to_hwio),
    Rule(r"model\.enc\.(\w+_conv)\.bias", r"network/enc/\1/bias"),
    Rule(r"model\.(enc|dec)\.(\w+)\.(norm\d)\.weight", r"network/\1/\2/\3/scale"),
    Rule(r"model\.(enc|dec)\.(\w+)\.affine\.weight", r"network/\1/\2/affine/kernel", transposed),
    Rule(r"model\.(enc|dec)\.(\w+)\.qkv\.weight", r"network/\1/\2/qkv/kernel", _qkv_kernel),
    Rule(r"model\.(enc|dec)\.(\w+)\.qkv\.bias", r"network/\1/\2/qkv/bias", _qkv_blocks),
    Rule(
        r"model\.(enc|dec)\.(\w+)\.(conv\d|skip|proj)\.weight",
        r"network/\1/\2/\3/kernel",
        oihw_to_hwio,
    ),
    Rule(r"model\.(enc|dec)\.(\w+)\.(\w+)\.bias", r"network/\1/\2/\3/bias"),
]


def song_unet(arguments: Mapping[str, Any]) -> config.SongUNet:
    """The network that SongUNet's constructor arguments describe, as a config.

    Raises:
      ConfigError: for an option that no public checkpoint uses and simjax does not have.
    """
    given = CONSTRUCTOR_DEFAULTS | dict(arguments)
    supported = {
        "encoder_type": ("standard", "residual"),
        "decoder_type": ("standard",),
        "embedding_type": ("positional", "fourier"),
        "channel_mult_emb": (4,),
        "label_dropout": (0,),
    }
    for name, known in supported.items():
        if given[name] not in known:
            raise config.ConfigError(
                f"SongUNet with {name} = {given[name]!r} is not supported; "
                f"known: {', '.join(map(str, known))}."
            )
    return config.SongUNet(
        resolution=given["img_resolution"],
        image_channels=given["img_channels"],
        label_dim=given["label_dim"],
        augment_dim=given["augment_dim"],
        channels=given["model_channels"],
        channel_mult=tuple(given["channel_mult"]),
        blocks=given["num_blocks"],
        attention_resolutions=tuple(given["attn_resolutions"]),
        dropout=given["dropout"],
        embedding=given["embedding_type"],
        noise_channels=given["channel_mult_noise"],
        encoder=given["encoder_type"],
        filter_taps=tuple(given["resample_filter"]),
    )
