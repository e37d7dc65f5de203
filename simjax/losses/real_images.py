"""RealUID: distillation with real images, without a discriminator. Arrays in, arrays out.

Let p be the density of noisy generated images and q that of noisy real images. The optimal fake
score is

    D_fake = (beta p D_p + (1 - beta) q D_q) / (alpha p + (1 - alpha) q),

which equals D_q if p = q. At alpha = beta = 1 the real images drop out, and the generator's loss is
twice SiD's at alpha = 1/2 without the normalisation omega.

Reference: RealUID, arXiv:2509.22459, written for denoisers. Called from simjax/train/step.py.
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
    real_alpha: float = 0.98,  # RealUID, class-conditional CIFAR-10
    real_beta: float = 0.96,
) -> PerExample:
    """Denoising score matching on generated and real images, with shifted targets.

        w (alpha ||D(xt) - beta / alpha x0||^2
           + (1 - alpha) ||D(x't) - (1 - beta) / (1 - alpha) x'||^2)

    Args:
      x0, denoised: generated images (no gradient) and D of the noisy ones.
      real, denoised_real: real images x' and D of the noisy ones.
      weight: w(sigma), dimensionless.
      real_alpha, real_beta: alpha and beta, the weights of generated images; above 0, published
        values 0.85 to 1.
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
    """Difference of the two denoisers' errors against a shifted target.

        alpha w (||D_teacher - beta / alpha x0||^2 - ||D_fake - beta / alpha x0||^2)

    The gradient flows through x0 and through xt, as in simjax/losses/sim.py.

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
