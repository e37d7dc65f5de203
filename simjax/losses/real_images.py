"""RealUID: distillation that real images correct, without a discriminator. Arrays in, arrays out.

With p the generated and q the real images, the fake score's optimum is

    D_fake = (beta p D_p + (1 - beta) q D_q) / (alpha p + (1 - alpha) q),

which is D_q where p = q. At alpha = beta = 1 no real image counts, and the generator's loss is
twice SiD's at alpha = 1/2, without its omega.

Reference: RealUID, arXiv:2509.22459, in denoiser form. Called from simjax/train/step.py.
"""

import jax.numpy as jnp

from simjax.typing import Images, PerExample, typed


@typed
def fake_score_loss(
    x0: Images,
    denoised: Images,
    real: Images,
    denoised_real: Images,
    weight: PerExample,
    *,
    real_alpha: float = 0.98,  # RealUID's, CIFAR-10 with classes
    real_beta: float = 0.96,
) -> PerExample:
    """Denoising score matching on generated and real images, with shifted targets.

        w (alpha ||D(xt) - beta / alpha x0||^2
           + (1 - alpha) ||D(x't) - (1 - beta) / (1 - alpha) x'||^2)

    Args:
      x0, denoised: generated images without gradient, and D of them with noise.
      real, denoised_real: real images x' and D of them with noise.
      weight: w(sigma), dimensionless.
      real_alpha, real_beta: shares of generated images, above 0; published: 0.85 to 1.
    """
    share = 1 - real_alpha
    target = (1 - real_beta) / share if share else 0.0
    on_generated = _squared(denoised - real_beta / real_alpha * x0)
    return weight * (real_alpha * on_generated + share * _squared(denoised_real - target * real))


@typed
def generator_loss(
    x0: Images,
    d_teacher: Images,
    d_fake: Images,
    weight: PerExample,
    *,
    real_alpha: float = 0.98,
    real_beta: float = 0.96,
) -> PerExample:
    """alpha w (||D_teacher - beta / alpha x0||^2 - ||D_fake - beta / alpha x0||^2).

    The gradient flows through x0 and xt as in simjax/losses/sim.py.

    Args:
      x0: generator output, data units.
      d_teacher, d_fake: D(xt; sigma) of each network, data units.
      weight: w(sigma), dimensionless.
      real_alpha, real_beta: as in `fake_score_loss`.
    """
    target = real_beta / real_alpha * x0
    return weight * real_alpha * (_squared(d_teacher - target) - _squared(d_fake - target))


def _squared(images: Images) -> PerExample:
    return jnp.sum(images**2, axis=(1, 2, 3))
