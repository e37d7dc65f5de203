"""The T5 encoder against its equations, padding, and published configs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from simjax.errors import ConfigError
from simjax.networks.t5 import T5Encoder, bucket
from simjax.porting.maps import rules, t5

SIZES = {"vocabulary": 50, "width": 24, "depth": 2, "heads": 3, "head_width": 4, "hidden": 40}
# google/t5-v1_1-xxl, config.json
XXL = {
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}
# First distance in each of the 16 buckets of a direction; from the ninth: 8 * 16^(k / 8), k = 0..7.
FIRST = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
LENGTHS = [7, 3, 1]
MASK = np.arange(7) < np.array(LENGTHS)[:, None]
TOKENS = np.random.default_rng(0).integers(1, 50, (3, 7))


def encoder(dtype=jnp.float32, param_dtype=jnp.float32, **options):
    return T5Encoder(**SIZES | options, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))


@functools.cache
def weights():
    """Random weights, including norms and the bias table."""
    random = np.random.default_rng(1)
    made = nnx.to_pure_dict(nnx.state(encoder()))
    made["position_bias"] = random.standard_normal((32, SIZES["heads"])).astype(np.float32)
    for norm in (made["norm"], made["blocks"]["norm0"], made["blocks"]["norm1"]):
        norm["scale"] = random.uniform(0.5, 1.5, norm["scale"].shape).astype(np.float32)
    return made


def encode(tokens, mask, params=None, **options):
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: encoder(**options)))
    run = jax.jit(lambda params: nnx.merge(graphdef, params)(tokens, mask))
    return np.asarray(run(weights() if params is None else params))


def distance(ours, expected):
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected)


def written_out(tokens, w):
    """Reference features of one unpadded prompt, float64, looping over heads and token pairs."""

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def row(i, j):
        return np.searchsorted(FIRST, abs(j - i), side="right") - 1 + (16 if j > i else 0)

    w = jax.tree.map(np.float64, w)
    x, (heads, head) = w["embedding"][tokens], (SIZES["heads"], SIZES["head_width"])
    for layer in range(SIZES["depth"]):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], w["blocks"])
        h = norm(x, block["norm0"]["scale"])
        q, k, v = ((h @ block[name]["kernel"]).reshape(-1, heads, head) for name in "qkv")
        mixed = np.zeros_like(v)
        for n, i in np.ndindex(heads, len(tokens)):
            bias = [w["position_bias"][row(i, j), n] for j in range(len(tokens))]
            share = np.exp(k[:, n] @ q[i, n] + bias)
            mixed[i, n] = share / share.sum() @ v[:, n]
        x = x + mixed.reshape(len(tokens), -1) @ block["o"]["kernel"]
        h = norm(x, block["norm1"]["scale"])
        gated = gelu(h @ block["wi_0"]["kernel"]) * (h @ block["wi_1"]["kernel"])
        x = x + gated @ block["wo"]["kernel"]
    return norm(x, w["norm"]["scale"])


def test_features_equal_the_written_out_reference():
    found = encode(TOKENS, MASK)
    for row, length in enumerate(LENGTHS):
        expected = written_out(TOKENS[row, :length], weights())
        assert distance(found[row, :length], expected) < 1e-5


def test_buckets_are_the_published_ones():
    found = [bucket(n, 32, 128) for n in range(1000)]
    assert found == [sum(first <= n for first in FIRST) - 1 for n in range(1000)]


def test_keys_after_the_query_have_separate_buckets():
    table = jnp.arange(32.0)[:, None] + jnp.array([0, 100, 200])
    net = encoder()
    net.position_bias[...] = table
    bias = np.asarray(net._bias(130))
    assert bias.shape == (3, 130, 130)
    assert list(bias[1, 0, [0, 1, 7, 8, 128, 129]]) == [100, 117, 123, 124, 131, 131]
    assert list(bias[1, 129, [129, 128, 122, 121, 1, 0]]) == [100, 101, 107, 108, 115, 115]
    assert bias[0, 50, 40] == bias[0, 90, 80]


def test_padding_does_not_change_the_features_of_tokens():
    found = encode(TOKENS, MASK)
    other_padding = np.where(MASK, TOKENS, 9)
    longer = np.pad(other_padding, [(0, 0), (0, 5)], constant_values=3)
    again = encode(longer, np.pad(MASK, [(0, 0), (0, 5)]))[:, :7]
    assert distance(again[MASK], found[MASK]) < 1e-6
    assert distance(again[~MASK], found[~MASK]) > 0.1  # but features of padding differ


def test_features_of_a_fully_padded_prompt_are_finite():
    assert np.isfinite(encode(TOKENS, np.zeros_like(MASK))).all()


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_is_near_float32(param_dtype):
    """Measured: 0.8 %, with bfloat16 parameters (rounding 0.2 %) 1.1 %."""
    params = jax.tree.map(lambda w: jnp.asarray(w, param_dtype), weights())
    found = encode(TOKENS, MASK, params, dtype=jnp.bfloat16, param_dtype=param_dtype)
    assert found.dtype == np.float32
    assert distance(found[MASK], encode(TOKENS, MASK)[MASK]) < 0.02


def test_residual_stream_keeps_block_outputs_in_large_channels():
    """512 + 1 rounds to 512 in bfloat16, so a bfloat16 sum would lose the output of blocks."""
    params = weights() | {"embedding": np.sign(weights()["embedding"]) * 512}
    without = jax.tree.map(np.array, params)
    for name in ("o", "wo"):
        without["blocks"][name]["kernel"][:] = 0
    start = encode(TOKENS, MASK, without)[MASK]
    added, half = (
        encode(TOKENS, MASK, params, dtype=dtype)[MASK] - start
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert distance(half, added) < 0.05


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_remat_reaches_the_blocks(remat):
    net = encoder(remat=remat)
    assert ("remat" in str(jax.make_jaxpr(net)(TOKENS, MASK))) == (remat == "blocks")


def test_xxl_has_the_published_number_of_parameters():
    arguments = t5.describe(XXL)
    net = nnx.eval_shape(lambda: encoder(param_dtype=jnp.bfloat16, **arguments))
    leaves = jax.tree.leaves(nnx.state(net))
    assert sum(leaf.size for leaf in leaves) == 4_762_310_656
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def foreign():
    """Tensors of SIZES with transformers' names and layouts; values identify the layers."""
    width, inner, hidden = 24, 12, 40
    tensors = {
        "shared.weight": np.ones((50, width)),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": np.ones((32, 3)),
        "encoder.final_layer_norm.weight": np.ones(width),
    }
    shapes = {
        **{f"layer.0.SelfAttention.{name}.weight": (inner, width) for name in "qkv"},
        "layer.0.SelfAttention.o.weight": (width, inner),
        "layer.0.layer_norm.weight": (width,),
        "layer.1.layer_norm.weight": (width,),
        "layer.1.DenseReluDense.wi_0.weight": (hidden, width),
        "layer.1.DenseReluDense.wi_1.weight": (hidden, width),
        "layer.1.DenseReluDense.wo.weight": (width, hidden),
    }
    for layer in range(2):
        for number, (name, shape) in enumerate(shapes.items()):
            tensors[f"encoder.block.{layer}.{name}"] = np.full(shape, 10.0 * layer + number)
    return tensors


@pytest.fixture(scope="module")
def template():
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(encoder)))


def test_tensors_are_mapped_to_their_parameters(template):
    blocks = rules.apply(t5.RULES, foreign(), template)["blocks"]
    order = ["q", "k", "v", "o", "norm0", "norm1", "wi_0", "wi_1", "wo"]
    for number, name in enumerate(order):
        (leaf,) = blocks[name].values()
        assert (leaf[0] == number).all()
        assert (leaf[1] == 10 + number).all()


@pytest.mark.parametrize(
    "names", [["shared"], ["encoder.embed_tokens"], ["shared", "encoder.embed_tokens"]]
)
def test_the_embedding_may_have_either_name_or_both(template, names):
    tensors = foreign()
    embedding = tensors.pop("shared.weight")
    tensors |= {f"{name}.weight": embedding for name in names}
    tensors |= {
        "decoder.block.0.layer.0.layer_norm.weight": np.ones(24),
        "lm_head.weight": embedding,
    }
    filled = rules.apply(t5.RULES, tensors, template)
    np.testing.assert_array_equal(filled["embedding"], embedding)


def test_two_embeddings_that_differ_are_refused(template):
    tensors = foreign()
    tensors["encoder.embed_tokens.weight"] = 2 * tensors["shared.weight"]
    with pytest.raises(ConfigError, match=r"encoder\.embed_tokens\.weight differs"):
        rules.apply(t5.RULES, tensors, template)


def test_the_published_config_is_parsed():
    assert t5.describe(XXL) == {
        "vocabulary": 32128,
        "width": 4096,
        "depth": 24,
        "heads": 64,
        "head_width": 64,
        "hidden": 10240,
        "buckets": 32,
        "max_distance": 128,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj = 'relu' is not supported"),
        ({"feed_forward_proj": "gated-silu"}, "expected 'gated-gelu'"),
        ({"dense_act_fn": "gelu"}, "dense_act_fn = 'gelu' is not supported"),
        ({"is_gated_act": False}, "is_gated_act = False"),
        ({"model_type": "umt5"}, "model_type = 'umt5'"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon = 1e-05"),
        ({"d_model": 10**9}, "d_model = 1000000000 is not supported; expected a whole number"),
        ({"num_layers": 0}, "num_layers = 0"),
        ({"num_heads": True}, "num_heads = True"),
        ({"d_kv": 64.0}, "d_kv = 64.0"),
        ({"vocab_size": None}, "vocab_size = None"),
        ({"relative_attention_num_buckets": 33}, "expected an even number"),
        ({"relative_attention_max_distance": 8}, "relative_attention_max_distance = 8"),
        ({"relative_attention_max_distance": 10**9}, "expected a whole number from 1 to 4096"),
    ],
)
def test_unsupported_and_invalid_configs_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        t5.describe(XXL | changes)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["d_ff", "feed_forward_proj"])
def test_config_fields_without_a_safe_default_are_required(name):
    with pytest.raises(ConfigError, match=name):
        t5.describe({key: value for key, value in XXL.items() if key != name})
