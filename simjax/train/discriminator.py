"""The adversarial part of the generator loss, and its batch statistics.

References: SiDA, arXiv:2410.14919; f-distill, arXiv:2502.15681 (the losses are in
losses/adversarial.py). Called from simjax/train/step.py.
"""

import dataclasses

import jax.numpy as jnp

from simjax.losses import adversarial
from simjax.train.update import Whole
from simjax.typing import Array, Images, PerExample, Scalar

GENERATORS_SHARE = 0.5  # factor of both loss terms once the discriminator is active; SiDA


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """SiDA's discriminator, the encoder of the fake score (losses/adversarial.py).

    Args:
      fake_score_scale, generator_scale: weights of the two adversarial losses; 0 turns one off.
      divergence: f-divergence whose density-ratio weights multiply the generator loss; empty: none.
      start: step from which the discriminator affects the generator loss.
    """

    fake_score_scale: float
    generator_scale: float
    divergence: str
    start: int


def with_discriminator(
    loss: PerExample,
    logits: adversarial.Logits,
    whole: Whole,
    options: Discriminator,
    counts: bool | Array,
    elements: int,
) -> Scalar:
    """Mean generator loss with divergence weights and the adversarial term.

    With the adversarial term: 0.5 (loss + generator_scale * GAN loss), SiDA.

    Args:
      counts: whether the discriminator is active yet (`Discriminator.start`).
      elements: of one image, h * w * c.
    """
    if options.divergence:
        loss = jnp.where(counts, whole.divergence, 1) * loss
    loss = loss.mean()
    if not options.generator_scale:
        return loss
    against = adversarial.generator_loss(logits, whole.inverse_omega, elements=elements)
    both = GENERATORS_SHARE * (loss + options.generator_scale * against)
    return jnp.where(counts, both, loss)


def parts_of(
    x0: Images, d_teacher: Images, logits: adversarial.Logits, finite: Array
) -> tuple[PerExample, PerExample]:
    """1 / omega and density ratio per example.

    Non-finite examples get 0 and 1.
    """
    inverse_omega = jnp.where(finite, adversarial.inverse_omega(x0, d_teacher), 0)
    return inverse_omega, jnp.where(finite, adversarial.density_ratio(logits), 1)


def whole_of(
    parts: tuple[PerExample, PerExample], sigma: PerExample, options: Discriminator
) -> Whole:
    """Full-batch statistics for the microbatches, from `parts_of` all examples."""
    inverse_omega, ratio = parts
    weights = None
    if options.divergence:
        weights = adversarial.divergence_weights(ratio, sigma, divergence=options.divergence)
    return Whole(inverse_omega=inverse_omega.mean(), divergence=weights)
