"""Training state: parameters, optimizer states and EMA of both stages."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from simjax.train.optim import GradientTransformation
from simjax.typing import Params, Step


@struct.dataclass
class Role:
    """Parameters of a trained network and its optimizer state."""

    params: Params
    opt: Any


@struct.dataclass
class TrainState:
    """Distillation state: the trained networks by name, and the generator's EMA."""

    step: Step
    roles: dict[str, Role]
    ema: Params

    @property
    def generator(self) -> Params:
        """Parameters of the generator G."""
        return self.roles["generator"].params

    @property
    def fake_score(self) -> Params:
        """Parameters of the fake score, the denoiser of the generator's samples."""
        return self.roles["fake_score"].params

    def with_role(self, name: str, **fields: Any) -> "TrainState":
        """A copy of the state with a role's `params` or `opt` replaced."""
        return self.replace(roles=self.roles | {name: self.roles[name].replace(**fields)})

    def trees(self) -> dict[str, Any]:
        """Contents of a checkpoint by name, without the step."""
        params = {name: role.params for name, role in self.roles.items()}
        opts = {f"{name}_opt": role.opt for name, role in self.roles.items()}
        return params | {"generator_ema": self.ema} | opts

    def of_trees(self, step: Step, trees: Mapping[str, Any]) -> "TrainState":
        """The inverse of `trees`."""
        roles = {name: Role(trees[name], trees[f"{name}_opt"]) for name in self.roles}
        return TrainState(step, roles, trees["generator_ema"])


@struct.dataclass
class TeacherState:
    """State of a teacher's pretraining."""

    step: Step
    params: Params
    ema: Params
    opt: Any

    def trees(self) -> dict[str, Any]:
        """Contents of a checkpoint by name, without the step."""
        return {"params": self.params, "ema": self.ema, "opt": self.opt}

    def of_trees(self, step: Step, trees: Mapping[str, Any]) -> "TeacherState":
        """The inverse of `trees`."""
        return TeacherState(step, **trees)


def init_distillation(
    teacher: Params,
    generator: Params,
    *,
    fake_score_tx: GradientTransformation,
    generator_tx: GradientTransformation,
) -> TrainState:
    """Initial state: the fake score is a copy of the teacher.

    Args:
      generator: initial parameters, those of the teacher or of an earlier run's generator.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        roles={
            "fake_score": Role(_copy(teacher), fake_score_tx.init(teacher)),
            "generator": Role(_copy(generator), generator_tx.init(generator)),
        },
        ema=_copy(generator),
    )


def init_pretraining(params: Params, *, tx: GradientTransformation) -> TeacherState:
    """Initial state of pretraining; the EMA starts at `params`."""
    return TeacherState(
        step=jnp.zeros((), jnp.int32), params=_copy(params), ema=_copy(params), opt=tx.init(params)
    )


def _copy(params: Params) -> Params:
    """Copies the buffers: the state is donated, the teacher is reused."""
    return jax.tree.map(jnp.copy, params)
