"""Samplers against NVlabs/edm: edm_sampler, and ablation_sampler with each family's parts.

As in the reference, the sampler's state is float64 and the network float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from simjax.diffusion import sampler, schedule
from tests.helpers import collection, official

# Tolerance of samples: absolute for EDM networks, else relative to the largest sample, since random
# networks under the other wrappers do not denoise. Tolerance of noise levels: relative; the float32
# recursion of iDDPM's table loses digits at small sigma, its levels are at least 3e-3 apart.
SAMPLES, RELATIVE_SAMPLES = 3e-5, 1e-4
SIGMAS, TABLE_SIGMAS = 1e-6, 2e-5
LADDER = ("sigma_min", "sigma_max", "rho")
CHURN = {"S_churn": "amount", "S_min": "low", "S_max": "high", "S_noise": "inflation"}
PARTS = ("discretization", "schedule", "scaling", "solver")


def test_samples_and_noise_levels(sampling_case):
    recording, name = official.read(sampling_case.path), sampling_case.name
    case = recording.json("cases")[name]
    options = {key: value for key, value in case["kwargs"].items() if value is not None}
    assert options.keys() <= {*LADDER, *CHURN, *PARTS, "num_steps", "alpha"}
    network = official.network(case["config"], recording.tensors(case["params"]))
    z = recording.images(f"{name}/latents")
    labels = recording.labels(f"{name}/class_labels", len(z))
    sigmas_called = []

    def denoise(xt, sigma):
        sigmas_called.append(float(sigma[0]))
        with jax.enable_x64(False), jax.disable_jit(False):
            single = (np.asarray(xt, np.float32), np.asarray(sigma, np.float32))
            denoised = np.asarray(network.denoise(network.params, *single, labels))
        return jnp.asarray(denoised, jnp.float64)

    def draw_noise(index):
        return jnp.asarray(recording.images(f"{name}/noises")[int(index)], jnp.float64)

    discretization, path, solver = collection.sampling_parts(options)
    ladder = schedule.LADDERS[collection.SUPPORTED_LADDERS[discretization]]
    heun_stages = sampler.heun_stages(options.get("alpha", 1.0))
    with jax.enable_x64(True), jax.disable_jit():  # without jit, to record the noise levels
        samples = sampler.integrate(
            denoise,
            jnp.asarray(z, jnp.float64),
            ladder(options["num_steps"], **{k: float(options[k]) for k in LADDER if k in options}),
            stages={"euler": sampler.EULER, "heun": heun_stages}[solver],
            path=sampler.PATHS[collection.SUPPORTED_PATHS[path]],
            churn=sampler.Churn(**{CHURN[k]: v for k, v in options.items() if k in CHURN}),
            draw_noise=draw_noise,
        )
    assert samples.dtype == jnp.float64
    rtol = TABLE_SIGMAS if discretization == "iddpm" else SIGMAS
    np.testing.assert_allclose(sigmas_called, recording[f"{name}/sigmas_called"], rtol=rtol)
    expected = recording.images(f"{name}/samples")
    denoises = case["precond"] == "EDMPrecond"
    atol = SAMPLES if denoises else RELATIVE_SAMPLES * np.abs(expected).max()
    np.testing.assert_allclose(samples, expected, rtol=0, atol=atol)
