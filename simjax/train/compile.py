"""The only training jit: donated state, whole steps scanned inside one call."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from simjax import sharding
from simjax.typing import Key, Metrics

Step = Callable[[Any, Any, Key], tuple[Any, Metrics]]
Call = Callable[[Any, Any, Key], tuple[Any, Metrics]]

# What XLA leaves to YNNPACK on CPUs: sums alone. Given the convolutions and products too, as is its
# default, the gradients of kernels take up to twice as long (README.md, "Speed").
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}

# A large program runs in an order that keeps few temporaries: a quarter less memory, and as fast
# (README.md, "Speed"). A small one gains more from operations that run side by side.
LARGE_CPU_OPTIONS = CPU_OPTIONS | {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
LARGE = 10**7  # numbers in a state; our choice: digits' holds 10^6 and loses, cifar10's 3 10^8


def compile_steps(step: Step, *, mesh: Mesh, steps_per_call: int) -> Call:
    """(state, constants, run key) -> state after `steps_per_call` steps, their mean metrics.

    Step n of a run uses fold_in(run key, n): no random state is carried or saved, and a resumed run
    repeats the interrupted one. The state passed in is donated: use the one returned.
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
    if sharding.on_cpus(mesh) and _accepted():
        return _with_cpu_options(split, compiled)
    return compiled


def _with_cpu_options(function: Callable, plain: Call) -> Call:
    """`plain`, compiled with the options of its size unless it is part of another program."""
    jit = functools.partial(jax.jit, function, donate_argnums=0)
    small, large = jit(compiler_options=CPU_OPTIONS), jit(compiler_options=LARGE_CPU_OPTIONS)

    def alone(state):
        return large if sum(leaf.size for leaf in jax.tree.leaves(state)) >= LARGE else small

    @functools.wraps(plain)
    def call(state, *others):
        leaves = jax.tree.leaves((state, *others))
        within = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (plain if within else alone(state))(state, *others)

    call.lower = lambda state, *others: alone(state).lower(state, *others)
    return call


@functools.cache
def _accepted() -> bool:
    """Whether this version of XLA knows the options: it calls one of them experimental."""
    try:
        jax.jit(lambda: 0, compiler_options=LARGE_CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
