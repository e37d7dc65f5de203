"""SiDA's discriminator losses and f-divergence weights. Arrays in, arrays out.

The discriminator is the encoder of the fake score: one logit per spatial location, the mean over
channels of the encoder's last block (networks/unet.py). The optimal logit is ln(q / p), where q is
the density of real images and p that of generated images at the same noise level.

References: SiDA, arXiv:2410.14919; f-distill, arXiv:2502.15681. Called from simjax/train/step.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from simjax.typing import Array, Float, Images, PerExample, Scalar, typed

Logits = Float[Array, "b h w"]

LARGEST_LOGIT = (
    10.0  # clips logits in the generator's loss (SiDA) and in the density ratio (f-distill)
)
SMALLEST_OMEGA = 1e-5  # lower bound of SiD's omega; SiDA
RATIOS = (0.1, 20.0)  # clips the density ratio; f-distill
BIN_EDGES = tuple(0.002 * 40_000 ** (k / 10) for k in range(1, 10))  # over EDM's sigmas; our choice
TINY = 1e-6  # added to denominators; f-distill

# h(r) = r^2 f''(r) with r = q / p: Diff-Instruct's gradient times h is the gradient of D_f(q || p).
DIVERGENCES: dict[str, Callable[[Array], Array]] = {
    "rkl": jnp.ones_like,
    "kl": lambda r: r,
    "js": lambda r: r / (1 + r),
    "sf": lambda r: 1 / (1 + r),  # softened reverse KL, the divergence of a non-saturating GAN
    "sh": lambda r: jnp.sqrt(r) / 4,  # squared Hellinger
    "neyman": lambda r: 2 / r,
    "jf": lambda r: 1 + r,  # Jeffreys
}


@typed
def discriminator_loss(real: Logits, generated: Logits, mean_weight: Scalar) -> Scalar:
    """Cross-entropy of the discriminator.

        mean(lambda) / 2 (mean softplus(-real) + mean softplus(generated))

    Both means run over the global batch and all locations; the official code averages per GPU.

    Args:
      real, generated: logits of noisy images, at the same noise levels.
      mean_weight: mean of lambda(sigma) over the batch.

    >>> logits = jnp.zeros((2, 1, 1))  # an undecided discriminator: ln 2 for each term
    >>> round(float(discriminator_loss(logits, logits, jnp.array(1.0))), 4)
    0.6931
    """
    cross_entropy = jax.nn.softplus(-real).mean() + jax.nn.softplus(generated).mean()
    return mean_weight / 2 * cross_entropy


@typed
def generator_loss(generated: Logits, mean_inverse_omega: Scalar, *, elements: int) -> Scalar:
    """Non-saturating adversarial loss of the generator.

        elements * mean(1 / omega) * mean softplus(-clip(logits, -10, 10))

    Args:
      generated: logits of noisy generated images.
      mean_inverse_omega: mean of `inverse_omega` over the batch; no gradient flows through it.
      elements: h * w * c of an image, which scales the loss like a sum over pixels.
    """
    clipped = jnp.clip(generated, -LARGEST_LOGIT, LARGEST_LOGIT)
    return elements * mean_inverse_omega * jax.nn.softplus(-clipped).mean()


@typed
def inverse_omega(x0: Images, d_teacher: Images) -> PerExample:
    """1 / max(mean |x0 - D_teacher|, 1e-5), SiD's normalisation; no gradient."""
    omega = jnp.mean(jnp.abs(x0 - d_teacher), axis=(1, 2, 3))
    return jax.lax.stop_gradient(1 / jnp.maximum(omega, SMALLEST_OMEGA))


@typed
def density_ratio(generated: Logits) -> PerExample:
    """Density ratio r = q / p per example; no gradient.

    Computed from the mean logit of an example and clipped to [0.1, 20].

    >>> density_ratio(jnp.zeros((1, 4, 4))).tolist()
    [1.0]
    """
    mean = jnp.clip(generated.mean((1, 2)), -LARGEST_LOGIT, LARGEST_LOGIT)
    return jax.lax.stop_gradient(jnp.clip(jnp.exp(mean), *RATIOS))


@typed
def divergence_weights(ratio: PerExample, sigma: PerExample, *, divergence: str) -> PerExample:
    """h(r) per example, normalised to mean 1 over the batch.

    Each r is first divided by the mean r of its sigma bin (BIN_EDGES).

    Args:
      ratio: r, from `density_ratio`.
      divergence: a key of DIVERGENCES.
    """
    bins = jax.nn.one_hot(jnp.digitize(sigma, jnp.array(BIN_EDGES)), len(BIN_EDGES) + 1)
    means = (ratio @ bins) / jnp.maximum(bins.sum(0), 1)
    weight = DIVERGENCES[divergence](ratio / (bins @ means + TINY))
    return weight / (weight.mean() + TINY)
