"""SiDA's discriminator losses, and weights of f-divergences. Arrays in, arrays out.

The discriminator is the fake score's own encoder: a logit a location, the mean over channels of its
last block (networks/unet.py). Its optimum is ln(q / p), of real images q over generated ones p at
the same noise level.

References: SiDA, arXiv:2410.14919; f-distill, arXiv:2502.15681. Called from simjax/train/step.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from simjax.typing import Array, Float, Images, PerExample, Scalar, typed

Logits = Float[Array, "b h w"]

LARGEST_LOGIT = 10.0  # of the generator's loss and of ratios; SiDA, f-distill
SMALLEST_OMEGA = 1e-5  # SiDA
RATIOS = (0.1, 20.0)  # range of the density ratio; f-distill
BIN_EDGES = tuple(0.002 * 40_000 ** (k / 10) for k in range(1, 10))  # of EDM's sigmas; our choice
TINY = 1e-6  # added to means that are divided by; f-distill

# h(r) = r^2 f''(r) of r = q / p: Diff-Instruct's gradient times h is that of D_f(q || p).
DIVERGENCES: dict[str, Callable[[Array], Array]] = {
    "rkl": jnp.ones_like,
    "kl": lambda r: r,
    "js": lambda r: r / (1 + r),
    "sf": lambda r: 1 / (1 + r),  # softened reverse KL: of a non-saturating GAN
    "sh": lambda r: jnp.sqrt(r) / 4,  # squared Hellinger
    "neyman": lambda r: 2 / r,
    "jf": lambda r: 1 + r,  # Jeffreys
}


@typed
def discriminator_loss(real: Logits, generated: Logits, mean_weight: Scalar) -> Scalar:
    """mean(lambda) / 2 (mean softplus(-real) + mean softplus(generated)).

    Both means run over the batch and all locations; the official code's are of each GPU's images.

    Args:
      real, generated: logits of images with noise of the same levels.
      mean_weight: mean of lambda(sigma) over the batch.
    """
    cross_entropy = jax.nn.softplus(-real).mean() + jax.nn.softplus(generated).mean()
    return mean_weight / 2 * cross_entropy


@typed
def generator_loss(generated: Logits, mean_inverse_omega: Scalar, *, elements: int) -> Scalar:
    """elements * mean(1 / omega) * mean softplus(-clip(logits, +-10)), the non-saturating loss.

    Args:
      generated: logits of generated images with noise.
      mean_inverse_omega: mean of `inverse_omega` over the batch; a constant of the gradient.
      elements: numbers in an image, so that the loss counts as a sum over pixels.
    """
    clipped = jnp.clip(generated, -LARGEST_LOGIT, LARGEST_LOGIT)
    return elements * mean_inverse_omega * jax.nn.softplus(-clipped).mean()


@typed
def inverse_omega(x0: Images, d_teacher: Images) -> PerExample:
    """1 / max(mean |x0 - D_teacher|, 1e-5), SiD's normalisation, without gradient."""
    omega = jnp.mean(jnp.abs(x0 - d_teacher), axis=(1, 2, 3))
    return jax.lax.stop_gradient(1 / jnp.maximum(omega, SMALLEST_OMEGA))


@typed
def density_ratio(generated: Logits) -> PerExample:
    """r = q / p of each example, in [0.1, 20], from its mean logit; without gradient."""
    mean = jnp.clip(generated.mean((1, 2)), -LARGEST_LOGIT, LARGEST_LOGIT)
    return jax.lax.stop_gradient(jnp.clip(jnp.exp(mean), *RATIOS))


@typed
def divergence_weights(ratio: PerExample, sigma: PerExample, *, divergence: str) -> PerExample:
    """h(r) of each example over its mean in the batch; r over its mean in its range of sigma.

    Args:
      ratio: `density_ratio`.
      divergence: a name in DIVERGENCES.
    """
    bins = jax.nn.one_hot(jnp.digitize(sigma, jnp.array(BIN_EDGES)), len(BIN_EDGES) + 1)
    means = (ratio @ bins) / jnp.maximum(bins.sum(0), 1)
    weight = DIVERGENCES[divergence](ratio / (bins @ means + TINY))
    return weight / (weight.mean() + TINY)
