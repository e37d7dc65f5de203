"""The U-Net's dropout and rematerialisation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simjax import config
from simjax.models import build
from simjax.networks import layers

BATCH = 4
KEYS = jax.random.split(jax.random.key(3), BATCH)
SIGMA = jnp.array([0.1, 0.5, 2.0, 10.0])
XT = jax.random.normal(jax.random.key(4), (BATCH, 8, 8, 1))
SONG = functools.partial(config.SongUNet, resolution=8, image_channels=1, blocks=1, dropout=0.2)
NETWORK = SONG(channels=32, channel_mult=(1,), attention_resolutions=())
PARAMS, IMAGES = 0, 1  # the arguments of loss_fn


def denoiser(remat="none", network=NETWORK):
    """D with random weights that preserve variance; fresh weights are partly zero."""
    options = config.Config(network=network, remat=remat)
    random = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda w: np.float32(random.standard_normal(w.shape) / math.sqrt(math.prod(w.shape[:-1]))),
        build.weights_like(options),
    )
    return build.denoiser(options, weights)


def loss_fn(denoise):
    """A loss (params, xt, sigma, keys) -> scalar, with dropout."""

    def loss(params, xt, sigma=SIGMA, keys=KEYS):
        denoised = denoise(params, xt, sigma, jnp.zeros((len(xt), 0)), dropout_keys=keys)
        return jnp.sum(jnp.square(denoised - 1))

    return loss


@functools.cache
def gradient(remat):
    """Loss, gradients with respect to parameters and images, and cost analysis."""
    denoise, params = denoiser(remat)
    function = jax.value_and_grad(loss_fn(denoise), (PARAMS, IMAGES))
    compiled = jax.jit(function).lower(params, XT).compile()
    loss, (in_params, in_images) = compiled(params, XT)
    return {"loss": loss, "params": in_params, "images": in_images}, compiled.cost_analysis()


def distance(ours, expected):
    ours, expected = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (ours, expected)
    )
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("what", ["loss", "params", "images"])
@pytest.mark.parametrize("remat", ["dots", "blocks"])
def test_remat_changes_neither_loss_nor_gradients(remat, what):
    assert distance(gradient(remat)[0][what], gradient("none")[0][what]) < 1e-6


def test_gradients_of_scanned_micro_batches_add_up():
    """Gradient accumulation: gradients inside a scan, with per-example dropout masks."""
    denoise, params = denoiser("blocks")

    def add(total, part):
        return jax.tree.map(jnp.add, total, jax.grad(loss_fn(denoise))(params, *part)), None

    slices = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), (XT, SIGMA, KEYS))
    zeros = jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.jit(lambda slices: jax.lax.scan(add, zeros, slices))(slices)
    assert distance(total, gradient("none")[0]["params"]) < 1e-6


def held(remat, argument):
    """Bytes of activations (leading batch axis) stored for the backward pass."""
    denoise, params = denoiser(remat)

    def pullback(*values):
        def of_one(value):
            return loss_fn(denoise)(*values[:argument], value, *values[argument + 1 :])

        return jax.vjp(of_one, values[argument])[1]

    leaves = jax.tree.leaves(jax.eval_shape(pullback, params, XT))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves if x.shape[:1] == (BATCH,))


@pytest.mark.parametrize("argument", [PARAMS, IMAGES])  # IMAGES: a frozen network
def test_remat_saves_memory(argument):
    none, dots, blocks = (held(remat, argument) for remat in ("none", "dots", "blocks"))
    assert dots < none / 3
    assert blocks < 2 / 3 * dots


@pytest.mark.parametrize(("remat", "bound"), [("dots", 1.03), ("blocks", 4 / 3 * 1.05)])
def test_remat_costs_at_most_one_forward(remat, bound):
    none, recomputed = (gradient(name)[1]["flops"] for name in ("none", remat))
    assert recomputed < bound * none
    assert (recomputed > 1.1 * none) == (remat == "blocks")


@pytest.mark.parametrize(
    "network",
    [
        SONG(channels=8, channel_mult=(1, 2), attention_resolutions=()),
        SONG(channels=8, channel_mult=(1, 2), encoder="residual", filter_taps=(1, 3, 3, 1)),
        config.AdmUNet(
            resolution=8, image_channels=1, label_dim=0, channels=64, channel_mult=(1, 2), blocks=1
        ),
    ],
    ids=["ddpmpp", "ncsnpp", "adm"],
)
def test_every_block_gets_a_mask_of_its_shape(network, monkeypatch):
    seen = []
    monkeypatch.setattr(layers, "dropout", lambda x, _, keep: seen.append((x, keep)) or x)
    denoise, params = denoiser(network=network)
    jax.eval_shape(loss_fn(denoise), params, XT)
    blocks = [block for half in ("enc", "dec") for block in params["network"][half].values()]
    assert len(seen) == sum("affine" in block for block in blocks)
    assert [x.shape for x, _ in seen] == [keep.shape for _, keep in seen]
    assert len({id(keep) for _, keep in seen}) == len(seen)


def test_dropout_depends_on_its_keys_only():
    denoise, params = denoiser()
    loss = jax.jit(loss_fn(denoise))
    values = [loss(params, XT, SIGMA, keys) for keys in (KEYS, KEYS, KEYS[::-1])]
    assert values[0] == values[1]
    assert abs(values[0] - values[2]) > 1e-3 * values[0]
