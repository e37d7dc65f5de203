"""DiT, PixArt-alpha and SIM's one-step wrapper against their repositories: values and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax import config
from simjax.diffusion import guidance, precondition, sampler, schedule
from simjax.diffusion.precondition import Coefficients
from simjax.models import build
from simjax.networks.denoiser import Denoiser, as_denoise
from simjax.porting.maps import dit, pixart, rules, transformer
from simjax.typing import Caption
from tests.helpers import official

# The table in tests/golden/README.md.
DIT_TOLERANCE, PIXART_TOLERANCE, SIT_TOLERANCE, PATH_TOLERANCE = 5e-5, 2e-5, 1e-5, 5e-5


def identity(sigma):
    """Preconditioning with D = F and c_noise = sigma: the bare network at any time step."""
    zero, one = jnp.zeros_like(sigma), jnp.ones_like(sigma)
    return Coefficients(c_skip=zero, c_out=one, c_in=one, c_noise=sigma)


def described(values):
    """Network options from a recording's constructor arguments."""
    common = {
        "resolution": values["input_size"],
        "image_channels": values["in_channels"],
        "patch": values["patch_size"],
        "width": values["hidden_size"],
        "depth": values["depth"],
        "heads": values["num_heads"],
    }
    if "num_classes" in values:
        learn_sigma = None if values.get("learn_sigma", True) else False
        return config.DiT(**common, label_dim=values["num_classes"], learn_sigma=learn_sigma)
    return config.PixArt(
        **common,
        caption_channels=values["caption_channels"],
        caption_length=values["model_max_length"],
        interpolation=values["lewei_scale"],
    )


class Ported:
    """A recorded network ported to simjax: all its outputs, or the denoiser."""

    def __init__(self, case, mapping, family=identity):
        self.recording = official.read(case.path)
        self.network = described(self.recording.json("config"))
        self.tensors = self.recording.tensors("param/")

        def make():
            made = build.network(self.network, "ddpm_linear", jnp.float32, nnx.Rngs(0))
            return Denoiser(made, family)

        module = nnx.eval_shape(make)
        like = nnx.to_pure_dict(nnx.state(module))
        nnx.update(module, rules.apply(mapping, self.tensors, like))
        self.module = module
        self.denoise, self.params = as_denoise(module)

    def whole(self, x, time, cond):
        """All output channels of the network, learned variances too."""
        with jax.default_matmul_precision("highest"):
            return self.module.network(x, jnp.asarray(time, jnp.float32), cond)


def labels_of(classes, label_dim):
    """One-hot rows; the null class (index label_dim) becomes a row of zeros."""
    return jax.nn.one_hot(classes, label_dim + 1)[:, :label_dim]


def captions_of(recording, mask=True):
    embedding = recording["in/y"][:, 0]
    real = recording["in/mask"].astype(bool) if mask else np.ones(embedding.shape[:2], bool)
    return Caption(embedding, real, np.zeros(len(real), bool))


def test_dit(dit_case):
    net = Ported(dit_case, dit.rules(dit.ORIGINAL))
    found = net.recording
    labels = labels_of(found["in/y"], net.network.label_dim)
    x = jnp.asarray(found.images("in/x"))
    out, vjp = jax.vjp(lambda x: net.whole(x, found["in/t"], labels), x)
    assert official.rel(out, found.images("out/eps_sigma")) <= DIT_TOLERANCE
    (grad,) = vjp(jnp.asarray(found.images("in/v")))
    assert official.rel(grad, found.images("out/vjp_x")) <= DIT_TOLERANCE
    fractional = net.whole(x, found["in/t_fractional"], labels)
    assert official.rel(fractional, found.images("out/fractional")) <= DIT_TOLERANCE


def recorded_guidance(recording):
    """The key of the guided outputs, and the scale at the end of it."""
    (key,) = (name for name in recording.arrays if name.startswith("out/cfg"))
    return key, float(key.removeprefix("out/cfg"))


def test_guided_dit(dit_case):
    # The reference runs both halves on the first half of x, and guides three of four channels.
    net = Ported(dit_case, dit.rules(dit.ORIGINAL))
    found = net.recording
    half = len(found["in/x"]) // 2
    labels = labels_of(found["in/cfg_y"][:half], net.network.label_dim)
    time = jnp.asarray(found["in/cfg_t"][:half], jnp.float32)
    key, scale = recorded_guidance(found)
    guided = guidance.guided(net.denoise, scale, jnp.zeros_like, net.network.guided_channels)(
        net.params, jnp.asarray(found.images("in/x")[:half]), time, labels
    )
    expected = found.images(key)[..., : guided.shape[-1]]  # the others are variances
    assert official.rel(guided, expected[:half]) <= DIT_TOLERANCE
    assert official.rel(guided[..., :3], expected[half:, ..., :3]) <= DIT_TOLERANCE


def sit_of(case):
    """The recorded SiT as a simjax denoiser, and its recording."""
    net = Ported(case, dit.rules(dit.ORIGINAL), family=precondition.sit)
    return net, net.recording


def at_time(z, t):
    """xt and sigma of z = t x0 + (1 - t) eps."""
    t = np.asarray(t, np.float32)
    return jnp.asarray(z) / t[:, None, None, None], jnp.asarray((1 - t) / t)


def test_sit(sit_case):
    net, found = sit_of(sit_case)
    labels, time = labels_of(found["in/y"], net.network.label_dim), found["in/t"]
    x = jnp.asarray(found.images("in/x"))
    channels = x.shape[-1]
    out, vjp = jax.vjp(lambda x: net.whole(x, time, labels)[..., :channels], x)
    assert official.rel(out, found.images("out/velocity")) <= SIT_TOLERANCE
    (grad,) = vjp(jnp.asarray(found.images("in/v")))
    assert official.rel(grad, found.images("out/vjp_x")) <= SIT_TOLERANCE


def test_sit_denoiser_matches_score_and_velocity(sit_case):
    net, found = sit_of(sit_case)
    labels, z = labels_of(found["in/y"], net.network.label_dim), found.images("in/x")
    xt, sigma = at_time(z, found["in/t"])
    t = found["in/t"][:, None, None, None]
    denoised = net.denoise(net.params, xt, sigma, labels)
    of_score = (z + (1 - t) ** 2 * found.images("out/score")) / t  # Tweedie
    assert official.rel(denoised, of_score) <= SIT_TOLERANCE
    of_velocity = z + (1 - t) * found.images("out/velocity")
    assert official.rel(denoised, of_velocity) <= SIT_TOLERANCE


def test_guided_sit(sit_case):
    """The reference runs both halves on the first half of x and guides the first channels only."""
    net, found = sit_of(sit_case)
    hyper, half = found.json("hyper"), len(found["in/x"]) // 2
    assert hyper["cfg_channels"] == net.network.guided_channels
    labels = labels_of(found["in/cfg_y"][:half], net.network.label_dim)
    z, t = found.images("in/x")[:half], found["in/cfg_t"][:half]
    key, scale = recorded_guidance(found)
    assert scale == hyper["cfg_scale"]
    guided = guidance.guided(net.denoise, scale, jnp.zeros_like, net.network.guided_channels)
    denoised = guided(net.params, *at_time(z, t), labels)
    velocity = (np.asarray(denoised) - z) / (1 - t[:, None, None, None])
    assert official.rel(velocity, found.images(key)[:half]) <= SIT_TOLERANCE


def test_euler_path_of_sit(sit_case):
    net, found = sit_of(sit_case)
    steps, path = found.json("hyper")["ode_points"] - 1, found["out/euler_path"]
    labels = labels_of(found["in/y"], net.network.label_dim)
    sigmas = schedule.flow_ladder(steps, u_max=1 - 1e-6)
    states = []

    def denoise(xt, sigma):
        jax.debug.callback(lambda z: states.append(z), xt / (1 + sigma[:, None, None, None]))
        return net.denoise(net.params, xt, sigma, labels)

    last = sampler.euler(denoise, jnp.asarray(found.images("in/z")), sigmas)
    jax.effects_barrier()
    for state, expected in zip([*states, last], np.moveaxis(path, 2, -1), strict=True):
        assert official.rel(state, expected) <= PATH_TOLERANCE


def test_sit_files_identify_their_network(sit_case, monkeypatch):
    assert_identified(official.read(sit_case.path), dit.describe, monkeypatch)


def test_pixart(pixart_case):
    net = Ported(pixart_case, pixart.rules(pixart.ORIGINAL))
    found = net.recording
    captions = captions_of(found)
    x, words = jnp.asarray(found.images("in/x")), jnp.asarray(captions.embedding)

    def outputs(x, words):
        return net.whole(x, found["in/t"], captions.replace(embedding=words))

    out, vjp = jax.vjp(outputs, x, words)
    assert official.rel(out, found.images("out/eps_sigma")) <= PIXART_TOLERANCE
    grads = vjp(jnp.asarray(found.images("in/v")))
    assert official.rel(grads[0], found.images("out/vjp_x")) <= PIXART_TOLERANCE
    assert official.rel(grads[1], found["out/vjp_y"][:, 0]) <= PIXART_TOLERANCE


def test_pixart_without_mask_and_without_caption(pixart_case):
    net = Ported(pixart_case, pixart.rules(pixart.ORIGINAL))
    found = net.recording
    captions = captions_of(found, mask=False)
    x, time = jnp.asarray(found.images("in/x")), found["in/t"]
    out = net.whole(x, time, captions)
    assert official.rel(out, found.images("out/no_mask")) <= PIXART_TOLERANCE
    out = net.whole(x, time, dataclasses.replace(captions, dropped=jnp.ones_like(captions.dropped)))
    assert official.rel(out, found.images("out/uncond_no_mask")) <= PIXART_TOLERANCE


def test_sims_one_step_generator(sim_one_step_case):
    family = precondition.ddpm_linear
    net = Ported(sim_one_step_case, pixart.rules(pixart.ORIGINAL), family=family)
    found = net.recording
    sigma, captions = jnp.asarray(found["in/sigma"]), captions_of(found)
    latents = jnp.asarray(found.images("in/latents"))

    def generate(latents):
        return net.denoise(net.params, latents, sigma, captions)

    out, vjp = jax.vjp(generate, latents)
    assert official.rel(out, found.images("out/D_x")) <= PIXART_TOLERANCE
    (grad,) = vjp(jnp.asarray(found.images("in/v")))
    assert official.rel(grad, found.images("out/vjp_latents")) <= PIXART_TOLERANCE
    np.testing.assert_array_equal(family(sigma).c_noise, found["out/timestep"])


def test_noise_levels_of_sims_wrapper(sim_one_step_case):
    found, levels = official.read(sim_one_step_case.path), precondition.ddpm_linear_levels()
    np.testing.assert_allclose(levels, found["u"], rtol=2e-5)
    c_noise = precondition.ddpm_linear(jnp.asarray(found["round/sigma"])).c_noise
    np.testing.assert_array_equal(999 - np.asarray(c_noise, int), found["round/index"])
    assert precondition.ddpm_linear(jnp.full(1, 2.5)).c_noise == 440


def test_dit_files_identify_their_network(dit_case, monkeypatch):
    assert_identified(official.read(dit_case.path), dit.describe, monkeypatch)


def test_pixart_files_identify_their_network(pixart_case, monkeypatch):
    assert_identified(official.read(pixart_case.path), pixart.describe, monkeypatch)


def assert_identified(found, describe, monkeypatch):
    """The number of heads follows from no shape: it is looked up by width."""
    expected = described(found.json("config"))
    monkeypatch.setitem(transformer.HEADS, expected.width, expected.heads)
    assert describe(found.tensors("param/")) == expected
