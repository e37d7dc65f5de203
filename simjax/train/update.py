"""Updates of a training step: each a network, loss, optimizer and schedule.

The losses of score distillation are in train/step.py; runs/setup.py builds the list.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import struct

from simjax.train import health
from simjax.train.accumulate import accumulated_grad
from simjax.train.optim import GradientTransformation
from simjax.train.state import TrainState
from simjax.typing import (
    Array,
    Caption,
    Condition,
    Images,
    Key,
    Metrics,
    Params,
    PerExample,
    Scalar,
)


@struct.dataclass
class Constants:
    """Inputs of every step besides its state.

    Args:
      captions: for text-to-image runs, leaves (n, updates, b, ...): update i of step k uses
        [k mod n, i].
      real: real images, for the methods that train on them.
    """

    teacher: Params
    captions: Caption | None = None
    real: "AllImages | ImageRows | None" = None


@struct.dataclass
class AllImages:
    """A small set of real images, replicated on every device.

    Args:
      images: uint8, or float32 in [-1, 1].
      labels: class numbers (n,), None for unlabelled images.
    """

    images: Array
    labels: Array | None


@struct.dataclass
class ImageRows:
    """Real images read for one call.

    Leaves have shape (n, updates that read them, b, ...).
    """

    images: Array
    labels: Array | None


@struct.dataclass
class RealDraws:
    """The real images of an update, with their dropout and augmentation keys.

    Args:
      images: x', data units; they share noise, sigma and condition with the generated ones.
    """

    images: Images
    dropout_keys: Array
    augment_keys: Array


@struct.dataclass
class Whole:
    """Full-batch statistics that the losses of its microbatches share.

    Args:
      weight: mean of lambda(sigma).
      inverse_omega: mean of 1 / omega.
      divergence: weights of an f-divergence, one per example.
    """

    weight: Scalar | None = None
    inverse_omega: Scalar | None = None
    divergence: PerExample | None = None


@struct.dataclass
class Draws:
    """Random draws of one update for b examples: noise, conditions and keys.

    Args:
      calls: trained call k of a K-step generator (models/generator.py), a scalar for the batch.
      noise_keys: keys of the noise between generator calls, one per example.
      real: real images, for updates that read them.
      whole: full-batch statistics, when the draws are a microbatch.
    """

    z: Images
    cond: Condition
    sigma: PerExample
    eps: Images
    dropout_keys: Array
    augment_keys: Array
    calls: Array | None = None
    noise_keys: Array | None = None
    real: RealDraws | None = None
    whole: Whole | None = None


# parameters of the role, state, constants, draws -> mean loss, metrics
Loss = Callable[[Params, TrainState, Constants, Draws], tuple[Scalar, Metrics]]
# the same arguments for a full batch -> its draws with full-batch statistics
Before = Callable[[Params, TrainState, Constants, Draws], Draws]
Then = Callable[[TrainState], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Update:
    """One update of a step: network, loss, optimizer and schedule.

    Args:
      role: name of the updated network in TrainState.roles.
      draw: (own key, own captions, key shared by all updates of the step) -> draws; with
        reads_real the real images are the fourth argument.
      accumulate: number of microbatches.
      before: adds full-batch statistics to the draws; called only with several microbatches.
      start: step of the run with the first update.
      every: steps between updates.
      then: callback on the state after each update, such as an EMA.
    """

    role: str
    loss: Loss
    draw: Callable[..., Draws]
    tx: GradientTransformation
    accumulate: int = 1
    start: int = 0
    every: int = 1
    then: Then = lambda state: (state, {})
    before: Before | None = None
    reads_real: bool = False


def draws(
    state: TrainState, constants: Constants, key: Key, *, updates: Sequence[Update]
) -> list[Draws]:
    """The draws of one step, a `Draws` per update."""
    turn = jax.tree.map(lambda leaf: leaf[state.step % len(leaf)], constants.captions)
    keys, shared = jax.random.split(key, len(updates)), jax.random.fold_in(key, len(updates))
    real = _real(state, constants, sum(update.reads_real for update in updates))
    return [
        update.draw(
            keys[number],
            jax.tree.map(operator.itemgetter(number), turn),
            shared,
            *([next(real)] if update.reads_real else []),
        )
        for number, update in enumerate(updates)
    ]


def _real(
    state: TrainState, constants: Constants, reads: int
) -> Iterator[AllImages | ImageRows | None]:
    """The source of real images for each update that reads them."""
    real = constants.real
    if not isinstance(real, ImageRows):
        return iter([real] * reads)
    turn = jax.tree.map(lambda leaf: leaf[state.step % len(leaf)], real)
    return (jax.tree.map(operator.itemgetter(number), turn) for number in range(reads))


def apply_if_due(
    update: Update, state: TrainState, constants: Constants, draws: Draws
) -> tuple[TrainState, Metrics]:
    """Applies the update when it is due, else returns the state unchanged.

    Updates with a schedule add the metric ROLE/updates, 1 or 0; metrics of a skipped one are zeros.
    """
    if not update.start and update.every == 1:
        return apply(update, state, constants, draws)

    def idle(state: TrainState) -> tuple[TrainState, Metrics]:
        _, like = jax.eval_shape(lambda s: apply(update, s, constants, draws), state)
        return state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    past = state.step - update.start
    due = (past >= 0) & (past % update.every == 0)
    state, metrics = jax.lax.cond(due, lambda s: apply(update, s, constants, draws), idle, state)
    return state, metrics | {f"{update.role}/updates": due.astype(jnp.float32)}


def apply(
    update: Update, state: TrainState, constants: Constants, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One optimizer update of one network, all others held fixed."""

    def loss_fn(params: Params, part: Draws) -> tuple[Scalar, Metrics]:
        return update.loss(params, state, constants, part)

    role = state.roles[update.role]
    if update.before is not None and update.accumulate > 1:
        draws = update.before(role.params, state, constants, draws)
    loss, metrics, grads = accumulated_grad(loss_fn, role.params, draws, update.accumulate)
    moves, opt = update.tx.update(grads, role.opt, role.params)
    state = state.with_role(update.role, params=optax.apply_updates(role.params, moves), opt=opt)
    metrics |= {f"{update.role}/loss": loss} | health.gradients(update.role, grads)
    state, more = update.then(state)
    return state, metrics | more
