"""The public EDM checkpoints' names and constructor arguments (NVlabs/edm state dictionaries)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simjax import config
from simjax.porting.rules import Rule, oihw_to_hwio, transposed

HEAD_CHANNELS = 64  # of ADM's attention; the SongUNet has one head


def _qkv(array: np.ndarray, *, head: int | None) -> np.ndarray:
    """Output channels (head, c, j) become (j, head, c), j = 0, 1, 2 for query, key, value."""
    parts = array.reshape(-1, head or len(array) // 3, 3, *array.shape[1:])
    return np.moveaxis(parts, 2, 0).reshape(array.shape)


def _swapped(array: np.ndarray) -> np.ndarray:
    """[cos, sin] embeddings become [sin, cos]: the halves of the first axis change places."""
    return np.roll(array, len(array) // 2, axis=0)


def _block_rules(head: int | None) -> list[Rule]:
    """Rules of residual blocks and of what both networks name alike."""

    def qkv_bias(bias: np.ndarray) -> np.ndarray:
        return _qkv(bias, head=head)

    def qkv_kernel(kernel: np.ndarray) -> np.ndarray:
        return oihw_to_hwio(_qkv(kernel, head=head))

    block = r"model\.(enc|dec)\.(\w+)\."
    at = r"network/\1/\2/"
    return [
        Rule(r".*\.resample_filter", None),  # normalised taps, set by the config
        Rule(r"u", None),  # iDDPM's table of noise levels, computed in diffusion/precondition.py
        Rule(r"model\.enc\.(\w+_conv)\.weight", r"network/enc/\1/kernel", oihw_to_hwio),
        Rule(r"model\.enc\.(\w+_conv)\.bias", r"network/enc/\1/bias"),
        Rule(block + r"(norm\d)\.weight", at + r"\3/scale"),
        Rule(block + r"affine\.weight", at + "affine/kernel", transposed),
        Rule(block + r"qkv\.weight", at + "qkv/kernel", qkv_kernel),
        Rule(block + r"qkv\.bias", at + "qkv/bias", qkv_bias),
        Rule(block + r"(conv\d|skip|proj)\.weight", at + r"\3/kernel", oihw_to_hwio),
        Rule(block + r"(\w+)\.bias", at + r"\3/bias"),
        Rule(r"model\.(map_\w+)\.weight", r"network/\1/kernel", transposed),
        Rule(r"model\.(map_\w+)\.bias", r"network/\1/bias"),
    ]


SONG_UNET: Sequence[Rule] = [
    Rule(r"model\.map_noise\.freqs", "network/map_noise/frequencies"),
    Rule(r"model\.dec\.\w+_aux_norm\.weight", "network/out_norm/scale"),
    Rule(r"model\.dec\.\w+_aux_norm\.bias", "network/out_norm/bias"),
    Rule(r"model\.dec\.\w+_aux_conv\.weight", "network/out_conv/kernel", oihw_to_hwio),
    Rule(r"model\.dec\.\w+_aux_conv\.bias", "network/out_conv/bias"),
    Rule(r"model\.enc\.(\w+_aux_residual)\.weight", r"network/enc/\1/conv/kernel", oihw_to_hwio),
    Rule(r"model\.enc\.(\w+_aux_residual)\.bias", r"network/enc/\1/conv/bias"),
    *_block_rules(head=None),
]

ADM_UNET: Sequence[Rule] = [
    Rule(r"model\.map_layer0\.weight", "network/map_layer0/kernel", lambda w: _swapped(w.T)),
    Rule(r"model\.map_augment\.weight", "network/map_augment/kernel", lambda w: _swapped(w).T),
    Rule(r"model\.out_norm\.weight", "network/out_norm/scale"),
    Rule(r"model\.out_conv\.weight", "network/out_conv/kernel", oihw_to_hwio),
    Rule(r"model\.(out_norm|out_conv)\.bias", r"network/\1/bias"),
    *_block_rules(head=HEAD_CHANNELS),
]


class Architecture(NamedTuple):
    """One of the release's networks: its name map, and its constructor's arguments."""

    schema: type  # its class in simjax/config.py
    rules: Sequence[Rule]
    arguments: Mapping[str, tuple[str, Any]]  # name -> (our field, what a file may leave out)
    known: Mapping[str, tuple]  # all values that simjax has, where it has not all


REQUIRED = object()
_ARGUMENTS = {
    "img_resolution": ("resolution", REQUIRED),
    "img_channels": ("image_channels", REQUIRED),
    "label_dim": ("label_dim", 0),
    "augment_dim": ("augment_dim", 0),
    "dropout": ("dropout", 0.10),
}
_KNOWN = {"channel_mult_emb": (4,), "label_dropout": (0,)}
ARCHITECTURES = {
    "SongUNet": Architecture(
        schema=config.SongUNet,
        rules=SONG_UNET,
        arguments=_ARGUMENTS
        | {
            "model_channels": ("channels", 128),
            "channel_mult": ("channel_mult", (1, 2, 2, 2)),
            "num_blocks": ("blocks", 4),
            "attn_resolutions": ("attention_resolutions", (16,)),
            "embedding_type": ("embedding", "positional"),
            "channel_mult_noise": ("noise_channels", 1),
            "encoder_type": ("encoder", "standard"),
            "resample_filter": ("filter_taps", (1, 1)),
        },
        known=_KNOWN
        | {
            "encoder_type": ("standard", "residual"),
            "decoder_type": ("standard",),
            "embedding_type": ("positional", "fourier"),
        },
    ),
    "DhariwalUNet": Architecture(
        schema=config.AdmUNet,
        rules=ADM_UNET,
        arguments=_ARGUMENTS
        | {
            "model_channels": ("channels", 192),
            "channel_mult": ("channel_mult", (1, 2, 3, 4)),
            "num_blocks": ("blocks", 3),
            "attn_resolutions": ("attention_resolutions", (32, 16, 8)),
        },
        known=_KNOWN,
    ),
}
LARGEST = 4096  # of any size in the arguments: a file's claim must not cost time or memory
MOST = 16  # of levels, blocks a level, taps


class Wrapper(NamedTuple):
    """A preconditioning class of the release: ours, its usual network, its constants."""

    precondition: str
    model: str
    known: Mapping[str, tuple]


_STEPS = {"M": (1000,)}
WRAPPERS = {
    "EDMPrecond": Wrapper("edm", "DhariwalUNet", {}),
    "VPPrecond": Wrapper(
        "vp", "SongUNet", _STEPS | {"beta_d": (19.9,), "beta_min": (0.1,), "epsilon_t": (1e-5,)}
    ),
    "VEPrecond": Wrapper("ve", "SongUNet", {}),
    "iDDPMPrecond": Wrapper("iddpm", "DhariwalUNet", _STEPS | {"C_1": (1e-3,), "C_2": (8e-3,)}),
}
# Precision and range of the wrappers: no part of D in float32.
IGNORED = ("use_fp16", "sigma_min", "sigma_max")


class Description(NamedTuple):
    """What a checkpoint is, in simjax's terms."""

    network: config.Network
    precondition: str
    sigma_data: float


def describe(wrapper: str, arguments: Mapping[str, Any]) -> Description:
    """The denoiser that a wrapper class and its constructor arguments make.

    Raises:
      ConfigError: another class, or an argument that no public checkpoint uses and simjax lacks.
    """
    if wrapper not in WRAPPERS:
        raise config.ConfigError(
            f"class {wrapper!r} is not a network of the EDM release; known: {', '.join(WRAPPERS)}."
        )
    family = WRAPPERS[wrapper]
    rest = dict(arguments)
    sigma_data = rest.pop("sigma_data", 0.5)  # EDM table 1
    if not isinstance(sigma_data, float) or not 0 < sigma_data < LARGEST:
        raise config.ConfigError(f"sigma_data = {sigma_data!r} is not a positive number.")
    model = rest.pop("model_type", family.model)
    _require_known(wrapper, rest, family.known)
    inner = {name: value for name, value in rest.items() if name not in {*IGNORED, *family.known}}
    return Description(network(model, inner), family.precondition, sigma_data)


def network(model: str, arguments: Mapping[str, Any]) -> config.Network:
    """The network that a class and its constructor arguments describe.

    Raises:
      ConfigError: another class, or an argument that no public checkpoint uses and simjax lacks.
    """
    if model not in ARCHITECTURES:
        raise config.ConfigError(
            f"network class {model!r} is not supported; known: {', '.join(ARCHITECTURES)}."
        )
    schema, _, fields, known = ARCHITECTURES[model]
    _require_known(model, arguments, known)
    unknown = sorted(arguments.keys() - fields.keys() - known.keys())
    if unknown:
        raise config.ConfigError(f"{model} has no argument {', '.join(unknown)}.")
    values = {
        field: _plain(model, name, arguments.get(name, default), default)
        for name, (field, default) in fields.items()
    }
    levels, resolution = len(values["channel_mult"]), values["resolution"]
    if not levels or not resolution or resolution % 2 ** (levels - 1):
        raise config.ConfigError(
            f"{model}: {resolution} pixels cannot be halved at {levels} levels."
        )
    return schema(**values)


def rules(network: config.Network) -> Sequence[Rule]:
    """The name map of a network."""
    return next(a.rules for a in ARCHITECTURES.values() if isinstance(network, a.schema))


def _require_known(owner: str, arguments: Mapping[str, Any], known: Mapping[str, tuple]) -> None:
    for name, values in known.items():
        if name in arguments and arguments[name] not in values:
            raise config.ConfigError(
                f"{owner} with {name} = {arguments[name]!r} is not supported; "
                f"known: {', '.join(map(str, values))}."
            )


def _plain(model: str, name: str, value: Any, like: Any) -> Any:
    """The value, if it is of the kind that belongs there and of sensible size."""
    if value is REQUIRED:
        raise config.ConfigError(f"{model}: its argument {name} is missing.")
    if isinstance(like, tuple) and isinstance(value, list | tuple) and len(value) <= MOST:
        return tuple(_plain(model, name, item, 0) for item in value)
    if isinstance(like, str) and isinstance(value, str):
        return value
    whole = isinstance(value, int) and not isinstance(value, bool)
    most = MOST if name == "num_blocks" else LARGEST
    if (whole or isinstance(like, float)) and isinstance(value, int | float) and 0 <= value <= most:
        return value
    raise config.ConfigError(f"{model} with {name} = {repr(value)[:60]} cannot be built.")
