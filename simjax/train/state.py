"""What training carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from simjax.train.optim import GradientTransformation
from simjax.typing import Params, Step


@struct.dataclass
class TrainState:
    """Distillation: three parameter trees that start as the teacher, two optimizer states."""

    step: Step
    fake_score: Params
    generator: Params
    generator_ema: Params
    fake_score_opt: Any
    generator_opt: Any


@struct.dataclass
class TeacherState:
    """Pretraining of a teacher."""

    step: Step
    params: Params
    ema: Params
    opt: Any


def init_distillation(
    teacher: Params,
    generator: Params,
    *,
    fake_score_tx: GradientTransformation,
    generator_tx: GradientTransformation,
) -> TrainState:
    """The fake score as a copy of the teacher; so is the generator, or it goes on from its own."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        fake_score=_copy(teacher),
        generator=_copy(generator),
        generator_ema=_copy(generator),
        fake_score_opt=fake_score_tx.init(teacher),
        generator_opt=generator_tx.init(generator),
    )


def init_pretraining(params: Params, *, tx: GradientTransformation) -> TeacherState:
    """A teacher about to learn; its EMA starts at the same parameters."""
    return TeacherState(
        step=jnp.zeros((), jnp.int32), params=_copy(params), ema=_copy(params), opt=tx.init(params)
    )


def _copy(params: Params) -> Params:
    """Distinct buffers: the state is donated to every step, and the teacher must outlive it."""
    return jax.tree.map(jnp.copy, params)
