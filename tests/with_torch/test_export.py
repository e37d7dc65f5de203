"""Exports in PyTorch: an independent DDPM++ for `edm`, diffusers' classes for `diffusers`."""

import json
import math

import jax
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_lcm
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from simjax import config
from simjax.export import formats, model_card
from simjax.models import build, generator

SONG = config.SongUNet(
    resolution=8,
    label_dim=5,
    augment_dim=9,
    channels=16,
    channel_mult=(1, 2),
    blocks=2,
    attention_resolutions=(4,),
)
SIZES = {"resolution": 8, "width": 48, "depth": 2, "heads": 3}
TRANSFORMERS = {
    "pixart": config.PixArt(**SIZES, caption_channels=20, caption_length=9),
    "sized": config.PixArt(
        **SIZES, caption_channels=20, caption_length=0, interpolation=2.0, size_conditioning=True
    ),
    "dit": config.DiT(**SIZES, label_dim=5, time_steps=127),
}
ROOT_HALF = math.sqrt(0.5)


class Layer(nn.Module):
    """A linear layer or convolution, with optional down- or upsampling of its input."""

    def __init__(self, shape, resample=None, has_weight=True):
        super().__init__()
        self.resample = resample
        if has_weight:
            self.weight = nn.Parameter(torch.full(shape, math.nan))
            self.bias = nn.Parameter(torch.full(shape[:1], math.nan))
        if resample:
            self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), math.nan))

    def forward(self, x):
        if self.resample == "down":
            x = functional.avg_pool2d(x, 2)
        if self.resample == "up":
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
        if self.weight.ndim == 2:
            return functional.linear(x, self.weight, self.bias)
        return functional.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class Norm(nn.GroupNorm):
    def __init__(self, channels):
        super().__init__(min(32, channels // 4), channels, eps=1e-6)


class Block(nn.Module):
    """A residual block of DDPM++ (EDM, appendix F.2), optionally with one attention head."""

    def __init__(self, c_in, c_out, c_emb, resample=None, attends=False):
        super().__init__()
        self.c_in, self.attends = c_in, attends
        self.norm0, self.norm1 = Norm(c_in), Norm(c_out)
        self.conv0 = Layer((c_out, c_in, 3, 3), resample)
        self.affine = Layer((c_out, c_emb))
        self.conv1 = Layer((c_out, c_out, 3, 3))
        self.skip = Layer((c_out, c_in, 1, 1), resample) if resample or c_in != c_out else None
        if attends:
            self.norm2 = Norm(c_out)
            self.qkv, self.proj = Layer((3 * c_out, c_out, 1, 1)), Layer((c_out, c_out, 1, 1))

    def forward(self, x, emb):
        h = self.conv0(functional.silu(self.norm0(x)))
        h = self.conv1(functional.silu(self.norm1(h + self.affine(emb)[:, :, None, None])))
        x = ((self.skip(x) if self.skip else x) + h) * ROOT_HALF
        if not self.attends:
            return x
        b, c, height, width = x.shape
        q, k, v = self.qkv(self.norm2(x)).reshape(b, c, 3, height * width).unbind(2)
        attention = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(c), dim=-1)
        mixed = torch.einsum("bij,bcj->bci", attention, v).reshape(x.shape)
        return (self.proj(mixed) + x) * ROOT_HALF


class Ddpmpp(nn.Module):
    """DDPM++ with EDM's module names, from EDM's constructor arguments."""

    def __init__(self, arguments):
        super().__init__()
        a = arguments
        width, c_emb, channels = a["model_channels"], 4 * a["model_channels"], a["img_channels"]
        self.width, self.label_dim = width, a["label_dim"]
        self.map_label = Layer((width, a["label_dim"]))
        self.map_augment = nn.Linear(a["augment_dim"], width, bias=False)
        self.map_layer0, self.map_layer1 = Layer((c_emb, width)), Layer((c_emb, c_emb))
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        levels = [(a["img_resolution"] >> n, width * m) for n, m in enumerate(a["channel_mult"])]
        c, skips = width, [width]
        for n, (size, c_out) in enumerate(levels):
            first = Block(c, c, c_emb, "down") if n else Layer((c, channels, 3, 3))
            self.enc[f"{size}x{size}_{'down' if n else 'conv'}"] = first
            skips += [c] if n else []
            for i in range(a["num_blocks"]):
                attends = size in a["attn_resolutions"]
                self.enc[f"{size}x{size}_block{i}"] = Block(c, c_out, c_emb, attends=attends)
                c = c_out
                skips.append(c)
        for n, (size, c_out) in reversed(list(enumerate(levels))):
            if n == len(levels) - 1:
                self.dec[f"{size}x{size}_in0"] = Block(c, c, c_emb, attends=True)
                self.dec[f"{size}x{size}_in1"] = Block(c, c, c_emb)
            else:
                self.dec[f"{size}x{size}_up"] = Block(c, c, c_emb, "up")
            for i in range(a["num_blocks"] + 1):
                attends = size in a["attn_resolutions"] and i == a["num_blocks"]
                block = Block(c + skips.pop(), c_out, c_emb, attends=attends)
                self.dec[f"{size}x{size}_block{i}"] = block
                c = c_out
        size = a["img_resolution"]
        self.dec[f"{size}x{size}_aux_norm"] = Norm(c)
        self.dec[f"{size}x{size}_aux_conv"] = Layer((channels, c, 3, 3))

    def forward(self, x, c_noise, labels):
        frequencies = 1e-4 ** (torch.arange(self.width // 2) / (self.width // 2 - 1))
        phase = c_noise[:, None] * frequencies
        emb = torch.cat([phase.sin(), phase.cos()], dim=1)
        emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
        emb = functional.silu(self.map_layer1(functional.silu(self.map_layer0(emb))))
        skips = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, Block) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            if isinstance(block, Block):
                x = torch.cat([x, skips.pop()], dim=1) if "block" in name else x
                x = block(x, emb)
            else:
                x = block(functional.silu(x) if name.endswith("_conv") else x)
        return x


class Denoiser(nn.Module):
    """EDM's preconditioning (table 1)."""

    def __init__(self, arguments):
        super().__init__()
        self.sigma_data, self.model = arguments["sigma_data"], Ddpmpp(arguments)

    def forward(self, x, sigma, labels):
        s, total = sigma[:, None, None, None], (sigma**2 + self.sigma_data**2)[:, None, None, None]
        residual = self.model(x / total.sqrt(), sigma.log() / 4, labels)
        skipped = self.sigma_data**2 / total * x
        return skipped + s * self.sigma_data / total.sqrt() * residual


def random_weights(options):
    """Random weights that keep activations near 1."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.3
        return np.float32(scale) * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(draw, build.weights_like(options))


def exported(network, precondition, sigma_data, kind, folder, steps=1):
    """Exports random weights; returns config, z, condition and samples of the original."""
    made = config.Config(generator=config.Generator(steps=steps))
    options = config.complete(made, network, precondition, sigma_data)
    weights = random_weights(options)
    sample = formats.sampler(options, *build.denoiser(options, weights))
    z, cond, keys = formats.inputs(options)
    made = formats.Generator(options, weights, sample(z, cond, keys))
    formats.FORMATS[kind].write(made, folder)
    return options, np.asarray(z), jax.tree.map(np.asarray, cond), np.asarray(made.expected)


def to_torch(images):
    return torch.tensor(np.moveaxis(images, -1, 1))


def assert_close(theirs, ours, tolerance):
    theirs = np.moveaxis(theirs.detach().numpy(), 1, -1)
    assert theirs.shape == ours.shape
    assert np.abs(theirs - ours).max() / np.abs(ours).max() <= tolerance


def test_edm_export_in_pytorch(tmp_path):
    options, z, labels, expected = exported(SONG, "edm", 0.3, "edm", tmp_path)
    found = json.loads((tmp_path / "edm.json").read_text())
    assert found["class_name"] == "EDMPrecond"
    net = Denoiser(found["arguments"]).eval()
    net.load_state_dict(load_file(tmp_path / "edm_state_dict.safetensors"))  # strict
    sigma = options.generator.sigma_init
    x0 = net(sigma * to_torch(z), torch.full([len(z)], sigma), torch.tensor(labels))
    assert_close(x0, expected, 1e-5)
    filters = [value for name, value in net.named_buffers() if name.endswith("resample_filter")]
    assert len(filters) == 4
    assert all((value == 0.25).all() for value in filters)


@pytest.mark.parametrize("renoise", generator.RENOISE)
def test_edm_example_of_the_model_card_with_four_steps(renoise, tmp_path, monkeypatch):
    """Executed unchanged, with our denoiser as `net` and our noise."""
    options = config.complete(
        config.Config(generator=config.Generator(steps=4, renoise=renoise)), SONG, "edm", 0.3
    )
    denoise, params = build.denoiser(options, random_weights(options))
    z, _, keys = formats.inputs(options)
    example = model_card.USAGE["edm"](options).split("```python\n")[1].partition("```")[0]
    loop = example[example.index("x0, eps = ") :]
    later = generator.noise_of(keys, z.shape[1:])
    noises = iter([to_torch(np.asarray(later(k))) for k in range(1, 5)])
    monkeypatch.setattr(torch, "randn_like", lambda like: next(noises))
    classes = jax.nn.one_hot(np.arange(len(z)) % SONG.label_dim, SONG.label_dim)

    def net(xt, sigma, labels):
        xt = np.moveaxis(xt.numpy(), 1, -1)
        return to_torch(np.asarray(denoise(params, xt, sigma.numpy()[: len(xt)], classes)))

    namespace = {"torch": torch, "z": to_torch(np.asarray(z)), "net": net}
    exec(loop, namespace)
    chain = generator.generator_of(options)
    expected = chain.sample(denoise, params, z, classes, later)
    assert_close(namespace["x0"], np.asarray(expected), 1e-5)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_diffusers_export_in_diffusers(name, steps, tmp_path, monkeypatch):
    network = TRANSFORMERS[name]
    written = exported(network, "ddpm_linear", 1.0, "diffusers", tmp_path, steps)
    options, z, cond, expected = written
    given = [torch.tensor(np.argmax(cond, 1))] if name == "dit" else []
    if name != "dit":
        given = [torch.tensor(cond.embedding), torch.tensor(cond.mask)]
    example = model_card.USAGE["diffusers"](options).split("```python\n")[1].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    _, _, keys = formats.inputs(options)
    later = generator.noise_of(keys, z.shape[1:])
    noises = iter([to_torch(np.asarray(later(k))) for k in range(1, 5)])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(noises))
    namespace = {}
    exec(example, namespace)  # the model card's example: from_pretrained and the calls
    assert_close(namespace["generate"](to_torch(z), *given), expected, 1e-4)
