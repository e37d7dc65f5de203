"""Training losses and their gradients against SiD, Diff-Instruct and NVlabs/edm.

step.generator_loss and step.fake_score_loss run on recorded draws. A parameter tree here is
{role: parameters}, and the denoiser dispatches on the role: one of three networks, or a "generator"
whose parameters are its images, to differentiate with respect to the images.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from simjax.diffusion import noise, schedule
from simjax.losses import denoising, diff_instruct, sid
from simjax.train import step
from simjax.train.discriminator import Discriminator
from simjax.train.update import Draws, RealDraws
from tests.helpers import official

LOSS, SCALAR, SIGMA, MID, GRAD_IMAGES, GRAD = 3e-5, 1e-4, 1e-5, 1e-5, 5e-5, 1e-4
EDM_TOLERANCES = {  # loss and scalar, gradients
    "EDMPrecond": (2e-5, 1e-4),
    "VPPrecond": (1e-4, 1e-3),
    "VEPrecond": (1e-4, 1e-3),
}

LAWS = {  # (recorded random numbers, sigma as a function of them, weight)
    "EDMPrecond": ("rnd_normal", schedule.lognormal, noise.edm_weight),
    "VPPrecond": ("rnd_uniform", lambda u: schedule.vp(1 + u * (1e-5 - 1)), noise.score_weight),
    "VEPrecond": ("rnd_uniform", schedule.geometric, noise.score_weight),
}


class Setting:
    """The three networks, the constants and the draws of one loss file."""

    def __init__(self, path):
        self.recording = recording = official.read(path)
        self.hyper = recording.json("hyper")
        self.sigma_data = self.hyper.get("sigma_data", 0.5)  # EDM table 1
        self.networks = {
            role: official.network(recording.json("config"), recording.tensors(f"param_{role}/"))
            for role in ("true", "fake", "gen")
        }

    def tree(self, role):
        """The parameter tree {role: parameters}."""
        return {role: self.networks[role].params}

    def denoise(self, tree, xt, sigma, labels, **kwargs):
        ((role, params),) = tree.items()
        if role == "images":  # a generator that returns its parameters
            return params
        if role == "broken":  # a fake score with a nan for one sample
            params, sample = params
            return self.denoise({"fake": params}, xt, sigma, labels).at[sample].set(jnp.nan)
        return self.networks[role].denoise(params, xt, sigma, labels, **kwargs)

    def fns(self, **options):
        weight = functools.partial(noise.edm_weight, sigma_data=self.sigma_data)
        sigma_init = self.hyper["init_sigma"]
        return official.step_fns(self.denoise, sigma_init, fake_score_weight=weight, **options)

    def draws(self, sigma, suffix=""):
        """Draws of the generator update, or of the fake score's (suffix "_fake")."""
        z = self.recording.images(f"in/z_unit{suffix}")
        eps = self.recording.images(f"in/noise{suffix}")
        labels = self.recording.labels(f"in/labels{suffix}", len(z))
        keys = {"dropout_keys": None, "augment_keys": None}
        return Draws(z=z, cond=labels, sigma=sigma, eps=eps, **keys)

    def fake_draws(self):
        return self.draws(
            official.lognormal(self.recording["in/rnd_normal_fake"], self.hyper), "_fake"
        )

    def forward(self, draws):
        """x0, xt, D_teacher, D_fake."""
        x0 = self.fns().generate(self.tree("gen"), draws.z, draws.cond)
        xt = noise.add_noise(x0, draws.sigma, draws.eps)
        args = (xt, draws.sigma, draws.cond)
        d_teacher, d_fake = (self.denoise(self.tree(role), *args) for role in ("true", "fake"))
        return x0, xt, d_teacher, d_fake


setting = functools.cache(Setting)


def assert_scalar(ours, expected, loss, scale):
    """Within SCALAR times sum|loss| * scale / batch, as the signed sum may cancel."""
    error = abs(float(ours) - float(expected))
    assert error <= SCALAR * scale * np.abs(loss).sum() / len(loss), (ours, expected)


def assert_per_example(ours, expected):
    """Sums over each example's pixels, within LOSS times the sum of absolute values."""
    axes = (1, 2, 3)
    error = np.abs(ours - expected.sum(axes, dtype=np.float64))
    assert np.all(error <= LOSS * np.abs(expected).sum(axes)), error


def assert_gradients(ours, network, recording, prefix, tolerance=GRAD):
    error, name = official.worst_tensor(ours, network.tree(recording.tensors(prefix)))
    assert error <= tolerance, (error, name)


def check_generator(s, draws, loss, name, scale, *, fake=None):
    """Checks the scalar and the gradient in the images and, if recorded, in the parameters."""
    recording, fns = s.recording, s.fns(loss=loss)
    others = (s.tree("true"), fake or s.tree("fake"), draws)
    grad_fn = jax.value_and_grad(functools.partial(step.generator_loss, fns=fns), has_aux=True)
    x0 = s.forward(draws)[0]
    (scalar, _), grad = grad_fn({"images": x0}, *others)
    recorded_loss = recording[f"{name}/loss"]
    batch_scale = scale * len(recorded_loss) / len(x0)
    assert_scalar(scalar, recording[f"{name}/scalar"], recorded_loss, batch_scale)
    expected = recording.images(f"{name}/grad_images")
    assert official.rel(grad["images"], expected) <= GRAD_IMAGES
    if recording.tensors(f"{name}/grad/"):
        (again, _), grads = grad_fn(s.tree("gen"), *others)
        assert_scalar(again, scalar, recorded_loss, batch_scale)
        assert_gradients(grads["gen"], s.networks["gen"], recording, f"{name}/grad/")


def check_fake_score(s, scale):
    """Checks the denoising loss on generated images: values, scalar and gradients."""
    recording, draws = s.recording, s.fake_draws()
    x0 = s.fns().generate(s.tree("gen"), draws.z, draws.cond)
    assert official.rel(x0, recording.images("fake/images")) <= MID
    xt = noise.add_noise(x0, draws.sigma, draws.eps)
    denoised = s.denoise(s.tree("fake"), xt, draws.sigma, draws.cond)
    weight = noise.edm_weight(draws.sigma, sigma_data=s.sigma_data)
    per_example = denoising.denoising_loss(x0, denoised, weight)
    assert_per_example(per_example, recording["fake/loss"])
    loss_fn = functools.partial(step.fake_score_loss, fns=s.fns(fake_score_scale=scale))
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (scalar, _), grads = grad_fn(s.tree("fake"), s.tree("gen"), draws)
    assert_scalar(scalar, recording["fake/scalar"], recording["fake/loss"], scale)
    assert_gradients(grads["fake"], s.networks["fake"], recording, "fake/grad/")


def test_sid_noise_levels_and_networks(sid_loss_case):
    s = setting(sid_loss_case.path)
    recording = s.recording
    sigma = official.karras(recording["in/rnd_t"], s.hyper, s.hyper["tmax"])
    assert official.rel(sigma, recording.per_example("mid/sigma")) <= SIGMA
    ours = s.forward(s.draws(sigma))
    for image, name in zip(ours, ("images", "noisy", "y_real", "y_fake"), strict=True):
        assert official.rel(image, recording.images(f"mid/{name}")) <= MID, name


def test_sid_generator(sid_generator_case):
    s, name = setting(sid_generator_case.path), sid_generator_case.name
    recording = s.recording
    alpha, tmax, nan = re.fullmatch(
        r"gen_alpha([\d.]+)(?:_tmax([\d.]+))?(?:_nan(\d+))?", name
    ).groups()
    sigma = official.karras(recording["in/rnd_t"], s.hyper, float(tmax or s.hyper["tmax"]))
    if f"{name}/sigma" in recording:
        assert official.rel(sigma, recording.per_example(f"{name}/sigma")) <= SIGMA
    draws, scale = s.draws(sigma), s.hyper["loss_scaling_G"]
    x0, _, d_teacher, d_fake = s.forward(draws)
    per_example = functools.partial(sid.generator_loss, alpha=float(alpha))
    unscaled = per_example(x0, d_teacher, d_fake, jnp.ones(len(x0)))

    def loss(x0, d_teacher, d_fake, sigma):
        return per_example(x0, d_teacher, d_fake, jnp.full_like(sigma, scale))

    if f"{name}/loss" not in recording:
        fns = s.fns(loss=loss)
        trees = [s.tree(role) for role in ("gen", "true", "fake")]
        scalar, _ = step.generator_loss(*trees, draws, fns=fns)
        assert_scalar(scalar, recording[f"{name}/scalar"], unscaled, scale)
        return
    kept = np.arange(len(x0)) != (-1 if nan is None else int(nan))
    assert_per_example(unscaled[kept], recording[f"{name}/loss"])
    fake = s.tree("fake") if nan is None else {"broken": (s.networks["fake"].params, int(nan))}
    check_generator(s, draws, loss, name, scale, fake=fake)


def test_sid_fake_score(sid_loss_case):
    s = setting(sid_loss_case.path)
    check_fake_score(s, s.hyper["loss_scaling"])


def test_diff_instruct_generator(diff_instruct_loss_case):
    s = setting(diff_instruct_loss_case.path)
    recording, scale = s.recording, s.hyper["loss_scaling"]
    sigma = official.lognormal(recording["in/rnd_normal"], s.hyper)
    assert official.rel(sigma, recording.per_example("gen/sigma")) <= SIGMA
    draws = s.draws(sigma)
    ours = s.forward(draws)
    for image, name in zip(ours, ("images", "noisy", "Dd", "Dg"), strict=True):
        assert official.rel(image, recording.images(f"gen/{name}")) <= MID, name

    def loss(x0, d_teacher, d_fake, sigma):
        return diff_instruct.generator_loss(x0, d_teacher, d_fake, jnp.full_like(sigma, scale))

    x0, _, d_teacher, d_fake = ours
    assert_per_example(loss(x0, d_teacher, d_fake, sigma), recording["gen/loss"])
    check_generator(s, draws, loss, "gen", 1.0)


def test_diff_instruct_fake_score(diff_instruct_loss_case):
    s = setting(diff_instruct_loss_case.path)
    assert official.rel(s.fake_draws().sigma, s.recording.per_example("fake/sigma")) <= SIGMA
    check_fake_score(s, s.hyper["sgls"])


def sida_fns(s, **options):
    hyper = s.hyper
    constants = Discriminator(
        fake_score_scale=hyper["loss_scaling_D"],
        generator_scale=hyper["loss_scaling_G_gan"],
        divergence="",
        start=0,
    )
    return s.fns(discriminator=constants, **options)


def test_sida_fake_score(sida_case):
    """Denoising loss on generated images plus the discriminator's loss."""
    s = setting(sida_case.path)
    recording, draws = s.recording, s.fake_draws()
    keys = {"dropout_keys": None, "augment_keys": None}
    real = recording.images("in/real_images")
    draws = draws.replace(real=RealDraws(images=real, **keys))
    x0 = s.fns().generate(s.tree("gen"), draws.z, draws.cond)
    assert official.rel(x0, recording.images("fake/images")) <= MID
    for images, name in ((x0, "fake"), (real, "real")):
        xt = noise.add_noise(images, draws.sigma, draws.eps)
        denoised, logits = s.denoise(s.tree("fake"), xt, draws.sigma, draws.cond, with_logits=True)
        assert official.rel(logits, recording[f"fake/logit_{name}"][:, 0]) <= MID
        if name == "fake":
            weight = noise.edm_weight(draws.sigma, sigma_data=s.sigma_data)
            loss = denoising.denoising_loss(x0, denoised, weight)
            assert_per_example(loss, recording["fake/loss_score"])
    fns = sida_fns(s, fake_score_scale=s.hyper["loss_scaling"])
    grad_fn = jax.value_and_grad(functools.partial(step.fake_score_loss, fns=fns), has_aux=True)
    (scalar, metrics), grads = grad_fn(s.tree("fake"), s.tree("gen"), draws)
    expected = recording["fake/scalar_score"] + recording["fake/scalar_disc"]
    np.testing.assert_allclose(scalar, expected, rtol=SCALAR)
    assert_gradients(grads["fake"], s.networks["fake"], recording, "fake/grad/")
    signs = (recording["fake/logit_real"] > 0).mean(), (recording["fake/logit_fake"] < 0).mean()
    np.testing.assert_allclose(metrics["fake_score/accuracy"], np.mean(signs), atol=1e-6)


def test_sida_generator(sida_case):
    s = setting(sida_case.path)
    recording, hyper = s.recording, s.hyper
    sigma = official.karras(recording["in/rnd_t"], hyper, hyper["tmax"])
    draws = s.draws(sigma)
    x0, xt, *_ = s.forward(draws)
    assert official.rel(x0, recording.images("gen/images")) <= MID
    _, logits = s.denoise(s.tree("fake"), xt, sigma, draws.cond, with_logits=True)
    assert official.rel(logits, recording["gen/logit"][:, 0]) <= MID

    def loss(x0, d_teacher, d_fake, sigma):
        scale = jnp.full_like(sigma, hyper["loss_scaling_G"])
        return sid.generator_loss(x0, d_teacher, d_fake, scale, alpha=hyper["alpha"])

    fns, others = sida_fns(s, loss=loss), (s.tree("true"), s.tree("fake"), draws)
    grad_fn = jax.value_and_grad(functools.partial(step.generator_loss, fns=fns), has_aux=True)
    (scalar, _), grads = grad_fn(s.tree("gen"), *others)
    expected = recording["gen/scalar_sid"] + recording["gen/scalar_gan"]
    scale = hyper["gan_share"] * hyper["loss_scaling_G"]
    error = abs(float(scalar) - hyper["gan_share"] * expected)
    assert error <= SCALAR * scale * np.abs(recording["gen/loss_sid"]).sum() / len(x0)
    assert_gradients(grads["gen"], s.networks["gen"], recording, "gen/grad/")
    _, grad = grad_fn({"images": x0}, *others)
    assert official.rel(grad["images"], recording.images("gen/grad_images")) <= GRAD_IMAGES


def test_denoising_loss_on_images(edm_loss_case):
    recording, name = official.read(edm_loss_case.path), edm_loss_case.name
    config = recording.json("cases")[name]["config"]
    network = official.network(config, recording.tensors(f"param_{name}/"))
    loss_tolerance, grad_tolerance = EDM_TOLERANCES[config["precond"]]
    x0, eps = recording.images(f"{name}/images"), recording.images(f"{name}/noise")
    unit, law, weigh = LAWS[config["precond"]]
    sigma = law(recording.per_example(f"{name}/{unit}"))
    assert official.rel(sigma, recording.per_example(f"{name}/sigma")) <= SIGMA
    weight = weigh(sigma)
    labels = recording.labels(f"{name}/labels", len(x0))
    kwargs = {"augment_labels": recording.get(f"{name}/augment_labels")}

    def loss_fn(params):
        xt = noise.add_noise(x0, sigma, eps)
        denoised = network.denoise(params, xt, sigma, labels, **kwargs)
        return denoising.denoising_loss(x0, denoised, weight).mean(), denoised

    (scalar, denoised), grads = jax.value_and_grad(loss_fn, has_aux=True)(network.params)
    per_pixel = np.asarray(weight)[:, None, None, None] * (denoised - x0) ** 2
    assert official.rel(per_pixel, recording.images(f"{name}/loss")) <= loss_tolerance
    np.testing.assert_allclose(scalar, recording[f"{name}/scalar"], rtol=loss_tolerance)
    if recording.tensors(f"{name}/grad/"):
        assert_gradients(grads, network, recording, f"{name}/grad/", grad_tolerance)
    if f"{name}/grad_names" in recording:
        grads, expected = official.flat(grads), recording[f"{name}/grad_l2"]
        paths = [official.path_of(str(n), network.mapping) for n in recording[f"{name}/grad_names"]]
        norms = np.array([np.linalg.norm(grads[path]) for path in paths])
        allowed = grad_tolerance * np.maximum(expected, 1e-3 * expected.max())
        assert np.all(np.abs(norms - expected) <= allowed)
