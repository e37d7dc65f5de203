"""The only training jit: donated state, several steps scanned in one call."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from simjax.runtime import cpu, sharding
from simjax.typing import Key, Metrics, Params

Step = Callable[[Any, Any, Key], tuple[Any, Metrics]]
Call = Callable[[Any, Any, Key], tuple[Any, Metrics]]


@dataclasses.dataclass(frozen=True)
class Training:
    """The compiled training call and the constructor of its initial state.

    Args:
      call: (state, constants, run key) -> (state, metrics); compiled at its first use.
      init: parameters -> the initial state (train/state.py), sharded over the mesh.
    """

    call: Call
    init: Callable[..., Any]
    mesh: Mesh
    steps: int
    steps_per_call: int
    batch: int


def training(
    step: Step,
    init: Callable[..., Any],
    *,
    mesh: Mesh,
    steps: int,
    steps_per_call: int,
    batch: int,
) -> Training:
    """Compiles `step`, and shards the initial state that `init` returns."""

    def first_state(*params: Params) -> Any:
        where = sharding.by_rules(jax.eval_shape(init, *params), mesh)
        return jax.jit(init, out_shardings=where)(*params)

    return Training(
        call=compile_steps(step, mesh=mesh, steps_per_call=steps_per_call),
        init=first_state,
        mesh=mesh,
        steps=steps,
        steps_per_call=steps_per_call,
        batch=batch,
    )


def compile_steps(step: Step, *, mesh: Mesh, steps_per_call: int) -> Call:
    """Jits `steps_per_call` training steps as one call with a donated state.

    (state, constants, run key) -> (state after those steps, their mean metrics). Step n of a run
    uses fold_in(run key, n): no random state is carried or saved, and a resumed run repeats the
    interrupted one. The state passed in is donated: use the returned one.
    """

    def one(state, constants, run_key):
        return step(state, constants, jax.random.fold_in(run_key, state.step))

    def call(state, constants, run_key):
        if steps_per_call == 1:
            return one(state, constants, run_key)
        state, metrics = jax.lax.scan(
            lambda state, _: one(state, constants, run_key), state, length=steps_per_call
        )
        return state, jax.tree.map(lambda m: m.mean(0), metrics)

    def split(state, constants, run_key):
        state, metrics = call(state, constants, run_key)
        where = sharding.by_rules(state, mesh)
        return jax.lax.with_sharding_constraint(state, where), metrics

    compiled = jax.jit(split, donate_argnums=0)
    if sharding.on_cpus(mesh) and cpu.supports_options():
        return cpu.with_options(split, compiled)
    return compiled
