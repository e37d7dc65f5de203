"""Preconditioned networks against NVlabs/edm: values and gradients in image and parameters."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simjax.diffusion import precondition
from simjax.networks.denoiser import Denoiser, as_denoise
from tests.helpers import official


class Tolerance(NamedTuple):
    """`official.rel` tolerances of D, F, d<D, v>/dx and the parameters' gradient norms."""

    denoised: float
    residual: float
    vjp: float
    norms: float


# The table in tests/golden/README.md.
TOLERANCES = {
    ("EDMPrecond", "positional"): Tolerance(1e-5, 2e-5, 1e-5, 1e-4),
    ("EDMPrecond", "fourier"): Tolerance(3e-5, 1e-4, 1e-5, 2e-4),
    "iDDPMPrecond": Tolerance(2e-5, 5e-5, 5e-5, 2e-4),
    "VPPrecond": Tolerance(5e-5, 2e-3, 2e-4, 2e-3),
    "VEPrecond": Tolerance(1e-5, 3e-4, 1e-4, 5e-4),
}


class Evaluation(NamedTuple):
    """Our outputs and gradients for the inputs of a recording."""

    recording: official.Recording
    network: official.Network
    tolerance: Tolerance
    inputs: tuple
    augment_labels: np.ndarray | None
    denoised: np.ndarray
    params_vjp: dict[str, np.ndarray]
    images_vjp: np.ndarray


@functools.cache
def evaluate(case) -> Evaluation:
    recording = official.read(case.path)
    config = recording.json("config")
    network = official.network(config, recording.tensors("param/"))
    wrapper = config["precond"]
    embedding = config.get("embedding_type", "positional")
    tolerance = TOLERANCES[wrapper if wrapper in TOLERANCES else (wrapper, embedding)]
    xt, sigma = recording.images("in/x"), recording["in/sigma"]
    labels = recording.labels("in/class_labels", len(xt))
    augment = recording.get("in/augment_labels")

    def denoise(params, xt):
        return network.denoise(params, xt, sigma, labels, augment_labels=augment)

    denoised, vjp = jax.vjp(denoise, network.params, jnp.asarray(xt))
    params_vjp, images_vjp = vjp(jnp.asarray(recording.images("in/v")))
    inputs = (xt, sigma, labels)
    return Evaluation(
        recording, network, tolerance, inputs, augment,
        denoised, official.flat(params_vjp), images_vjp,
    )  # fmt: skip


def assert_denoised(ours, expected, tolerance):
    """Over the batch, and per sample: at small sigma D is close to x."""
    assert official.rel(ours, expected) <= tolerance
    per_sample = official.rel(ours, expected, axis=(1, 2, 3))
    assert per_sample.max() <= tolerance, per_sample


def test_denoised(network_case):
    ours = evaluate(network_case)
    assert_denoised(ours.denoised, ours.recording.images("out/D_x"), ours.tolerance.denoised)


def test_network_output_and_noise_label(network_case):
    ours = evaluate(network_case)
    xt, sigma, labels = ours.inputs

    def bare(sigma):  # the network output F: c_skip = 0, c_out = 1
        coefficients = ours.network.precondition(sigma)
        zero = jnp.zeros_like(sigma)
        return coefficients._replace(c_skip=zero, c_out=zero + 1)

    denoise, params = as_denoise(Denoiser(ours.network.module.network, bare))
    kwargs = {"augment_labels": ours.augment_labels}
    residual = jax.jit(denoise)(params, xt, sigma, labels, **kwargs)
    expected = ours.recording.images("out/F_x")[..., : xt.shape[-1]]  # learned variances dropped
    assert official.rel(residual, expected) <= ours.tolerance.residual
    c_noise = ours.network.precondition(jnp.asarray(sigma)).c_noise
    assert official.rel(c_noise, ours.recording["out/c_noise"]) <= ours.tolerance.denoised


def test_gradient_in_the_image(network_case):
    ours = evaluate(network_case)
    assert official.rel(ours.images_vjp, ours.recording.images("out/vjp_x")) <= ours.tolerance.vjp


def test_gradients_in_the_parameters(network_case):
    # An error of norm e l in a gradient of n elements and norm l changes its sum by at most
    # e l sqrt(n).
    ours = evaluate(network_case)
    mapping, recorded = ours.network.mapping, ours.recording["out/param_vjp_names"]
    names = [official.path_of(str(name), mapping) for name in recorded]
    assert sorted(names) == sorted(ours.params_vjp)
    sums, norms = ours.recording["out/param_vjp_sum_l2"].T
    grads = [ours.params_vjp[name].astype(np.float64) for name in names]
    allowed = ours.tolerance.norms * np.maximum(norms, 1e-3 * norms.max())
    norm_errors = np.abs([np.linalg.norm(g) for g in grads] - norms)
    assert np.all(norm_errors <= allowed), names[np.argmax(norm_errors / allowed)]
    sum_errors = np.abs([g.sum() for g in grads] - sums)
    allowed *= np.sqrt([g.size for g in grads])
    assert np.all(sum_errors <= allowed), names[np.argmax(sum_errors / allowed)]


def test_without_augmentation_or_class(network_case):
    ours = evaluate(network_case)
    xt, sigma, labels = ours.inputs
    denoise, params = ours.network.denoise, ours.network.params
    if "out_aug0/D_x" in ours.recording:
        plain = denoise(params, xt, sigma, labels)
        expected = ours.recording.images("out_aug0/D_x")
        assert_denoised(plain, expected, ours.tolerance.denoised)
    if "out_nolabel/D_x" in ours.recording:
        kwargs = {"augment_labels": ours.augment_labels}
        unconditional = denoise(params, xt, sigma, np.zeros_like(labels), **kwargs)
        expected = ours.recording.images("out_nolabel/D_x")
        assert_denoised(unconditional, expected, ours.tolerance.denoised)


def test_nearest_level_of_a_table(table_case):
    recording, levels = official.read(table_case.path), precondition.iddpm_levels()
    c_noise = precondition.iddpm(jnp.asarray(recording["round/sigma"])).c_noise
    index = len(levels) - 2 - np.asarray(c_noise, int)
    np.testing.assert_array_equal(index, recording["round/index"])
    np.testing.assert_allclose(levels[index], recording["round/value"], rtol=2e-5)
