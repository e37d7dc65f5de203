"""The autoencoder's layers against closed forms, latent units, and published configs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from simjax.errors import ConfigError
from simjax.networks import vae
from simjax.porting.maps import rules
from simjax.porting.maps import vae as names

SMALL = {"channels": (8, 16), "blocks": 1, "groups": 4, "latent_channels": 2}
# stabilityai/sd-vae-ft-ema, config.json
PUBLISHED = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
LATENTS = np.random.default_rng(1).standard_normal((2, 4, 6, 2)).astype(np.float32)


def init():
    return {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}


def autoencoder(dtype=jnp.float32, **options):
    return vae.Autoencoder(**SMALL | options, dtype=dtype, rngs=nnx.Rngs(0))


@functools.cache
def weights():
    """Random weights, including norms and biases."""
    random = np.random.default_rng(2)

    def other(path, leaf):
        noise = random.standard_normal(leaf.shape).astype(np.float32)
        return leaf if path[-1].key == "kernel" else leaf + 0.3 * noise

    return jax.tree.map_with_path(other, nnx.to_pure_dict(nnx.state(autoencoder())))


def functions(params=None, **options):
    """(encode, decode) of SMALL with random weights."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: autoencoder(**options)))
    net = nnx.merge(graphdef, weights() if params is None else params)
    return jax.jit(net.encode), jax.jit(net.decode)


def distance(ours, expected):
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected)


def test_the_published_size_has_the_published_number_of_parameters():
    arguments = names.describe(PUBLISHED)
    net = nnx.eval_shape(lambda: vae.Autoencoder(**arguments, **init()))
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part))
        for name, part in nnx.to_pure_dict(nnx.state(net)).items()
    }
    assert counts == {
        "encoder": 34_163_592,
        "quant_conv": 72,
        "decoder": 49_490_179,
        "post_quant_conv": 20,
    }
    assert sum(counts.values()) == 83_653_863


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_all_levels_but_the_last_halve_the_image_and_double_it_back(levels):
    images = jax.ShapeDtypeStruct((2, 32, 64, 3), jnp.float32)

    def there_and_back(images):
        net = autoencoder(channels=(8, 12, 16, 20)[:levels])
        mean, std = net.encode(images)
        return mean, std, net.decode(mean)

    mean, std, decoded = nnx.eval_shape(there_and_back, images)
    shrunk = 2 ** (levels - 1)
    assert mean.shape == std.shape == (2, 32 // shrunk, 64 // shrunk, 2)
    assert (decoded.shape, decoded.dtype) == (images.shape, images.dtype)


@pytest.mark.parametrize(("row", "column"), list(itertools.product([0, 2], [0, 2])))
def test_downsampling_pads_at_the_bottom_and_right(row, column):
    net = vae.Downsample(1, **init())
    net.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[row, column].set(1)
    padded = np.pad(IMAGES[..., :1], [(0, 0), (0, 2), (0, 2), (0, 0)])
    expected = padded[:, row : row + 8 : 2, column : column + 12 : 2]
    np.testing.assert_allclose(net(IMAGES[..., :1]), expected, atol=1e-6)


def test_upsampling_repeats_pixels_before_the_convolution():
    net = vae.Upsample(1, **init())
    net.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[0, 1].set(1)  # the pixel above
    repeated = np.kron(IMAGES[..., 0], np.ones((1, 2, 2)))
    above = np.pad(repeated, [(0, 0), (1, 0), (0, 0)])[:, :-1]
    np.testing.assert_allclose(net(IMAGES[..., :1])[..., 0], above, atol=1e-6)


def test_attention_is_one_head_over_all_pixels():
    net = vae.Attention(8, groups=4, **init())
    x = 3 * np.random.default_rng(3).standard_normal((2, 3, 5, 8)).astype(np.float32)
    h = np.asarray(net.norm(x)).reshape(2, 15, 8)
    q, k, v, out = (f.kernel[...][0, 0] for f in (net.query, net.key, net.value, net.proj))
    share = jax.nn.softmax((h @ q) @ (h @ k).swapaxes(1, 2) / np.sqrt(8), axis=-1)
    expected = x + (share @ (h @ v) @ out).reshape(x.shape)
    assert np.abs(expected - x).max() > 0.1
    np.testing.assert_allclose(net(x), expected, atol=1e-4)


def test_group_norm_uses_the_configured_groups():
    """Statistics are per group: a constant shift of each group changes nothing."""
    net = vae.ResidualBlock(8, 8, groups=4, **init())
    x = np.random.default_rng(3).standard_normal((1, 4, 4, 8)).astype(np.float32)
    shifted = x + np.repeat([0, 5, -2, 1], 2)
    np.testing.assert_allclose(net(shifted) - shifted, net(x) - x, atol=1e-4)
    assert net.norm1.epsilon == net.norm2.epsilon == 1e-6


def test_latents_are_in_units_of_the_diffusion_model():
    (encode, decode), (encode_raw, decode_raw) = functions(scaling=0.25), functions(scaling=1.0)
    for scaled, raw in zip(encode(IMAGES), encode_raw(IMAGES), strict=True):
        np.testing.assert_allclose(scaled, 0.25 * raw, rtol=1e-6)
    np.testing.assert_allclose(decode(0.25 * LATENTS), decode_raw(LATENTS), rtol=1e-6)


def test_moments_split_into_mean_and_clipped_log_variance():
    params = jax.tree.map(np.array, weights())
    params["quant_conv"]["kernel"][:] = 0
    params["quant_conv"]["bias"] = np.float32([1, 2, -100, 100])
    encode, _ = functions(params, scaling=2.0)
    mean, std = encode(IMAGES)
    np.testing.assert_allclose(mean, np.broadcast_to([2, 4], mean.shape))
    expected = 2 * np.exp([-15, 10])  # half of -30 and of 20
    np.testing.assert_allclose(std, np.broadcast_to(expected, std.shape), rtol=1e-5)


def test_blocks_run_in_their_order_after_a_split_and_merge():
    net = autoencoder()
    _, decode = functions(nnx.to_pure_dict(nnx.state(net)))
    np.testing.assert_allclose(decode(LATENTS), net.decode(jnp.asarray(LATENTS)), atol=1e-5)
    assert net.decoder.order[:4] == ("mid_block0", "mid_attention", "mid_block1", "level0_block0")
    assert net.encoder.order[-1] == "mid_block1"


def test_bfloat16_is_near_float32():
    """Measured: 0.4 %, for the standard deviation 0.1 %."""
    (encode, decode), (encode_half, decode_half) = functions(), functions(dtype=jnp.bfloat16)
    for half, full in zip(encode_half(IMAGES), encode(IMAGES), strict=True):
        assert half.dtype == np.float32
        assert distance(half, full) < 0.01
    assert decode_half(LATENTS).dtype == np.float32
    assert distance(decode_half(LATENTS), decode(LATENTS)) < 0.01


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1, 1)])
@pytest.mark.parametrize("older", [False, True])
def test_attention_weights_are_read_from_old_and_new_names_and_shapes(shape, older):
    now = ("to_q", "to_k", "to_v", "to_out.0")
    foreign = ("query", "key", "value", "proj_attn") if older else now
    at = "encoder.mid_block.attentions.0."
    tensors = {f"{at}group_norm.weight": np.ones(16), f"{at}group_norm.bias": np.ones(16)}
    for number, name in enumerate(foreign):
        tensors[f"{at}{name}.weight"] = np.arange(256.0).reshape(shape) + number
        tensors[f"{at}{name}.bias"] = np.full(16, number)
    like = nnx.to_pure_dict(
        nnx.state(nnx.eval_shape(lambda: vae.Attention(16, groups=4, **init())))
    )
    template = {"encoder": {"blocks": {"mid_attention": like}}}
    filled = rules.apply(names.RULES, tensors, template)["encoder"]["blocks"]["mid_attention"]
    for number, name in enumerate(("query", "key", "value", "proj")):
        expected = np.arange(256.0).reshape(16, 16).T + number
        np.testing.assert_array_equal(filled[name]["kernel"][0, 0], expected)
        np.testing.assert_array_equal(filled[name]["bias"], number)


def test_the_published_config_is_parsed():
    expected = {
        "image_channels": 3,
        "latent_channels": 4,
        "channels": (128, 256, 512, 512),
        "blocks": 2,
        "groups": 32,
        "scaling": 0.18215,
    }
    assert names.describe(PUBLISHED) == expected
    xl = {"scaling_factor": 0.13025, "force_upcast": True, "shift_factor": None}
    assert names.describe(PUBLISHED | xl) == expected | {"scaling": 0.13025}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "relu"}, "act_fn = 'relu' is not supported; expected 'silu'"),
        ({"shift_factor": 0.1159}, "shift_factor = 0.1159"),
        ({"use_quant_conv": False}, "use_quant_conv = False"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention = False"),
        ({"out_channels": 4}, "out_channels = 4 is not supported; expected 3"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "down_block_types = ['Attn"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 3}, "up_block_types = ['UpDecoder"),
        ({"temporal": 1}, "AutoencoderKL: unknown field 'temporal'"),
        ({"_class_name": "AutoencoderTiny"}, "_class_name = 'AutoencoderTiny'"),
        ({"block_out_channels": [128] * 100}, "expected a list of 1 to 8 widths"),
        ({"block_out_channels": [10**9]}, "block_out_channels = 1000000000"),
        ({"block_out_channels": [100] * 4}, "expected multiples of norm_num_groups = 32"),
        ({"block_out_channels": None}, "block_out_channels = None"),
        ({"layers_per_block": 10**6}, "layers_per_block = 1000000"),
        ({"latent_channels": 0}, "latent_channels = 0"),
        ({"norm_num_groups": True}, "norm_num_groups = True"),
        ({"scaling_factor": float("nan")}, "scaling_factor = nan"),
        ({"scaling_factor": -1}, "scaling_factor = -1 is not supported; expected a number"),
        ({"scaling_factor": "1"}, "scaling_factor = '1'"),
    ],
)
def test_unsupported_and_invalid_configs_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        names.describe(PUBLISHED | changes)
    assert message in str(error.value)
