"""What a discriminator in the fake score adds to the generator's loss, and shares in a batch.

References: SiDA, arXiv:2410.14919; f-distill, arXiv:2502.15681 (losses/adversarial.py has the
losses). Called from simjax/train/step.py.
"""

import dataclasses

import jax.numpy as jnp

from simjax.losses import adversarial
from simjax.train.update import Whole
from simjax.typing import Array, Images, PerExample, Scalar

GENERATORS_SHARE = 0.5  # of both parts of its loss, once the discriminator counts; SiDA


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """SiDA's, which is the fake score's encoder (losses/adversarial.py).

    Args:
      fake_score_scale, generator_scale: of the two losses; 0: none.
      divergence: whose weights the generator's loss has, from density ratios; empty: none.
      start: steps before the discriminator counts for the generator.
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
    """The mean loss as its divergence weighs it, and half of it with half of the GAN's."""
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
    """1 / omega and the density ratio of each example; of one that is not finite 0 and 1."""
    inverse_omega = jnp.where(finite, adversarial.inverse_omega(x0, d_teacher), 0)
    return inverse_omega, jnp.where(finite, adversarial.density_ratio(logits), 1)


def whole_of(
    parts: tuple[PerExample, PerExample], sigma: PerExample, options: Discriminator
) -> Whole:
    """What slices of a batch share, from `parts_of` all its examples."""
    inverse_omega, ratio = parts
    weights = None
    if options.divergence:
        weights = adversarial.divergence_weights(ratio, sigma, divergence=options.divergence)
    return Whole(inverse_omega=inverse_omega.mean(), divergence=weights)
