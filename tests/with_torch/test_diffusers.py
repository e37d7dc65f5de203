"""diffusers' transformers and DPM-Solver against ours: outputs, and names in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from flax import nnx
from safetensors.numpy import save_file

from simjax import config
from simjax.diffusion import sampler
from simjax.diffusion.schedule import ddpm_linear_ladder
from simjax.errors import ConfigError
from simjax.models import build, port
from simjax.porting.files import read_safetensors
from simjax.porting.maps import dit, pixart, rules
from simjax.typing import Caption

TOLERANCE = 1e-4  # of outputs, relative

PIXART = {"in_channels": 4, "out_channels": 8, "patch_size": 2, "num_embeds_ada_norm": 1000}
PIXARTS = {
    "small": PIXART
    | {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "sample_size": 8}
    | {"cross_attention_dim": 48, "caption_channels": 20, "use_additional_conditions": False},
    "sized": PIXART  # size conditioning and interpolated positions, as for 1024 pixels
    | {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 3, "sample_size": 16}
    | {"cross_attention_dim": 48, "caption_channels": 32, "use_additional_conditions": True}
    | {"interpolation_scale": 2},
}
DITS = {
    "small": {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2}
    | {"sample_size": 8, "num_embeds_ada_norm": 7, "out_channels": 8, "norm_eps": 1e-6},
    "other": {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 3}
    | {"sample_size": 16, "num_embeds_ada_norm": 10, "out_channels": 8, "norm_eps": 1e-6},
}


def shaken(model):
    """Random parameters; diffusers' zero initialization would hide errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1 / np.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tied(model):
    """One time and class embedding, copied to every block, as in every published DiT."""
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return model


def ported(folder):
    """The ported network of a folder, and the result of porting."""
    found = port.port(str(folder), say=lambda text: None)
    options = config.complete(config.Config(), *found.description)
    module = nnx.eval_shape(lambda: build.module(options))
    nnx.update(module, found.weights)
    return module.network, found


def assert_close(ours, theirs):
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def inputs(size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, size, size), np.float32)
    return x, np.array([0, 440, 999]), np.moveaxis(x, 1, -1)


@pytest.mark.parametrize("name", PIXARTS)
def test_pixart(name, tmp_path):
    torch.manual_seed(0)
    values = PIXARTS[name]
    model = shaken(PixArtTransformer2DModel(**values))
    model.save_pretrained(tmp_path / "theirs")
    network, found = ported(tmp_path / "theirs")
    x, time, images = inputs(values["sample_size"])
    rng = np.random.default_rng(1)
    words = rng.standard_normal((3, 9, values["caption_channels"]), np.float32)
    lengths = np.array([1, 4, 9])
    mask = np.arange(9) < lengths[:, None]
    pixels = 8.0 * values["sample_size"]
    size = {"resolution": torch.full((3, 2), pixels), "aspect_ratio": torch.ones(3, 1)}
    if not values["use_additional_conditions"]:
        size = {"resolution": None, "aspect_ratio": None}

    def theirs(model):
        with torch.no_grad():
            return model(
                torch.tensor(x),
                encoder_hidden_states=torch.tensor(words),
                encoder_attention_mask=torch.tensor(mask, dtype=torch.int64),
                timestep=torch.tensor(time),
                added_cond_kwargs=size,
            ).sample

    caption = Caption(words, mask, np.zeros(3, bool))
    with jax.default_matmul_precision("highest"):
        ours = network(images, jnp.asarray(time, jnp.float32), caption)
    expected = theirs(model)
    assert_close(ours, expected)
    again = PixArtTransformer2DModel(**values)
    load_exported(again, pixart.DIFFUSERS, found, tmp_path)
    np.testing.assert_array_equal(theirs(again.eval()), expected)


@pytest.mark.parametrize("name", DITS)
def test_dit(name, tmp_path):
    torch.manual_seed(0)
    values = DITS[name]
    model = tied(shaken(DiTTransformer2DModel(**values)))
    model.save_pretrained(tmp_path / "theirs")
    network, found = ported(tmp_path / "theirs")
    x, time, images = inputs(values["sample_size"])
    classes = np.array([0, 3, values["num_embeds_ada_norm"]])  # the last: null class

    def theirs(model):
        with torch.no_grad():
            return model(
                torch.tensor(x), timestep=torch.tensor(time), class_labels=torch.tensor(classes)
            ).sample

    labels = jax.nn.one_hot(classes, values["num_embeds_ada_norm"])
    with jax.default_matmul_precision("highest"):
        ours = network(images, jnp.asarray(time, jnp.float32), labels)
    expected = theirs(model)
    assert_close(ours, expected)
    again = DiTTransformer2DModel(**values)
    load_exported(again, dit.DIFFUSERS, found, tmp_path)
    np.testing.assert_array_equal(theirs(again.eval()), expected)


def load_exported(model, names, found, folder):
    """Loads our weights, exported under diffusers' names; load_state_dict is strict."""
    depth = found.description.network.depth
    save_file(rules.export(names, found.weights, depth), folder / "ours.safetensors")
    tensors = read_safetensors.read(folder / "ours.safetensors")
    state = {name: torch.tensor(np.array(tensor)) for name, tensor in tensors.items()}
    model.load_state_dict(state)


def test_untied_embeddings_raise(tmp_path):
    torch.manual_seed(0)
    shaken(DiTTransformer2DModel(**DITS["small"])).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="differs from the tensor that filled"):
        port.port(str(tmp_path), say=lambda text: None)


@pytest.mark.parametrize("steps", [4, 20])
def test_dpm_solver_equals_that_of_diffusers(steps):
    # A nonlinear denoiser; diffusers' state is xt / sqrt(1 + sigma^2).
    def denoised(xt, sigma):
        return np.tanh(xt) / (1 + sigma)

    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type="sample"
    )
    scheduler.set_timesteps(steps)
    alpha_bar = scheduler.alphas_cumprod.numpy()[scheduler.timesteps]
    sigmas = np.sqrt((1 - alpha_bar) / alpha_bar)
    z = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
    x = torch.tensor(z * sigmas[0] / np.sqrt(1 + sigmas[0] ** 2))
    for time, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        prediction = denoised(x.numpy() * np.sqrt(1 + sigma**2), sigma)
        x = scheduler.step(torch.tensor(prediction), time, x).prev_sample

    def denoise(xt, sigma):
        return jnp.tanh(xt) / (1 + sigma[:, None, None, None])

    ours = sampler.dpm_solver(denoise, jnp.asarray(z), jnp.asarray(sigmas))
    np.testing.assert_allclose(ours, x.numpy(), rtol=1e-4, atol=1e-4)
    ladder = ddpm_linear_ladder(steps)
    np.testing.assert_allclose(
        ladder, sigmas, rtol=6e-3
    )  # SIM's table reaches beta = 0.02 one step later
