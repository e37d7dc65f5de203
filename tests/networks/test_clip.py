"""CLIP against its equations, padding and causality, and published configs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from simjax.errors import ConfigError
from simjax.networks.clip import Clip, Text, Vision
from simjax.porting.maps import clip, rules
from tests.helpers.clip_files import PROJECTION, TEXT, VISION, foreign

END = 59
# openai/clip-vit-large-patch14, config.json: the fields of the networks
LARGE = {
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "vocab_size": 49408,
    },
    "vision_config": {
        "hidden_act": "quick_gelu",
        "hidden_size": 1024,
        "image_size": 224,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}

PIXELS = np.random.default_rng(0).standard_normal((3, 28, 28, 3)).astype(np.float32)
LENGTHS = [8, 5, 2]
MASK = np.arange(8) < np.array(LENGTHS)[:, None]
TOKENS = np.random.default_rng(0).integers(1, END, (3, 8))
TOKENS[np.arange(3), np.array(LENGTHS) - 1] = END


def network(end=END, activation="quick_gelu", dtype=jnp.float32):
    vision = Vision(**VISION, activation=activation)
    text = Text(**TEXT, activation=activation, end=end)
    return Clip(vision=vision, text=text, projection=PROJECTION, dtype=dtype, rngs=nnx.Rngs(0))


@functools.cache
def weights():
    """Random weights, including norms and biases, large enough for a peaked softmax."""
    random = np.random.default_rng(1)
    made = nnx.to_pure_dict(nnx.state(network()))

    def fill(path, leaf):
        name = path[-1].key
        noise = random.standard_normal(leaf.shape)
        fan_in = leaf.shape[-2] if name == "kernel" else 1
        value = 1 + 0.3 * noise if name == "scale" else 1.5 * noise / np.sqrt(fan_in)
        return value.astype(np.float32)

    return jax.tree.map_with_path(fill, made)


@functools.cache
def program(method, **options):
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: network(**options)))
    return jax.jit(lambda params, *inputs: getattr(nnx.merge(graphdef, params), method)(*inputs))


def embed(method, *inputs, **options):
    return np.asarray(program(method, **options)(weights(), *inputs))


def embed_texts(tokens, mask, **options):
    return embed("embed_texts", tokens, mask, **options)


def distance(ours, expected):
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected)


ACTIVATIONS = {
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: x * (1 + special.erf(x / np.sqrt(2))) / 2,
}


def norm(x, w):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w["scale"] + w["bias"]


def blocks_written_out(x, stack, heads, readable, activation):
    """Reference blocks on one example's tokens (n, c), float64, looping over heads and tokens."""
    for layer in range(len(stack["norm1"]["scale"])):
        w = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stack)
        products = norm(x, w["norm1"]) @ w["qkv"]["kernel"] + w["qkv"]["bias"]
        q, k, v = (part.reshape(len(x), heads, -1) for part in np.split(products, 3, axis=-1))
        mixed = np.zeros_like(v)
        for n, i in np.ndindex(heads, len(x)):
            keys = [j for j in range(len(x)) if readable(i, j)]
            share = np.exp(k[keys, n] @ q[i, n] / np.sqrt(q.shape[-1]))
            mixed[i, n] = share / share.sum() @ v[keys, n]
        x = x + mixed.reshape(x.shape) @ w["proj"]["kernel"] + w["proj"]["bias"]
        h = norm(x, w["norm2"]) @ w["mlp"]["fc1"]["kernel"] + w["mlp"]["fc1"]["bias"]
        x = x + ACTIVATIONS[activation](h) @ w["mlp"]["fc2"]["kernel"] + w["mlp"]["fc2"]["bias"]
    return x


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_image_embeddings_equal_the_written_out_reference(activation):
    w = jax.tree.map(np.float64, weights()["vision"])
    found = embed("embed_images", PIXELS, activation=activation)
    assert found.dtype == np.float32
    for image, row in zip(PIXELS, found, strict=True):
        corners = [(i, j) for i in range(0, 28, 7) for j in range(0, 28, 7)]
        patches = [image[i : i + 7, j : j + 7] for i, j in corners]
        tokens = [np.einsum("ijc,ijcd->d", patch, w["patches"]["kernel"]) for patch in patches]
        x = norm(np.stack([w["class_token"], *tokens]) + w["positions"], w["norm_in"])
        x = blocks_written_out(x, w["blocks"], VISION["heads"], lambda i, j: True, activation)
        assert distance(row, norm(x[0], w["norm_out"]) @ w["projection"]["kernel"]) < 1e-5


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_text_embeddings_equal_the_written_out_reference(activation):
    w = jax.tree.map(np.float64, weights()["text"])
    found = embed_texts(TOKENS, MASK, activation=activation)
    assert found.dtype == np.float32
    for text, length, row in zip(TOKENS, LENGTHS, found, strict=True):
        x = w["embedding"][text[:length]] + w["positions"][:length]
        x = blocks_written_out(x, w["blocks"], TEXT["heads"], lambda i, j: j <= i, activation)
        assert distance(row, norm(x[-1], w["norm_out"]) @ w["projection"]["kernel"]) < 1e-5


@pytest.mark.parametrize("end", [END, None])
def test_padding_after_the_end_changes_nothing(end):
    found = embed_texts(TOKENS, MASK, end=end)
    for padding in (0, END):
        padded = np.pad(np.where(MASK, TOKENS, padding), [(0, 0), (0, 2)], constant_values=padding)
        again = embed_texts(padded, np.pad(MASK, [(0, 0), (0, 2)]), end=end)
        assert distance(again, found) < 1e-6


def test_the_padding_token_may_be_larger_than_the_end_token():
    tokens = np.where(TOKENS == END, END - 1, TOKENS)
    found = embed_texts(np.where(MASK, tokens, 0), MASK, end=None)
    np.testing.assert_allclose(
        embed_texts(np.where(MASK, tokens, END), MASK, end=None), found, rtol=1e-5
    )


def test_text_attention_is_causal():
    """Tokens after the end do not affect the pooled token, even if they are unmasked."""
    everything = np.ones_like(MASK)
    found = embed_texts(TOKENS, everything)
    after = np.where(MASK, TOKENS, TOKENS % 7 + 1)
    assert distance(embed_texts(after, everything), found) < 1e-6
    before = np.where(np.arange(8) == 0, 3, TOKENS)
    assert distance(embed_texts(before, everything), found) > 0.1


def test_masked_tokens_are_ignored():
    mask = MASK & (np.arange(8) != 1) | (np.array(LENGTHS) == 2)[:, None] & MASK
    found = embed_texts(TOKENS, mask)
    other = np.where(mask, TOKENS, 5)
    assert distance(embed_texts(other, mask), found) < 1e-6
    assert distance(found[:2], embed_texts(TOKENS, MASK)[:2]) > 0.01


def test_texts_are_pooled_at_the_first_end_token():
    twice = np.where(MASK, TOKENS, END)
    everything = np.ones_like(MASK)
    for end in (END, None):
        assert distance(embed_texts(twice, everything, end=end), embed_texts(TOKENS, MASK)) < 1e-6
    other = embed_texts(TOKENS, MASK, end=int(TOKENS[0, 2]))
    assert distance(other[0], embed_texts(TOKENS, MASK)[0]) > 0.1


def test_bfloat16_is_near_float32():
    images = embed("embed_images", PIXELS, dtype=jnp.bfloat16)
    texts = embed_texts(TOKENS, MASK, dtype=jnp.bfloat16)
    assert distance(images, embed("embed_images", PIXELS)) < 0.03
    assert distance(texts, embed_texts(TOKENS, MASK)) < 0.03


def test_inputs_of_other_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"\(3, 27, 28, 3\), expected \(b, 28, 28, 3\)"):
        network().embed_images(PIXELS[:, 1:])
    long = np.full((1, 11), END)
    with pytest.raises(ConfigError, match="11 tokens, expected at most 10"):
        network().embed_texts(long, long > 0)


def test_the_large_network_has_the_published_number_of_parameters():
    sizes = clip.describe(LARGE)
    net = nnx.eval_shape(lambda: Clip(**sizes, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net))) == 427_616_513


def template():
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(network)))


def test_tensors_are_mapped_to_their_parameters():
    tensors = foreign()
    filled = rules.apply(clip.RULES, tensors, template())
    for tower, depth in (("vision", 2), ("text", 3)):
        for layer in range(depth):
            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], filled[tower]["blocks"])
            name = f"{tower}_model.encoder.layers.{layer}."
            heads = [f"{name}self_attn.{part}_proj" for part in "qkv"]
            joined = np.concatenate([tensors[f"{head}.weight"] for head in heads])
            np.testing.assert_array_equal(block["qkv"]["kernel"], joined.T)
            joined = np.concatenate([tensors[f"{head}.bias"] for head in heads])
            np.testing.assert_array_equal(block["qkv"]["bias"], joined)
            kernel = tensors[f"{name}mlp.fc2.weight"].T
            np.testing.assert_array_equal(block["mlp"]["fc2"]["kernel"], kernel)
            np.testing.assert_array_equal(
                block["norm2"]["scale"], tensors[f"{name}layer_norm2.weight"]
            )
    vision = filled["vision"]
    patches = tensors["vision_model.embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(vision["patches"]["kernel"], patches)
    np.testing.assert_array_equal(
        vision["norm_in"]["bias"], tensors["vision_model.pre_layrnorm.bias"]
    )
    np.testing.assert_array_equal(
        vision["norm_out"]["bias"], tensors["vision_model.post_layernorm.bias"]
    )
    projection = tensors["text_projection.weight"].T
    np.testing.assert_array_equal(filled["text"]["projection"]["kernel"], projection)


def test_the_published_config_is_parsed():
    assert clip.describe(LARGE) == {
        "vision": Vision(width=1024, depth=24, heads=16, hidden=4096, resolution=224, patch=14),
        "text": Text(
            width=768, depth=12, heads=12, hidden=3072, vocabulary=49408, length=77, end=None
        ),
        "projection": 768,
    }


def test_missing_fields_default_to_the_smallest_published_network():
    found = clip.describe({"model_type": "clip", "text_config": {}, "vision_config": {}})
    assert found["vision"] == Vision(
        width=768, depth=12, heads=12, hidden=3072, resolution=224, patch=32
    )
    assert found["text"] == Text(
        width=512, depth=12, heads=8, hidden=2048, vocabulary=49408, length=77, end=49407
    )
    assert found["projection"] == 512


def test_config_dicts_of_older_files_take_precedence():
    values = LARGE | {"vision_config_dict": {"hidden_size": 96, "patch_size": 16}}
    assert clip.describe(values)["vision"] == Vision(
        width=96, depth=12, heads=12, hidden=3072, resolution=224, patch=16
    )


@pytest.mark.parametrize(
    ("tower", "changes", "message"),
    [
        ("text_config", {"hidden_act": "relu"}, "text_config.hidden_act = 'relu'"),
        ("vision_config", {"hidden_act": ["gelu"]}, "expected 'quick_gelu' or 'gelu'"),
        ("vision_config", {"layer_norm_eps": 1e-6}, "vision_config.layer_norm_eps = 1e-06"),
        ("vision_config", {"num_channels": 4}, "vision_config.num_channels = 4"),
        ("vision_config", {"patch_size": 0}, "expected a whole number from 1 to 128"),
        ("vision_config", {"image_size": 10**6}, "expected a whole number from 1 to 1024"),
        ("vision_config", {"image_size": 8}, "patch_size = 14 is not supported; expected at most"),
        ("text_config", {"num_attention_heads": 7}, "expected a divisor of hidden_size = 768"),
        ("text_config", {"num_hidden_layers": True}, "text_config.num_hidden_layers = True"),
        ("text_config", {"vocab_size": 10**9}, "text_config.vocab_size = 1000000000"),
        ("text_config", {"max_position_embeddings": 2}, "expected at least 3"),
        ("text_config", {"eos_token_id": 49408}, "below vocab_size = 49408"),
        ("text_config", {"eos_token_id": None}, "text_config.eos_token_id = None"),
    ],
)
def test_unsupported_and_invalid_configs_are_refused(tower, changes, message):
    with pytest.raises(ConfigError) as error:
        clip.describe(LARGE | {tower: LARGE[tower] | changes})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip_text_model"}, "model_type = 'clip_text_model'"),
        ({"projection_dim": 10**9}, "projection_dim = 1000000000"),
        ({"text_config": None}, "text_config = None"),
        ({"vision_config_dict": 3}, "vision_config_dict = 3"),
    ],
)
def test_configs_without_both_towers_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        clip.describe(LARGE | changes)
    assert message in str(error.value)
