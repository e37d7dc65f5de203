"""Name map and config.json of transformers' T5 v1.1 checkpoints.

For T5EncoderModel and for full T5 models, whose decoder is ignored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from simjax.porting.maps.rules import Rule, transposed
from simjax.porting.maps.settings import Settings

_BLOCK = r"encoder\.block\.(?P<layer>\d{1,3})\.layer\."
_TABLE = r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight"
RULES: Sequence[Rule] = [
    Rule(r"decoder\..*|lm_head\.weight", None),
    Rule(r"shared\.weight|encoder\.embed_tokens\.weight", "embedding", copies=True),
    Rule(_TABLE, "position_bias"),
    Rule(_BLOCK + r"([01])\.layer_norm\.weight", r"blocks/norm\2/scale"),
    Rule(_BLOCK + r"0\.SelfAttention\.([qkvo])\.weight", r"blocks/\2/kernel", transposed),
    Rule(_BLOCK + r"1\.DenseReluDense\.(wi_0|wi_1|wo)\.weight", r"blocks/\2/kernel", transposed),
    Rule(r"encoder\.final_layer_norm\.weight", "norm/scale"),
]

# Field of config.json: our field and its largest value, some twice that of published encoders.
SIZES = {
    "vocab_size": ("vocabulary", 2**18),
    "d_model": ("width", 2**13),
    "num_layers": ("depth", 64),
    "num_heads": ("heads", 128),
    "d_kv": ("head_width", 256),
    "d_ff": ("hidden", 2**15),
    "relative_attention_num_buckets": ("buckets", 256),
    "relative_attention_max_distance": ("max_distance", 4096),
}
# transformers' defaults for missing fields.
DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
}
KNOWN = {
    "model_type": "t5",
    "feed_forward_proj": "gated-gelu",  # T5 v1.1; the first T5 has "relu"
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-6,
}
SETTINGS = Settings("T5", "Supported: encoders of T5 v1.1, e.g. google/t5-v1_1-xxl.")


def describe(values: Mapping[str, Any]) -> dict[str, int]:
    """T5Encoder's sizes from a config.json's values; decoder fields are ignored.

    Raises:
      ConfigError: a size is missing or out of range, or the encoder is not supported.
    """
    values = {**DEFAULTS, **values}
    for name, known in KNOWN.items():
        if name in values and values[name] != known:
            raise SETTINGS.refusal(name, values[name], repr(known))
    sizes = {
        ours: SETTINGS.size(name, values.get(name), most) for name, (ours, most) in SIZES.items()
    }
    buckets = sizes["buckets"]
    if buckets < 4 or buckets % 2:
        raise SETTINGS.refusal(
            "relative_attention_num_buckets", buckets, "an even number of at least 4"
        )
    if (distance := sizes["max_distance"]) <= buckets // 4:
        raise SETTINGS.refusal(
            "relative_attention_max_distance",
            distance,
            f"more than a quarter of relative_attention_num_buckets = {buckets}",
        )
    return sizes
