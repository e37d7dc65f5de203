"""One distillation step: fake-score update, generator update, EMA. This is the algorithm.

    x0 = G(z)                                      G = D_generator(sigma_init z, sigma_init)
    fake score:  min E lambda(sigma) || D_fake(x0 + sigma eps) - sg[x0] ||^2
    generator:   min E L(x0, D_teacher(xt), D_fake(xt)),   xt = x0 + sigma eps
    EMA of the generator

Everything is a pure function of (state, draws); the caller compiles and shards it. Who trains with
dropout follows the official SiD loop: only the network being updated.

References: SIM, arXiv:2410.16794, algorithms 1 and 2; SiD, arXiv:2404.04057, algorithm 1.
"""

import dataclasses
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from simjax.diffusion import noise
from simjax.losses import denoising
from simjax.losses.distances import Distance
from simjax.train import health
from simjax.train.optim import GradientTransformation, ema_update
from simjax.train.state import TrainState
from simjax.typing import (
    Array,
    Caption,
    Condition,
    Denoise,
    Images,
    Key,
    Metrics,
    Params,
    PerExample,
    Scalar,
)


@struct.dataclass
class Constants:
    """What every step is given beside its state.

    Args:
      captions: of text-to-image runs, leaves (n, 2, b, ...): step k takes the pair at k mod n, the
        first for the fake score's update and the second for the generator's.
    """

    teacher: Params
    captions: Caption | None = None


@struct.dataclass
class Draws:
    """The randomness of one update, b examples: all that is not a function of the state."""

    z: Images
    cond: Condition
    sigma: PerExample
    eps: Images
    dropout_keys: Array
    augment_keys: Array


Augment = Callable[[Images, Array], tuple[Images, Array | None]]  # images, keys -> images, labels


# x0, d_teacher, d_fake, sigma -> the loss of each example
GeneratorLoss = Callable[[Images, Images, Images, PerExample], PerExample]


def as_they_are(images: Images, keys: Array) -> tuple[Images, None]:
    """No augmentation."""
    return images, None


@dataclasses.dataclass(frozen=True)
class StepFns:
    """The functions and values that runs/setup.py chose; constant while training."""

    denoise: Denoise
    loss: GeneratorLoss
    distance: Distance  # d of SIM; of the health metrics for every method
    fake_score_weight: Callable[[PerExample], PerExample]
    denoise_teacher: Denoise  # guided, or the same
    denoise_fake: Denoise  # likewise, in the generator's update
    draw_fake_score: Callable[[Key, Caption | None], Draws]
    draw_generator: Callable[[Key, Caption | None], Draws]
    fake_score_tx: GradientTransformation
    generator_tx: GradientTransformation
    ema_decay: Callable[[Array], Scalar]  # step -> beta
    sigma_init: float
    augment: Augment = as_they_are  # of the fake score's training images
    fake_score_scale: float = 1.0
    accumulate: int = 1


def distill_step(
    state: TrainState, constants: Constants, key: Key, *, fns: StepFns
) -> tuple[TrainState, Metrics]:
    """One step on fresh draws for each update; `key` belongs to this step alone."""
    fake_score_draws, generator_draws = draw(state, constants, key, fns=fns)
    state, fake_score_metrics = fake_score_step(state, fake_score_draws, fns=fns)
    state, generator_metrics = generator_step(state, constants.teacher, generator_draws, fns=fns)
    beta = fns.ema_decay(state.step)
    ema = ema_update(state.generator_ema, state.generator, beta)
    metrics = fake_score_metrics | generator_metrics | {"generator/ema_beta": beta}
    return state.replace(generator_ema=ema, step=state.step + 1), metrics


def draw(state: TrainState, constants: Constants, key: Key, *, fns: StepFns) -> tuple[Draws, Draws]:
    """The draws of a step: the fake score's and the generator's."""
    fake_score_key, generator_key = jax.random.split(key)
    pair = (None, None)
    if constants.captions is not None:
        turn = jax.tree.map(lambda leaf: leaf[state.step % len(leaf)], constants.captions)
        pair = tuple(jax.tree.map(operator.itemgetter(update), turn) for update in (0, 1))
    return fns.draw_fake_score(fake_score_key, pair[0]), fns.draw_generator(generator_key, pair[1])


def fake_score_step(state: TrainState, draws: Draws, *, fns: StepFns) -> tuple[TrainState, Metrics]:
    """Moves the fake score towards the score of the generator's samples."""

    def loss_fn(fake_score: Params, draws: Draws):
        return fake_score_loss(fake_score, state.generator, draws, fns=fns), {}

    loss, _, grads = accumulated_grad(loss_fn, state.fake_score, draws, fns.accumulate)
    updates, opt = fns.fake_score_tx.update(grads, state.fake_score_opt, state.fake_score)
    fake_score = optax.apply_updates(state.fake_score, updates)
    metrics = {"fake_score/loss": loss} | health.gradients("fake_score", grads)
    return state.replace(fake_score=fake_score, fake_score_opt=opt), metrics


def generator_step(
    state: TrainState, teacher: Params, draws: Draws, *, fns: StepFns
) -> tuple[TrainState, Metrics]:
    """Moves the generator down the score divergence, with the fake score held fixed."""

    def loss_fn(generator: Params, draws: Draws):
        return generator_loss(generator, teacher, state.fake_score, draws, fns=fns)

    loss, metrics, grads = accumulated_grad(loss_fn, state.generator, draws, fns.accumulate)
    updates, opt = fns.generator_tx.update(grads, state.generator_opt, state.generator)
    generator = optax.apply_updates(state.generator, updates)
    metrics |= {"generator/loss": loss} | health.gradients("generator", grads)
    return state.replace(generator=generator, generator_opt=opt), metrics


def fake_score_loss(fake_score: Params, generator: Params, draws: Draws, *, fns: StepFns) -> Scalar:
    """E lambda(sigma) ||D_fake(x0 + sigma eps) - sg[x0]||^2, mean over examples."""
    x0 = jax.lax.stop_gradient(generate(generator, draws.z, draws.cond, fns=fns))
    x0, augment_labels = fns.augment(x0, draws.augment_keys)
    xt = noise.add_noise(x0, draws.sigma, draws.eps)
    denoised = fns.denoise(
        fake_score,
        xt,
        draws.sigma,
        draws.cond,
        augment_labels=augment_labels,
        dropout_keys=draws.dropout_keys,
    )
    loss = denoising.denoising_loss(x0, denoised, fns.fake_score_weight(draws.sigma))
    return fns.fake_score_scale * loss.mean()


def generator_loss(
    generator: Params, teacher: Params, fake_score: Params, draws: Draws, *, fns: StepFns
) -> tuple[Scalar, Metrics]:
    """The method's loss, mean over examples, and its health metrics.

    An example whose loss is not finite is left out of the sum (it still counts in the mean), so
    that one bad sample does not cost the step; this is the official SiD loop's rule.
    """
    x0 = generate(generator, draws.z, draws.cond, fns=fns, dropout_keys=draws.dropout_keys)
    xt = noise.add_noise(x0, draws.sigma, draws.eps)
    d_teacher = fns.denoise_teacher(teacher, xt, draws.sigma, draws.cond)
    d_fake = fns.denoise_fake(fake_score, xt, draws.sigma, draws.cond)
    finite = health.finite_examples(x0, d_teacher, d_fake)
    x0, d_teacher, d_fake = (
        jnp.where(finite[:, None, None, None], image, 0) for image in (x0, d_teacher, d_fake)
    )
    loss = jnp.where(finite, fns.loss(x0, d_teacher, d_fake, draws.sigma), 0)
    metrics = health.generator(x0, d_teacher, d_fake, draws.sigma, finite, distance=fns.distance)
    return loss.mean(), metrics


def generate(
    generator: Params,
    z: Images,
    cond: Condition,
    *,
    fns: StepFns,
    dropout_keys: Array | None = None,
) -> Images:
    """x0 = G(z): one evaluation of the denoiser at sigma_init."""
    sigma = jnp.full(z.shape[0], fns.sigma_init, z.dtype)
    return fns.denoise(generator, fns.sigma_init * z, sigma, cond, dropout_keys=dropout_keys)


def accumulated_grad(
    loss_fn: Callable[[Params, Draws], tuple[Scalar, Metrics]],
    params: Params,
    draws: Draws,
    slices: int,
) -> tuple[Scalar, Metrics, Params]:
    """Loss, metrics and gradient, means over `slices` equal parts of the batch in turn.

    Parts interleave (example i goes to part i mod slices), so that each device keeps its own rows.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def add_part(total, part):
        (loss, metrics), grads = grad_fn(params, part)
        return jax.tree.map(lambda a, b: a + b / slices, total, (loss, metrics, grads)), None

    if slices == 1:
        (loss, metrics), grads = grad_fn(params, draws)
        return loss, metrics, grads
    grad_fn = jax.jit(grad_fn)  # traced once, for its shapes and for the loop

    def cut(a: Array) -> Array:  # labels of an unconditional network are (batch, 0)
        return a.reshape(len(a) // slices, slices, *a.shape[1:]).swapaxes(0, 1)

    parts = jax.tree.map(cut, draws)
    first = jax.tree.map(lambda a: a[0], parts)
    (loss, metrics), grads = jax.eval_shape(grad_fn, params, first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (loss, metrics, grads))
    total, _ = jax.lax.scan(add_part, zeros, parts)
    return total
