"""Updates: whose parameters move, down which loss, by which optimizer, when. A step is a list.

train/step.py has the losses of score distillation, runs/setup.py makes the list.
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
    """What every step is given beside its state.

    Args:
      captions: of text-to-image runs, leaves (n, updates, b, ...): update i of step k takes
        [k mod n, i].
      real: real images, of the methods that learn from them.
    """

    teacher: Params
    captions: Caption | None = None
    real: "AllImages | ImageRows | None" = None


@struct.dataclass
class AllImages:
    """A small set of real images, whole on every device: uint8, or float32 in [-1, 1].

    Args:
      labels: class numbers (n,), None of images without.
    """

    images: Array
    labels: Array | None


@struct.dataclass
class ImageRows:
    """Real images that were read for a call, leaves (n, updates that read them, b, ...)."""

    images: Array
    labels: Array | None


@struct.dataclass
class RealDraws:
    """The real images of an update, and their own randomness.

    Args:
      images: x', data units; they have the noise and the condition of the generated ones.
    """

    images: Images
    dropout_keys: Array
    augment_keys: Array


@struct.dataclass
class Whole:
    """Statistics of a whole batch that the losses of its slices share.

    Args:
      weight: mean of lambda(sigma).
      inverse_omega: mean of 1 / omega.
      divergence: weights of an f-divergence, one an example.
    """

    weight: Scalar | None = None
    inverse_omega: Scalar | None = None
    divergence: PerExample | None = None


@struct.dataclass
class Draws:
    """The randomness of one update, b examples: all that is not a function of the state.

    Args:
      calls: k of a generator of several (models/generator.py), one scalar for all examples.
      noise_keys: of the noise of its calls, one an example.
      real: real images, of updates that read them.
      whole: what a slice of a batch must know of all of it.
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


# parameters of the role, state, constants, draws -> the mean loss and metrics
Loss = Callable[[Params, TrainState, Constants, Draws], tuple[Scalar, Metrics]]
# the same, of a whole batch -> the draws with what its slices share
Before = Callable[[Params, TrainState, Constants, Draws], Draws]
Then = Callable[[TrainState], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Update:
    """One update of a step: which network moves down which loss, and when.

    Args:
      role: the network, by its name in TrainState.roles.
      draw: its draws, from its own key, its captions and a key that all updates of a step share;
        then from its real images, if it reads_real.
      accumulate: slices of a batch.
      before: what the slices of a batch must know of all of it, if there are several.
      start: steps of a run before the first update.
      every: steps from one to the next.
      then: what follows each, as an EMA.
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
    """The draws of a step, one for each update."""
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
    """What each update that reads real images draws them from."""
    real = constants.real
    if not isinstance(real, ImageRows):
        return iter([real] * reads)
    turn = jax.tree.map(lambda leaf: leaf[state.step % len(leaf)], real)
    return (jax.tree.map(operator.itemgetter(number), turn) for number in range(reads))


def apply_if_due(
    update: Update, state: TrainState, constants: Constants, draws: Draws
) -> tuple[TrainState, Metrics]:
    """The update, or the state as it is and zeros; then ROLE/updates tells 1 or 0."""
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
    """Moves one network down the gradient of its loss, all others held fixed."""

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
