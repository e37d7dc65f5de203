"""Name map and config.json of transformers' CLIPModel; LAION's aesthetic head.

Called by evaluation/clip.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from simjax.networks.clip import ACTIVATIONS, CHANNELS, EPSILON, Text, Vision
from simjax.porting.maps.rules import Rule, oihw_to_hwio, transposed
from simjax.porting.maps.settings import Settings

_BLOCK = r"(text|vision)_model\.encoder\.layers\.(?P<layer>\d{1,3})\."


def _dense(foreign: str, ours: str, part: tuple[int, int] = (0, 1)) -> list[Rule]:
    """Rules of a linear layer; `ours` may refer to groups from \\3."""
    return [
        Rule(_BLOCK + foreign + r"\.weight", rf"\1/blocks/{ours}/kernel", transposed, part),
        Rule(_BLOCK + foreign + r"\.bias", rf"\1/blocks/{ours}/bias", part=part),
    ]


def _norm(foreign: str, ours: str) -> list[Rule]:
    return [Rule(foreign + r"\.weight", f"{ours}/scale"), Rule(foreign + r"\.bias", f"{ours}/bias")]


RULES: Sequence[Rule] = [
    Rule(r"(text|vision)_model\.embeddings\.position_ids", None),  # 0, 1, 2, ...
    Rule(r"logit_scale", "logit_scale"),
    Rule(r"visual_projection\.weight", "vision/projection/kernel", transposed),
    Rule(r"text_projection\.weight", "text/projection/kernel", transposed),
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "text/embedding"),
    Rule(r"(text|vision)_model\.embeddings\.position_embedding\.weight", r"\1/positions"),
    Rule(r"vision_model\.embeddings\.class_embedding", "vision/class_token"),
    Rule(
        r"vision_model\.embeddings\.patch_embedding\.weight", "vision/patches/kernel", oihw_to_hwio
    ),
    *_norm(r"vision_model\.pre_layrnorm", "vision/norm_in"),  # so spelled
    *_norm(r"vision_model\.post_layernorm", "vision/norm_out"),
    *_norm(r"text_model\.final_layer_norm", "text/norm_out"),
    *_norm(_BLOCK + r"layer_norm([12])", r"\1/blocks/norm\3"),
    *_dense(r"self_attn\.q_proj", "qkv", part=(0, 3)),
    *_dense(r"self_attn\.k_proj", "qkv", part=(1, 3)),
    *_dense(r"self_attn\.v_proj", "qkv", part=(2, 3)),
    *_dense(r"self_attn\.out_proj", "proj"),
    *_dense(r"mlp\.(fc[12])", r"mlp/\3"),
]

# sac+logos+ava1-l14-linearMSE.pth of christophschuhmann/improved-aesthetic-predictor: a Sequential
# whose layers 1, 3 and 5 are dropout.
AESTHETIC_RULES: Sequence[Rule] = [
    Rule(r"layers\.([02467])\.weight", r"\1/kernel", transposed),
    Rule(r"layers\.([02467])\.bias", r"\1/bias"),
]

# Field of config.json: our field and its largest value, some twice that of published networks.
WIDEST = 2**13
TOWER = {
    "hidden_size": ("width", WIDEST),
    "num_hidden_layers": ("depth", 128),
    "num_attention_heads": ("heads", 128),
    "intermediate_size": ("hidden", 2**15),
}
VISION = TOWER | {"image_size": ("resolution", 2**10), "patch_size": ("patch", 2**7)}
TEXT = TOWER | {"vocab_size": ("vocabulary", 2**19), "max_position_embeddings": ("length", 2**10)}
SHORTEST = 3  # tokens: start, one of text, end
# transformers' defaults for missing fields: ViT-B/32.
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
PROJECTION_DEFAULT = 512
# Published configs have this eos_token_id by mistake; transformers then pools at the largest token
# (its pull request 24773).
MISTAKEN_END = 2
SETTINGS = Settings("CLIP", "Supported: folders of CLIPModel, e.g. openai/clip-vit-large-patch14.")


def describe(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Clip` (vision, text, projection) from a config.json's values.

    Raises:
      ConfigError: a size is out of range, or the network is not supported.
    """
    if values.get("model_type") != "clip":
        raise SETTINGS.refusal(
            "model_type", values.get("model_type"), "'clip', both towers in one folder"
        )
    vision = _tower(values, "vision_config", VISION_DEFAULTS)
    text = _tower(values, "text_config", TEXT_DEFAULTS)
    if vision["num_channels"] != CHANNELS:
        raise SETTINGS.refusal("vision_config.num_channels", vision["num_channels"], str(CHANNELS))
    vision_sizes = _sizes(vision, "vision_config", VISION)
    if vision_sizes["patch"] > vision_sizes["resolution"]:
        expected = f"at most image_size = {vision_sizes['resolution']}"
        raise SETTINGS.refusal("vision_config.patch_size", vision_sizes["patch"], expected)
    text_sizes = _sizes(text, "text_config", TEXT)
    if text_sizes["length"] < SHORTEST:
        expected = f"at least {SHORTEST}"
        raise SETTINGS.refusal(
            "text_config.max_position_embeddings", text_sizes["length"], expected
        )
    projection = values.get("projection_dim", PROJECTION_DEFAULT)
    return {
        "vision": Vision(**vision_sizes, activation=vision["hidden_act"]),
        "text": Text(
            **text_sizes,
            activation=text["hidden_act"],
            end=_end(text["eos_token_id"], text_sizes["vocabulary"]),
        ),
        "projection": SETTINGS.size("projection_dim", projection, WIDEST),
    }


def _tower(values: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one tower; NAME_dict takes precedence, as in transformers."""
    given, preferred = values.get(name), values.get(f"{name}_dict")
    for field, value in ((name, given), (f"{name}_dict", preferred or {})):
        if not isinstance(value, Mapping):
            raise SETTINGS.refusal(
                field, value, "the fields of a tower, as in folders of CLIPModel"
            )
    tower = {**defaults, **given}
    if preferred:
        tower |= {**defaults, **preferred}
    if tower["hidden_act"] not in [*ACTIVATIONS]:
        known = " or ".join(map(repr, ACTIVATIONS))
        raise SETTINGS.refusal(f"{name}.hidden_act", tower["hidden_act"], known)
    if tower["layer_norm_eps"] != EPSILON:
        raise SETTINGS.refusal(f"{name}.layer_norm_eps", tower["layer_norm_eps"], str(EPSILON))
    return tower


def _sizes(
    tower: Mapping[str, Any], name: str, known: Mapping[str, tuple[str, int]]
) -> dict[str, int]:
    sizes = {
        ours: SETTINGS.size(f"{name}.{field}", tower[field], most)
        for field, (ours, most) in known.items()
    }
    if sizes["width"] % sizes["heads"]:
        expected = f"a divisor of hidden_size = {sizes['width']}"
        raise SETTINGS.refusal(f"{name}.num_attention_heads", sizes["heads"], expected)
    return sizes


def _end(value: Any, vocabulary: int) -> int | None:
    """The value of `Text.end`; None for the mistaken one in published configs."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocabulary:
        raise SETTINGS.refusal(
            "text_config.eos_token_id", value, f"a whole number below vocab_size = {vocabulary}"
        )
    return None if value == MISTAKEN_END else value
