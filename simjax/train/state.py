"""What training carries from step to step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from simjax.train.optim import GradientTransformation
from simjax.typing import Params, Step


@struct.dataclass
class Role:
    """A network that is trained, and its optimizer's state."""

    params: Params
    opt: Any


@struct.dataclass
class TrainState:
    """Distillation: the trained networks by name, and the EMA of the generator."""

    step: Step
    roles: dict[str, Role]
    ema: Params

    @property
    def generator(self) -> Params:
        """Parameters of G."""
        return self.roles["generator"].params

    @property
    def fake_score(self) -> Params:
        """Parameters of the denoiser of G's samples."""
        return self.roles["fake_score"].params

    def with_role(self, name: str, **fields: Any) -> "TrainState":
        """The state with other params or opt of a role."""
        return self.replace(roles=self.roles | {name: self.roles[name].replace(**fields)})

    def trees(self) -> dict[str, Any]:
        """What a checkpoint holds, by name, beside the step."""
        params = {name: role.params for name, role in self.roles.items()}
        opts = {f"{name}_opt": role.opt for name, role in self.roles.items()}
        return params | {"generator_ema": self.ema} | opts

    def of_trees(self, step: Step, trees: Mapping[str, Any]) -> "TrainState":
        """The inverse of `trees`."""
        roles = {name: Role(trees[name], trees[f"{name}_opt"]) for name in self.roles}
        return TrainState(step, roles, trees["generator_ema"])


@struct.dataclass
class TeacherState:
    """Pretraining of a teacher."""

    step: Step
    params: Params
    ema: Params
    opt: Any

    def trees(self) -> dict[str, Any]:
        """What a checkpoint holds, by name, beside the step."""
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
    """The fake score as a copy of the teacher; so is the generator, or it goes on from its own."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        roles={
            "fake_score": Role(_copy(teacher), fake_score_tx.init(teacher)),
            "generator": Role(_copy(generator), generator_tx.init(generator)),
        },
        ema=_copy(generator),
    )


def init_pretraining(params: Params, *, tx: GradientTransformation) -> TeacherState:
    """A teacher about to learn; its EMA starts at the same parameters."""
    return TeacherState(
        step=jnp.zeros((), jnp.int32), params=_copy(params), ema=_copy(params), opt=tx.init(params)
    )


def _copy(params: Params) -> Params:
    """Distinct buffers: the state is donated to every step, and the teacher must outlive it."""
    return jax.tree.map(jnp.copy, params)
