"""Updates: whose parameters move, down which loss, by which optimizer, when. A step is a list.

train/step.py has the losses of score distillation, runs/setup.py makes the list.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence

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
    """

    teacher: Params
    captions: Caption | None = None


@struct.dataclass
class Draws:
    """The randomness of one update, b examples: all that is not a function of the state.

    Args:
      calls: k of a generator of several (models/generator.py), one scalar for all examples.
      noise_keys: of the noise of its calls, one an example.
    """

    z: Images
    cond: Condition
    sigma: PerExample
    eps: Images
    dropout_keys: Array
    augment_keys: Array
    calls: Array | None = None
    noise_keys: Array | None = None


# parameters of the role, state, constants, draws -> the mean loss and metrics
Loss = Callable[[Params, TrainState, Constants, Draws], tuple[Scalar, Metrics]]
Then = Callable[[TrainState], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Update:
    """One update of a step: which network moves down which loss, and when.

    Args:
      role: the network, by its name in TrainState.roles.
      draw: its draws, from its own key, its captions and a key that all updates of a step share.
      accumulate: slices of a batch.
      start: steps of a run before the first update.
      every: steps from one to the next.
      then: what follows each, as an EMA.
    """

    role: str
    loss: Loss
    draw: Callable[[Key, Caption | None, Key], Draws]
    tx: GradientTransformation
    accumulate: int = 1
    start: int = 0
    every: int = 1
    then: Then = lambda state: (state, {})


def draws(
    state: TrainState, constants: Constants, key: Key, *, updates: Sequence[Update]
) -> list[Draws]:
    """The draws of a step, one for each update."""
    turn = jax.tree.map(lambda leaf: leaf[state.step % len(leaf)], constants.captions)
    keys, shared = jax.random.split(key, len(updates)), jax.random.fold_in(key, len(updates))
    return [
        update.draw(keys[number], jax.tree.map(operator.itemgetter(number), turn), shared)
        for number, update in enumerate(updates)
    ]


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
    loss, metrics, grads = accumulated_grad(loss_fn, role.params, draws, update.accumulate)
    moves, opt = update.tx.update(grads, role.opt, role.params)
    state = state.with_role(update.role, params=optax.apply_updates(role.params, moves), opt=opt)
    metrics |= {f"{update.role}/loss": loss} | health.gradients(update.role, grads)
    state, more = update.then(state)
    return state, metrics | more
