"""One distillation step: fake-score update, generator update, EMA. This is the algorithm.

    x0 = G(z)
    fake score:  min E lambda(sigma) || D_fake(x0 + sigma eps) - sg[x0] ||^2
    generator:   min E L(x0, D_teacher(xt), D_fake(xt)),   xt = x0 + sigma eps
    EMA of the generator

With real images x' (losses/real_images.py, losses/adversarial.py) the fake score is trained on them
too, and SiDA's generator loss is half of L plus half of a GAN loss. runs/setup.py (`updates_of`)
builds the list of updates, with n fake-score updates per step.
Everything is a pure function of (state, draws); the caller compiles and shards it. As in the
official SiD loop, dropout is active only in the network being updated.

References: SIM, arXiv:2410.16794, algorithms 1 and 2; SiD, arXiv:2404.04057, algorithm 1; SiDA,
arXiv:2410.14919; several fake-score updates per step: DMD2, arXiv:2405.14867; fake score pulled
towards the generator: SenseFlow, arXiv:2506.00523.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from simjax.diffusion import noise
from simjax.losses import adversarial, denoising
from simjax.losses.distances import Distance
from simjax.train import health
from simjax.train.accumulate import by_parts
from simjax.train.discriminator import Discriminator, parts_of, whole_of, with_discriminator
from simjax.train.optim import ema_update
from simjax.train.state import TrainState
from simjax.train.update import Constants, Draws, Update, Whole, apply_if_due, draws
from simjax.typing import Array, Denoise, Images, Key, Metrics, Params, PerExample, Scalar

Augment = Callable[[Images, Array], tuple[Images, Array | None]]  # images, keys -> images, labels
# x0, d_teacher, d_fake, sigma -> loss per example
GeneratorLoss = Callable[[Images, Images, Images, PerExample], PerExample]
# x0, D of noised x0, x', D of noised x', weight -> the fake score's loss per pair
PairLoss = Callable[[Images, Images, Images, Images, PerExample], PerExample]


def not_augmented(images: Images, keys: Array) -> tuple[Images, None]:
    """Identity augmentation."""
    return images, None


@dataclasses.dataclass(frozen=True)
class StepFns:
    """Functions used by both losses, chosen by runs/setup.py; constant during training."""

    denoise: Denoise  # the fake score in its own update, with or without guidance
    generate: Callable[..., Images]  # (params, z, cond, *, calls, noise_keys, dropout_keys) -> x0
    loss: GeneratorLoss
    distance: Distance  # d of SIM; for every method, the distance of the health metrics
    fake_score_weight: Callable[[PerExample], PerExample]
    denoise_teacher: Denoise  # the teacher, with or without guidance
    denoise_fake: Denoise  # the fake score in the generator's update, with or without guidance
    augment: Augment = not_augmented  # augmentation of the fake score's training images
    fake_score_scale: float = 1.0
    pair_loss: PairLoss | None = None  # fake-score loss of methods with real images
    discriminator: Discriminator | None = None
    calls: int = 1  # K of a K-step generator; `Draws.calls` is the trained call k <= K


def distill_step(
    state: TrainState, constants: Constants, key: Key, *, updates: Sequence[Update]
) -> tuple[TrainState, Metrics]:
    """Runs the updates of one step in order, with separate draws.

    Args:
      key: of this step alone.
    """
    found: dict[str, list[Array]] = {}
    for update, drawn in zip(updates, draws(state, constants, key, updates=updates), strict=True):
        state, metrics = apply_if_due(update, state, constants, drawn)
        for name, value in metrics.items():
            found.setdefault(name, []).append(value)
    means = {name: sum(values[1:], values[0]) / len(values) for name, values in found.items()}
    return state.replace(step=state.step + 1), means


def of_fake_score(
    params: Params, state: TrainState, constants: Constants, draws: Draws, *, fns: StepFns
) -> tuple[Scalar, Metrics]:
    """Loss of the fake-score update."""
    return fake_score_loss(params, state.generator, draws, fns=fns)


def of_generator(
    params: Params, state: TrainState, constants: Constants, draws: Draws, *, fns: StepFns
) -> tuple[Scalar, Metrics]:
    """Loss of the generator update."""
    counts = fns.discriminator is not None and state.step >= fns.discriminator.start
    networks = (params, constants.teacher, state.fake_score)
    return generator_loss(*networks, draws, fns=fns, discriminator_counts=counts)


def fake_score_loss(
    fake_score: Params, generator: Params, draws: Draws, *, fns: StepFns
) -> tuple[Scalar, Metrics]:
    """Denoising loss of the fake score on generated samples, and its metrics.

    E lambda(sigma) ||D_fake(x0 + sigma eps) - sg[x0]||^2, mean over examples. With real images the
    method's pair loss replaces it, or a discriminator loss is added.
    """
    x0 = jax.lax.stop_gradient(_generated(generator, draws, fns))
    keys = (draws.augment_keys, draws.dropout_keys)
    x0, denoised, logits = _denoised(fake_score, x0, *keys, draws, fns)
    weight = fns.fake_score_weight(draws.sigma)
    if draws.real is None:
        loss = denoising.denoising_loss(x0, denoised, weight)
        return fns.fake_score_scale * loss.mean(), {}
    own = (draws.real.images, draws.real.augment_keys, draws.real.dropout_keys)
    real, denoised_real, logits_real = _denoised(fake_score, *own, draws, fns)
    if fns.pair_loss is not None:
        loss = fns.pair_loss(x0, denoised, real, denoised_real, weight)
    else:
        loss = denoising.denoising_loss(x0, denoised, weight)
    loss = fns.fake_score_scale * loss.mean()
    if fns.discriminator is None:
        return loss, {}
    whole = draws.whole or whole_weight(draws.sigma, fns)
    against = adversarial.discriminator_loss(logits_real, logits, whole.weight)
    metrics = health.discriminator(logits_real, logits, draws.sigma)
    return loss + fns.discriminator.fake_score_scale * against, metrics


def generator_loss(
    generator: Params,
    teacher: Params,
    fake_score: Params,
    draws: Draws,
    *,
    fns: StepFns,
    discriminator_counts: bool | Array = True,
) -> tuple[Scalar, Metrics]:
    """The method's generator loss, mean over examples, and the health metrics.

    A non-finite example contributes 0 to the sum but still counts in the denominator, so that one
    bad sample does not spoil the step, as in the official SiD loop.

    Args:
      discriminator_counts: whether the discriminator, if any, already affects the loss.
    """
    x0 = _generated(generator, draws, fns, dropout_keys=draws.dropout_keys)
    xt = noise.add_noise(x0, draws.sigma, draws.eps)
    d_teacher = fns.denoise_teacher(teacher, xt, draws.sigma, draws.cond)
    d_fake, logits = _with_logits(fns.denoise_fake, fns)(fake_score, xt, draws.sigma, draws.cond)
    finite = health.finite_examples(x0, d_teacher, d_fake)
    x0, d_teacher, d_fake = (
        jnp.where(finite[:, None, None, None], image, 0) for image in (x0, d_teacher, d_fake)
    )
    loss = jnp.where(finite, fns.loss(x0, d_teacher, d_fake, draws.sigma), 0)
    metrics = health.generator(x0, d_teacher, d_fake, draws.sigma, finite, distance=fns.distance)
    if fns.calls > 1:
        metrics |= health.by_call(metrics, draws.calls, fns.calls)
    if fns.discriminator is None:
        return loss.mean(), metrics
    logits = jnp.where(finite[:, None, None], logits, 0)
    parts = parts_of(x0, d_teacher, logits, finite)
    whole = draws.whole or whole_of(parts, draws.sigma, fns.discriminator)
    loss = with_discriminator(
        loss, logits, whole, fns.discriminator, discriminator_counts, x0[0].size
    )
    return loss, metrics


def before_fake_score(
    params: Params, state: TrainState, constants: Constants, draws: Draws, *, fns: StepFns
) -> Draws:
    """Adds the full batch's mean weight to the draws, for its microbatches."""
    return draws.replace(whole=whole_weight(draws.sigma, fns))


def before_generator(
    params: Params,
    state: TrainState,
    constants: Constants,
    draws: Draws,
    *,
    fns: StepFns,
    slices: int,
) -> Draws:
    """Adds the generator loss's full-batch statistics to the draws.

    Costs one more forward pass over the batch by generator and teacher, and with a discriminator's
    divergence by the fake score too.
    """

    def of_part(part: Draws) -> tuple[PerExample, PerExample]:
        x0 = _generated(params, part, fns, dropout_keys=part.dropout_keys)
        inputs = (noise.add_noise(x0, part.sigma, part.eps), part.sigma, part.cond)
        d_teacher = fns.denoise_teacher(constants.teacher, *inputs)
        d_fake, logits = _with_logits(fns.denoise_fake, fns)(state.fake_score, *inputs)
        return parts_of(x0, d_teacher, logits, health.finite_examples(x0, d_teacher, d_fake))

    parts = by_parts(of_part, draws, slices)
    return draws.replace(whole=whole_of(parts, draws.sigma, fns.discriminator))


def whole_weight(sigma: PerExample, fns: StepFns) -> Whole:
    """Mean of lambda(sigma), the weight of the discriminator loss."""
    return Whole(weight=fns.fake_score_weight(sigma).mean())


def _denoised(
    fake_score: Params,
    images: Images,
    augment_keys: Array,
    dropout_keys: Array,
    draws: Draws,
    fns: StepFns,
) -> tuple[Images, Images, adversarial.Logits | None]:
    """Augmented images, their denoised noisy versions, and the discriminator's logits."""
    images, augment_labels = fns.augment(images, augment_keys)
    xt = noise.add_noise(images, draws.sigma, draws.eps)
    keys = {"augment_labels": augment_labels, "dropout_keys": dropout_keys}
    denoise = _with_logits(fns.denoise, fns)
    return images, *denoise(fake_score, xt, draws.sigma, draws.cond, **keys)


def _with_logits(denoise: Denoise, fns: StepFns) -> Callable[..., tuple[Images, Any]]:
    """`denoise` returning (D, logits); logits are None without a discriminator."""
    if fns.discriminator is None:
        return lambda *args, **options: (denoise(*args, **options), None)
    return functools.partial(denoise, with_logits=True)


def _generated(generator: Params, draws: Draws, fns: StepFns, **options: Array) -> Images:
    own = {"calls": draws.calls, "noise_keys": draws.noise_keys}
    return fns.generate(generator, draws.z, draws.cond, **own, **options)


def follow(
    state: TrainState, *, ema_decay: Callable[[Array], Scalar], pull: float
) -> tuple[TrainState, Metrics]:
    """After a generator update: updates its EMA and pulls the fake score.

    Args:
      ema_decay: step -> beta.
      pull: fake score <- (1 - pull) fake score + pull generator; 0: off (SenseFlow).
    """
    beta = ema_decay(state.step)
    state = state.replace(ema=ema_update(state.ema, state.generator, beta))
    if pull:
        pulled = ema_update(state.fake_score, state.generator, 1 - pull)
        state = state.with_role("fake_score", params=pulled)
    return state, {"generator/ema_beta": beta}
