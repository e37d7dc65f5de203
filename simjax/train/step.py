"""One distillation step: fake-score update, generator update, EMA. This is the algorithm.

    x0 = G(z)
    fake score:  min E lambda(sigma) || D_fake(x0 + sigma eps) - sg[x0] ||^2
    generator:   min E L(x0, D_teacher(xt), D_fake(xt)),   xt = x0 + sigma eps
    EMA of the generator

With real images x' (losses/real_images.py, losses/adversarial.py) the fake score learns from them
too, and SiDA's generator has half of L and half of a GAN's loss. The list of these updates, with n
of the fake score, is made by runs/setup.py (`updates_of`).
Everything is a pure function of (state, draws); the caller compiles and shards it. Who trains with
dropout follows the official SiD loop: only the network being updated.

References: SIM, arXiv:2410.16794, algorithms 1 and 2; SiD, arXiv:2404.04057, algorithm 1; SiDA,
arXiv:2410.14919; several fake-score updates a step: DMD2, arXiv:2405.14867; the pull: SenseFlow,
arXiv:2506.00523.
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
# x0, d_teacher, d_fake, sigma -> the loss of each example
GeneratorLoss = Callable[[Images, Images, Images, PerExample], PerExample]
# x0, D of it, x', D of it, weight -> the fake score's loss of each pair
PairLoss = Callable[[Images, Images, Images, Images, PerExample], PerExample]


def as_they_are(images: Images, keys: Array) -> tuple[Images, None]:
    """No augmentation."""
    return images, None


@dataclasses.dataclass(frozen=True)
class StepFns:
    """The functions that both losses call, chosen by runs/setup.py; constant while training."""

    denoise: Denoise  # the fake score while it learns; guided, or as it is
    generate: Callable[..., Images]  # (params, z, cond, *, calls, noise_keys, dropout_keys) -> x0
    loss: GeneratorLoss
    distance: Distance  # d of SIM; of the health metrics for every method
    fake_score_weight: Callable[[PerExample], PerExample]
    denoise_teacher: Denoise  # guided, or the same
    denoise_fake: Denoise  # likewise, in the generator's update
    augment: Augment = as_they_are  # of the fake score's training images
    fake_score_scale: float = 1.0
    pair_loss: PairLoss | None = None  # of the fake score, of methods with real images
    discriminator: Discriminator | None = None
    calls: int = 1  # the most of the generator, of which `Draws.calls` is one number


def distill_step(
    state: TrainState, constants: Constants, key: Key, *, updates: Sequence[Update]
) -> tuple[TrainState, Metrics]:
    """Every update in turn, each on fresh draws; `key` belongs to this step alone."""
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
    """The loss of the fake score's update."""
    return fake_score_loss(params, state.generator, draws, fns=fns)


def of_generator(
    params: Params, state: TrainState, constants: Constants, draws: Draws, *, fns: StepFns
) -> tuple[Scalar, Metrics]:
    """The loss of the generator's update."""
    counts = fns.discriminator is not None and state.step >= fns.discriminator.start
    networks = (params, constants.teacher, state.fake_score)
    return generator_loss(*networks, draws, fns=fns, discriminator_counts=counts)


def fake_score_loss(
    fake_score: Params, generator: Params, draws: Draws, *, fns: StepFns
) -> tuple[Scalar, Metrics]:
    """E lambda(sigma) ||D_fake(x0 + sigma eps) - sg[x0]||^2, mean over examples, and its metrics.

    With real images it is the method's own loss of pairs; a discriminator adds its own.
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
    """The method's loss, mean over examples, and its health metrics.

    An example whose loss is not finite is left out of the sum (it still counts in the mean), so
    that one bad sample does not cost the step; this is the official SiD loop's rule.

    Args:
      discriminator_counts: where there is one, whether it does yet.
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
    """The mean weight of a whole batch, for the loss of its slices."""
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
    """What the generator's loss takes from a whole batch, for that of its slices.

    It costs the forward passes of a slice once more, and of a discriminator's divergence the fake
    score's too.
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
    """The mean of lambda(sigma), which weighs the discriminator's loss."""
    return Whole(weight=fns.fake_score_weight(sigma).mean())


def _denoised(
    fake_score: Params,
    images: Images,
    augment_keys: Array,
    dropout_keys: Array,
    draws: Draws,
    fns: StepFns,
) -> tuple[Images, Images, adversarial.Logits | None]:
    """The images as augmented, D of them with noise, and the discriminator's logits."""
    images, augment_labels = fns.augment(images, augment_keys)
    xt = noise.add_noise(images, draws.sigma, draws.eps)
    keys = {"augment_labels": augment_labels, "dropout_keys": dropout_keys}
    denoise = _with_logits(fns.denoise, fns)
    return images, *denoise(fake_score, xt, draws.sigma, draws.cond, **keys)


def _with_logits(denoise: Denoise, fns: StepFns) -> Callable[..., tuple[Images, Any]]:
    """D and its logits, or None where there is no discriminator."""
    if fns.discriminator is None:
        return lambda *args, **options: (denoise(*args, **options), None)
    return functools.partial(denoise, with_logits=True)


def _generated(generator: Params, draws: Draws, fns: StepFns, **options: Array) -> Images:
    own = {"calls": draws.calls, "noise_keys": draws.noise_keys}
    return fns.generate(generator, draws.z, draws.cond, **own, **options)


def follow(
    state: TrainState, *, ema_decay: Callable[[Array], Scalar], pull: float
) -> tuple[TrainState, Metrics]:
    """After the generator has moved: its EMA, and the fake score's pull towards it."""
    beta = ema_decay(state.step)
    state = state.replace(ema=ema_update(state.ema, state.generator, beta))
    if pull:
        pulled = ema_update(state.fake_score, state.generator, 1 - pull)
        state = state.with_role("fake_score", params=pulled)
    return state, {"generator/ema_beta": beta}
