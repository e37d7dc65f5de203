"""Compiler options of the training jit on CPUs, and compilers without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from simjax.runtime import cpu, sharding
from simjax.runtime.cpu import convolve
from simjax.train import compile as training

IMAGES = np.random.default_rng(0).standard_normal((2, 16, 16, 32)).astype(np.float32)


@struct.dataclass
class State:
    step: jax.Array
    kernel: jax.Array


def descend(state: State, images, key) -> tuple[State, dict]:
    def loss(kernel):
        y = convolve(images, kernel, ((1, 1), (1, 1)))
        return jnp.square(y - images).mean()

    value, grad = jax.value_and_grad(loss)(state.kernel)
    return State(state.step + 1, state.kernel - grad), {"loss": value}


def descend_many(state: State, images, key) -> tuple[State, dict]:
    """Twenty independent convolutions, each used once: all live at the same time, or one by one."""
    ways = [convolve(images, state.kernel + n, ((1, 1), (1, 1))) for n in range(20)]
    return state.replace(step=state.step + 1), {"loss": sum(jnp.sort(y).mean() for y in ways)}


def lowered(step=descend) -> jax.stages.Lowered:
    mesh = sharding.make_mesh()
    state = sharding.place(State(np.int32(0), np.full((3, 3, 32, 32), 0.01, np.float32)), mesh)
    images = sharding.place(IMAGES, mesh)
    call = training.compile_steps(step, mesh=mesh, steps_per_call=1)
    return call.lower(state, images, jax.random.key(0))


@pytest.fixture
def fresh_options():
    cpu.supports_options.cache_clear()
    yield
    cpu.supports_options.cache_clear()


def test_convolutions_on_cpus_are_not_compiled_by_ynnpack():
    """YNNPACK's would be in separate computations, called by a fusion."""
    text = lowered().compile().as_text()
    within = [part for part in text.split("\n\n") if " convolution(" in part]
    assert [part.split()[0] for part in within] == ["ENTRY"]


def test_a_compiler_without_the_options_compiles_without_them(fresh_options, monkeypatch):
    monkeypatch.setattr(cpu, "LARGE_CPU_OPTIONS", {"xla_cpu_of_another_version": "1"})
    monkeypatch.setattr(cpu, "LARGE", 0)
    assert " convolution(" in lowered().compile().as_text()


def test_a_large_program_has_less_temporary_memory(monkeypatch):
    def temporaries():
        return lowered(step=descend_many).compile().memory_analysis().temp_size_in_bytes

    side_by_side = temporaries()
    monkeypatch.setattr(cpu, "LARGE", 9 * 32**2)
    assert temporaries() < 0.5 * side_by_side


def test_a_step_can_be_traced_in_another_program():
    mesh = sharding.make_mesh()
    call = training.compile_steps(descend, mesh=mesh, steps_per_call=1)
    state = State(np.int32(0), np.full((3, 3, 32, 32), 0.01, np.float32))
    inner, _ = jax.jit(call)(state, IMAGES, jax.random.key(0))
    shapes, _ = jax.eval_shape(call, state, IMAGES, jax.random.key(0))
    outer, _ = call(sharding.place(state, mesh), sharding.place(IMAGES, mesh), jax.random.key(0))
    assert shapes.kernel.shape == (3, 3, 32, 32)
    np.testing.assert_allclose(inner.kernel, outer.kernel, rtol=1e-5, atol=1e-7)
