"""One distillation step: fake-score update, generator update, EMA. This is the algorithm.

    x0 = G(z)
    fake score:  min E lambda(sigma) || D_fake(x0 + sigma eps) - sg[x0] ||^2
    generator:   min E L(x0, D_teacher(xt), D_fake(xt)),   xt = x0 + sigma eps
    EMA of the generator

The list of these updates, with n of the fake score, is made by runs/setup.py (`updates_of`).
Everything is a pure function of (state, draws); the caller compiles and shards it. Who trains with
dropout follows the official SiD loop: only the network being updated.

References: SIM, arXiv:2410.16794, algorithms 1 and 2; SiD, arXiv:2404.04057, algorithm 1; several
fake-score updates a step: DMD2, arXiv:2405.14867; the pull: SenseFlow, arXiv:2506.00523.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from simjax.diffusion import noise
from simjax.losses import denoising
from simjax.losses.distances import Distance
from simjax.train import health
from simjax.train.optim import ema_update
from simjax.train.state import TrainState
from simjax.train.update import Constants, Draws, Update, apply_if_due, draws
from simjax.typing import Array, Denoise, Images, Key, Metrics, Params, PerExample, Scalar

Augment = Callable[[Images, Array], tuple[Images, Array | None]]  # images, keys -> images, labels
# x0, d_teacher, d_fake, sigma -> the loss of each example
GeneratorLoss = Callable[[Images, Images, Images, PerExample], PerExample]


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
    return fake_score_loss(params, state.generator, draws, fns=fns), {}


def of_generator(
    params: Params, state: TrainState, constants: Constants, draws: Draws, *, fns: StepFns
) -> tuple[Scalar, Metrics]:
    """The loss of the generator's update."""
    return generator_loss(params, constants.teacher, state.fake_score, draws, fns=fns)


def fake_score_loss(fake_score: Params, generator: Params, draws: Draws, *, fns: StepFns) -> Scalar:
    """E lambda(sigma) ||D_fake(x0 + sigma eps) - sg[x0]||^2, mean over examples."""
    x0 = jax.lax.stop_gradient(_generated(generator, draws, fns))
    x0, augment_labels = fns.augment(x0, draws.augment_keys)
    xt = noise.add_noise(x0, draws.sigma, draws.eps)
    keys = {"augment_labels": augment_labels, "dropout_keys": draws.dropout_keys}
    denoised = fns.denoise(fake_score, xt, draws.sigma, draws.cond, **keys)
    loss = denoising.denoising_loss(x0, denoised, fns.fake_score_weight(draws.sigma))
    return fns.fake_score_scale * loss.mean()


def generator_loss(
    generator: Params, teacher: Params, fake_score: Params, draws: Draws, *, fns: StepFns
) -> tuple[Scalar, Metrics]:
    """The method's loss, mean over examples, and its health metrics.

    An example whose loss is not finite is left out of the sum (it still counts in the mean), so
    that one bad sample does not cost the step; this is the official SiD loop's rule.
    """
    x0 = _generated(generator, draws, fns, dropout_keys=draws.dropout_keys)
    xt = noise.add_noise(x0, draws.sigma, draws.eps)
    d_teacher = fns.denoise_teacher(teacher, xt, draws.sigma, draws.cond)
    d_fake = fns.denoise_fake(fake_score, xt, draws.sigma, draws.cond)
    finite = health.finite_examples(x0, d_teacher, d_fake)
    x0, d_teacher, d_fake = (
        jnp.where(finite[:, None, None, None], image, 0) for image in (x0, d_teacher, d_fake)
    )
    loss = jnp.where(finite, fns.loss(x0, d_teacher, d_fake, draws.sigma), 0)
    metrics = health.generator(x0, d_teacher, d_fake, draws.sigma, finite, distance=fns.distance)
    if fns.calls > 1:
        metrics |= health.by_call(metrics, draws.calls, fns.calls)
    return loss.mean(), metrics


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
