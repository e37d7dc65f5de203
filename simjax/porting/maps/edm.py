"""Name maps and constructor arguments of EDM checkpoints (NVlabs/edm)."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from simjax.diffusion.precondition import iddpm_levels
from simjax.errors import ConfigError
from simjax.networks.adm_unet import AdmUNet
from simjax.networks.network import Description, Network
from simjax.networks.song_unet import SongUNet
from simjax.porting.maps.rules import (
    CONVOLUTION,
    LINEAR,
    UNCHANGED,
    Layout,
    Name,
    Rule,
    export,
    hwio_to_oihw,
    oihw_to_hwio,
)

HEAD_CHANNELS = 64  # per attention head of ADM; SongUNet has one head


def _qkv(array: np.ndarray, *, head: int | None) -> np.ndarray:
    """Reorders channels (head, c, qkv) to (qkv, head, c)."""
    parts = array.reshape(-1, head or len(array) // 3, 3, *array.shape[1:])
    return np.moveaxis(parts, 2, 0).reshape(array.shape)


def _interleaved(array: np.ndarray, *, head: int | None) -> np.ndarray:
    """The inverse of `_qkv`."""
    parts = array.reshape(3, -1, head or len(array) // 3, *array.shape[1:])
    return np.moveaxis(parts, 0, 2).reshape(array.shape)


def _swapped(array: np.ndarray) -> np.ndarray:
    """Swaps the first axis' halves, from [cos, sin] to [sin, cos] embeddings."""
    return np.roll(array, len(array) // 2, axis=0)


# Linear layers whose input is such an embedding, and whose output is added to one.
FROM_WAVES = Layout(lambda w: _swapped(w.T), lambda w: _swapped(w).T)
TO_WAVES = Layout(lambda w: _swapped(w).T, lambda w: _swapped(w.T))


def _layer(foreign: str, path: str, layout: Layout, bias: Layout = UNCHANGED) -> list[Name]:
    """Names of a layer's weight and bias, given their common prefixes."""
    return [
        Name(f"model.{foreign}.weight", f"network/{path}/kernel", layout),
        Name(f"model.{foreign}.bias", f"network/{path}/bias", bias),
    ]


def _norm(foreign: str, path: str) -> list[Name]:
    """Names of a norm's scale and bias."""
    scale, bias = _layer(foreign, path, UNCHANGED)
    return [scale._replace(path=f"network/{path}/scale"), bias]


def _shared(head: int | None) -> list[Name]:
    """Names shared by SongUNet and ADM: residual blocks, embeddings, first layer."""
    block, at = "{half}.{block}", "{half}/{block}"
    bias = Layout(functools.partial(_qkv, head=head), functools.partial(_interleaved, head=head))
    kernel = Layout(
        lambda weight: oihw_to_hwio(bias.to_ours(weight)),
        lambda kernel: bias.to_foreign(hwio_to_oihw(kernel)),
    )
    return [
        *_layer("enc.{size}_conv", "enc/{size}_conv", CONVOLUTION),
        *[name for n in range(3) for name in _norm(f"{block}.norm{n}", f"{at}/norm{n}")],
        *_layer(f"{block}.affine", f"{at}/affine", LINEAR),
        *_layer(f"{block}.qkv", f"{at}/qkv", kernel, bias),
        *[
            name
            for layer in ("conv0", "conv1", "skip", "proj")
            for name in _layer(f"{block}.{layer}", f"{at}/{layer}", CONVOLUTION)
        ],
        *_layer("map_label", "map_label", LINEAR),
        *_layer("map_layer1", "map_layer1", LINEAR),
    ]


def _song_unet(network: SongUNet) -> list[Name]:
    last = f"dec.{network.resolution}x{network.resolution}_aux"
    return [
        Name("model.map_noise.freqs", "network/map_noise/frequencies"),
        *_layer("map_augment", "map_augment", LINEAR),
        *_layer("map_layer0", "map_layer0", LINEAR),
        *_layer("enc.{size}_aux_residual", "enc/{size}_aux_residual/conv", CONVOLUTION),
        *_shared(head=None),
        *_norm(f"{last}_norm", "out_norm"),
        *_layer(f"{last}_conv", "out_conv", CONVOLUTION),
    ]


def _adm_unet(network: AdmUNet) -> list[Name]:
    return [
        *_layer("map_augment", "map_augment", TO_WAVES),
        *_layer("map_layer0", "map_layer0", FROM_WAVES),
        *_shared(head=HEAD_CHANNELS),
        *_norm("out_norm", "out_norm"),
        *_layer("out_conv", "out_conv", CONVOLUTION),
    ]


class Architecture(NamedTuple):
    """A network class of the release: its name map and constructor arguments."""

    schema: type  # our network class (simjax/networks)
    names: Callable[[Any], list[Name]]  # names of such a network, for import and export
    arguments: Mapping[str, tuple[str, Any]]  # argument -> (our field, default)
    known: Mapping[str, tuple]  # argument -> supported values, where not all are


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
        schema=SongUNet,
        names=_song_unet,
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
        schema=AdmUNet,
        names=_adm_unet,
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
LARGEST = 4096  # limit of any size in the arguments, so that no file can cost time or memory
MOST = 16  # limit of levels, blocks per level, filter taps


class Wrapper(NamedTuple):
    """A preconditioning class: our name for it, default network, supported constants."""

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
# Classes of SiDA's release (SiD, branch sida): same parameters, but also return encoder features.
ALIASES = {
    "EDMPrecond_EncoderDecoder": "EDMPrecond",
    "SongUNet_EncoderDecoder": "SongUNet",
    "DhariwalUNet_EncoderDecoder": "DhariwalUNet",
}
# Precision and sigma range of the wrappers, without effect on D in float32.
IGNORED = ("use_fp16", "sigma_min", "sigma_max")


def describe(wrapper: str, arguments: Mapping[str, Any]) -> Description:
    """The denoiser of a wrapper class and its constructor arguments.

    >>> arguments = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000}
    >>> found = describe("EDMPrecond", arguments)
    >>> type(found.network).__name__, found.precondition, found.sigma_data
    ('AdmUNet', 'edm', 0.5)

    Raises:
      ConfigError: unknown class, or an unsupported argument (no public checkpoint uses any).
    """
    wrapper = ALIASES.get(wrapper, wrapper)
    if wrapper not in WRAPPERS:
        raise ConfigError(
            f"class {wrapper!r} is not a network of the EDM release; known: {', '.join(WRAPPERS)}."
        )
    family = WRAPPERS[wrapper]
    rest = dict(arguments)
    sigma_data = rest.pop("sigma_data", 0.5)  # EDM table 1
    if not isinstance(sigma_data, float) or not 0 < sigma_data < LARGEST:
        raise ConfigError(f"sigma_data = {sigma_data!r} is not a positive number.")
    model = rest.pop("model_type", family.model)
    _require_known(wrapper, rest, family.known)
    inner = {name: value for name, value in rest.items() if name not in {*IGNORED, *family.known}}
    return Description(network(model, inner), family.precondition, sigma_data)


def network(model: str, arguments: Mapping[str, Any]) -> Network:
    """The network of a class and its constructor arguments.

    Raises:
      ConfigError: unknown class, or an unsupported argument (no public checkpoint uses any).
    """
    model = ALIASES.get(model, model)
    if model not in ARCHITECTURES:
        raise ConfigError(
            f"network class {model!r} is not supported; known: {', '.join(ARCHITECTURES)}."
        )
    schema, _, fields, known = ARCHITECTURES[model]
    _require_known(model, arguments, known)
    unknown = sorted(arguments.keys() - fields.keys() - known.keys())
    if unknown:
        raise ConfigError(f"{model} has no argument {', '.join(unknown)}.")
    values = {
        field: _plain(model, name, arguments.get(name, default), default)
        for name, (field, default) in fields.items()
    }
    levels, resolution = len(values["channel_mult"]), values["resolution"]
    if not levels or not resolution or resolution % 2 ** (levels - 1):
        raise ConfigError(f"{model}: {resolution} pixels cannot be halved at {levels} levels.")
    return schema(**values)


def rules(network: Network) -> list[Rule]:
    """Import rules; filters and noise levels are computed, not read."""
    return [Rule(r".*\.resample_filter|u", None), *(name.rule() for name in _names(network))]


def constructor(description: Description) -> tuple[str, dict[str, Any]]:
    """Wrapper class and constructor arguments of a denoiser; inverse of `describe`.

    Raises:
      ConfigError: the release has no such denoiser.
    """
    network, precondition, sigma_data = description
    wrappers = {family.precondition: name for name, family in WRAPPERS.items()}
    model = _model(network)
    if model is None or precondition not in wrappers:
        schemas = ", ".join(known.schema.__name__ for known in ARCHITECTURES.values())
        raise ConfigError(
            f"{type(network).__name__} with precondition {precondition!r} is not a denoiser of the "
            f"EDM release, which has {schemas} with {', '.join(wrappers)}."
        )
    fields = ARCHITECTURES[model].arguments
    values = {name: getattr(network, field) for name, (field, _) in fields.items()}
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    own = {"sigma_data": float(sigma_data)} if precondition == "edm" else {}
    return wrappers[precondition], {"model_type": model, **own, **values}


def state_dict(description: Description, weights: Any) -> dict[str, np.ndarray]:
    """The release's state dict, with exactly the names that its classes have."""
    network, precondition, _ = description
    tensors = export(_names(network), weights)
    taps = np.asarray(getattr(network, "filter_taps", (1, 1)), np.float32)  # ADM's are fixed
    taps = np.outer(taps, taps)[None, None] / taps.sum() ** 2
    resampled = re.compile(r"(.*_(?:down|up)\.)conv0\.weight|(.*_aux_residual\.)weight")
    for match in filter(None, map(resampled.fullmatch, list(tensors))):
        owners = [f"{match[1]}conv0.", f"{match[1]}skip."] if match[1] else [match[2]]
        tensors |= {f"{owner}resample_filter": taps for owner in owners}
    levels = {"u": iddpm_levels()} if precondition == "iddpm" else {}
    return tensors | levels


def _model(network: Network) -> str | None:
    """The name of a network's class in the release, or None."""
    found = (name for name, a in ARCHITECTURES.items() if isinstance(network, a.schema))
    return next(found, None)


def _names(network: Network) -> list[Name]:
    return ARCHITECTURES[_model(network)].names(network)


def _require_known(owner: str, arguments: Mapping[str, Any], known: Mapping[str, tuple]) -> None:
    for name, values in known.items():
        if name in arguments and arguments[name] not in values:
            raise ConfigError(
                f"{owner} with {name} = {arguments[name]!r} is not supported; "
                f"known: {', '.join(map(str, values))}."
            )


def _plain(model: str, name: str, value: Any, like: Any) -> Any:
    """The value of an argument, after checking its type and size."""
    if value is REQUIRED:
        raise ConfigError(f"{model}: its argument {name} is missing.")
    if isinstance(like, tuple) and isinstance(value, list | tuple) and len(value) <= MOST:
        return tuple(_plain(model, name, item, 0) for item in value)
    if isinstance(like, str) and isinstance(value, str):
        return value
    whole = isinstance(value, int) and not isinstance(value, bool)
    most = MOST if name == "num_blocks" else LARGEST
    if (whole or isinstance(like, float)) and isinstance(value, int | float) and 0 <= value <= most:
        return value
    raise ConfigError(f"{model} with {name} = {repr(value)[:60]} cannot be built.")
