"""T5 encoder and autoencoder against transformers and diffusers, from saved files."""

import json

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from simjax import config
from simjax.errors import ConfigError
from simjax.models import autoencoder
from simjax.networks.t5 import T5Encoder, bucket
from simjax.networks.vae import Autoencoder
from simjax.porting.files import read_safetensors
from simjax.porting.maps import rules, t5, vae
from tests.helpers.official import worst


def init():
    return {"dtype": np.float32, "rngs": nnx.Rngs(0)}


def disturbed(module):
    """Randomizes norms, biases and position tables, which are initialised as ones and zeros."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if "norm" in name or name.endswith("bias") or "relative_attention_bias" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += (0.3 if "norm" in name else 1.0) * noise
    return module.eval()


def ported(make, name_map, file):
    """The network of `make` with the weights of a file."""
    graphdef, like = nnx.split(nnx.eval_shape(make))
    tensors = read_safetensors.read(file)
    return nnx.merge(graphdef, rules.apply(name_map, tensors, nnx.to_pure_dict(like)))


def described(folder, describe):
    return describe(json.loads((folder / "config.json").read_text()))


T5_SIZES = [
    {"vocab_size": 60, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48},
    {"vocab_size": 40, "d_model": 24, "num_layers": 3, "num_heads": 3, "d_kv": 16, "d_ff": 80}
    | {"relative_attention_num_buckets": 16, "relative_attention_max_distance": 40},
]
LENGTHS = (150, 77, 9, 1)  # some exceed the largest relative distance


@pytest.mark.parametrize("kind", ["T5EncoderModel", "T5ForConditionalGeneration"])
@pytest.mark.parametrize("sizes", T5_SIZES, ids=["small", "other"])
def test_t5(tmp_path, sizes, kind):
    torch.manual_seed(0)
    config = transformers.T5Config(**sizes, feed_forward_proj="gated-gelu")
    theirs = disturbed(getattr(transformers, kind)(config))
    theirs.save_pretrained(tmp_path)
    arguments = described(tmp_path, t5.describe)
    ours = ported(
        lambda: T5Encoder(**arguments, param_dtype=np.float32, **init()),
        t5.RULES,
        tmp_path / "model.safetensors",
    )
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    tokens = np.random.default_rng(0).integers(0, sizes["vocab_size"], mask.shape)
    with torch.no_grad():
        expected = theirs.get_encoder()(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask, dtype=torch.long)
        ).last_hidden_state.numpy()
    assert worst(np.asarray(jax.jit(ours)(tokens, mask))[mask], expected[mask]) < 1e-4


def test_position_buckets_equal_those_of_transformers():
    """32 buckets, distance 128; for other sizes float32 logarithms may round differently."""
    attention = transformers.models.t5.modeling_t5.T5Attention
    theirs = attention._relative_position_bucket(torch.arange(-400, 401))
    assert theirs.tolist() == [bucket(abs(n), 32, 128) + 16 * (n > 0) for n in range(-400, 401)]


VAE_SIZES = [
    {"block_out_channels": (32, 64), "layers_per_block": 2, "latent_channels": 4},
    {"block_out_channels": (16, 16, 32), "layers_per_block": 1, "latent_channels": 3}
    | {"norm_num_groups": 8, "in_channels": 1, "out_channels": 1, "scaling_factor": 0.5},
]


@pytest.mark.parametrize("sizes", VAE_SIZES, ids=["small", "other"])
def test_autoencoder(tmp_path, sizes):
    torch.manual_seed(0)
    levels = len(sizes["block_out_channels"])
    theirs = disturbed(
        diffusers.AutoencoderKL(
            **sizes,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
        )
    )
    theirs.save_pretrained(tmp_path)
    arguments = described(tmp_path, vae.describe)
    ours = ported(
        lambda: Autoencoder(**arguments, **init()),
        vae.RULES,
        tmp_path / "diffusion_pytorch_model.safetensors",
    )
    random, scaling = np.random.default_rng(0), theirs.config.scaling_factor
    images = random.uniform(-1, 1, (2, 16, 24, theirs.config.in_channels)).astype(np.float32)
    side = 2 ** (levels - 1)
    latents = random.standard_normal((2, 16 // side, 24 // side, sizes["latent_channels"]))
    latents = latents.astype(np.float32)

    def nchw(x):
        return torch.tensor(x).permute(0, 3, 1, 2)

    def nhwc(x):
        return x.permute(0, 2, 3, 1).numpy()

    with torch.no_grad():
        latent = theirs.encode(nchw(images)).latent_dist
        decoded = theirs.decode(nchw(latents) / scaling).sample
    mean, std = jax.jit(ours.encode)(images)
    assert worst(np.asarray(mean), scaling * nhwc(latent.mean)) < 1e-4
    assert worst(np.asarray(std), scaling * nhwc(latent.std)) < 1e-4
    assert worst(np.asarray(jax.jit(ours.decode)(latents)), nhwc(decoded)) < 1e-4
    network = config.DiT(image_channels=sizes["latent_channels"])
    decode = autoencoder.load_decoder(tmp_path, network)  # one image at a time
    assert worst(decode(latents), nhwc(decoded)) < 1e-4
    with pytest.raises(ConfigError, match="its latents have"):
        autoencoder.load_decoder(tmp_path, config.DiT(image_channels=5))
