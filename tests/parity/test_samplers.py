"""EDM's sampler, deterministic and with churn, against NVlabs/edm.

As there, the sampler's state is in float64 and the network in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from simjax.diffusion import sampler, schedule

from . import official

SAMPLES, SIGMAS = 3e-5, 1e-6  # absolute; relative
LADDER = ("sigma_min", "sigma_max", "rho")
CHURN = {"S_churn": "amount", "S_min": "low", "S_max": "high", "S_noise": "inflation"}


def test_samples_and_noise_levels(sampling_case):
    recording, name = official.read(sampling_case.path), sampling_case.name
    case = recording.json("cases")[name]
    options = case["kwargs"]
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

    with jax.enable_x64(True), jax.disable_jit():  # un-jitted: the noise levels can be recorded
        ladder = {key: float(options[key]) for key in LADDER if options.get(key) is not None}
        samples = sampler.heun(
            denoise,
            jnp.asarray(z, jnp.float64),
            schedule.karras_ladder(options["num_steps"], **ladder),
            alpha=options.get("alpha", 1.0),
            churn=sampler.Churn(**{CHURN[k]: v for k, v in options.items() if k in CHURN}),
            draw_noise=draw_noise,
        )
    known = {*LADDER, *CHURN, "num_steps", "alpha"}
    fixed = {"discretization", "schedule", "scaling", "solver"}  # their only supported values
    assert options.keys() <= known | fixed
    assert samples.dtype == jnp.float64
    np.testing.assert_allclose(sigmas_called, recording[f"{name}/sigmas_called"], rtol=SIGMAS)
    expected = recording.images(f"{name}/samples")
    np.testing.assert_allclose(samples, expected, rtol=0, atol=SAMPLES)
