"""Costs read from compiled programs: shortened libtpu 0.0.42 HLO, and a CPU program."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from simjax.perf import costs

# An all-gather, then a scan of 8 iterations with an all-reduce over 8 devices. The fusion adds.
LOOP = """\
HloModule jit_g, is_scheduled=true, num_partitions=8

%fused_computation.1.clone.1 (param_0: f32[1024], param_1: f32[1024]) -> f32[1024] {
  %constant.5 = s32[]{:T(128)} constant(3)
  ROOT %add.5 = f32[1024]{0:T(1024)} add(%param_0, %param_1)
}

%wide.region_0.2_spmd (wide.param.0: (s32[], f32[1024])) -> (s32[], f32[1024]) {
  %all-reduce.3 = f32[1024]{0:T(1024)} all-reduce(%add_reduce_fusion.2), channel_id=1, \
replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, to_apply=%region_1.1.clone
  %select_add_fusion.2 = f32[1024]{0:T(1024)} fusion(%all-reduce.3), kind=kLoop, \
calls=%fused_computation.1.clone.1
  ROOT %tuple.20 = (s32[]{:T(128)}, f32[1024]{0:T(1024)}) tuple(%add.33, %select_add_fusion.2)
}

%region_1.1.clone (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b)
}

%wide.region_2.3_spmd (wide.param.1: (s32[], f32[1024])) -> pred[] {
  %constant.12.clone.1 = s32[]{:T(128)} constant(8)
  ROOT %lt.4 = pred[]{:T(512)} compare(%get-tuple-element.57, %constant.12.clone.1), direction=LT
}

ENTRY %main.4_spmd (param.2: f32[128,1024], param.3: f32[1024,256]) -> f32[1024] {
  %constant.13.clone = s32[]{:T(128)} constant(0)
  %all-gather.2 = f32[1024,1024]{1,0:T(8,128)} all-gather(%param.3), channel_id=3, dimensions={1}
  %while.10 = (s32[]{:T(128)}, f32[1024]{0:T(1024)}) while(%tuple.18), \
condition=%wide.region_2.3_spmd, body=%wide.region_0.2_spmd, metadata={op_name="jit(g)/while"}
  ROOT %get-tuple-element.46 = f32[1024]{0:T(1024)} get-tuple-element(%while.10), index=1
}
"""

# One all-gather overlapped with two matmuls: it appears in three fusions.
OVERLAPPED = """\
HloModule jit_split, is_scheduled=true

%async_collective_fusion.1 (param_0.1: f32[3,3,16,2]) -> (f32[3,3,16,8], u32[]) {
  %all-gather.633 = f32[3,3,16,8]{2,1,0,3:T(4,128)} all-gather(%param_0.1), channel_id=129, \
dimensions={3}
  ROOT %custom-call.35 = (f32[3,3,16,8]{2,1,0,3:T(4,128)S(1)}, u32[]{:S(2)}) \
custom-call(%all-gather.633), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (param_0.2: f32[3,3,16,2]) -> (f32[8,2], f32[3,3,16,8]) {
  %all-gather.635 = f32[3,3,16,8]{2,1,0,3:T(4,128)S(1)} all-gather(%param_0.2), channel_id=129, \
dimensions={3}
  ROOT %tuple.1216 = (f32[8,2]{1,0:T(8,128)}, f32[3,3,16,8]{2,1,0,3}) tuple(%conv, %all-gather.635)
}

%async_collective_fusion.3 (param_0.3: f32[3,3,16,2]) -> (f32[8,2], f32[3,3,16,8]) {
  %all-gather.637 = f32[3,3,16,8]{2,1,0,3:T(4,128)S(1)} all-gather(%param_0.3), channel_id=129, \
dimensions={3}
  ROOT %tuple.1218 = (f32[8,2]{1,0:T(8,128)}, f32[3,3,16,8]{2,1,0,3}) tuple(%conv, %all-gather.637)
}

ENTRY %main (p: f32[3,3,16,2]) -> f32[8,2] {
  %f.1 = (f32[3,3,16,8], u32[]) fusion(%p), kind=kCustom, calls=%async_collective_fusion.1
  %f.2 = (f32[8,2], f32[3,3,16,8]) fusion(%p), kind=kOutput, calls=%async_collective_fusion.2
  ROOT %f.3 = (f32[8,2], f32[3,3,16,8]) fusion(%p), kind=kOutput, calls=%async_collective_fusion.3
}
"""


def entry(*lines: str) -> str:
    body = "\n".join(f"  %x.{i} = {line}" for i, line in enumerate(lines))
    return f"HloModule m\n\nENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


def test_collectives_in_a_loop_count_once_per_iteration():
    assert costs.collective_traffic(LOOP) == {
        "all-gather": {"count": 1, "bytes": 4 * 1024 * 1024},
        "all-reduce": {"count": 8, "bytes": 8 * 4 * 1024},
    }


def test_a_loop_of_unknown_length_counts_once():
    second = "  %constant.99 = s32[] constant(5)\n  ROOT %lt.4"
    text = LOOP.replace("  ROOT %lt.4", second)
    assert costs.collective_traffic(text)["all-reduce"]["count"] == 1


def test_an_overlapped_collective_counts_once():
    assert costs.collective_traffic(OVERLAPPED) == {
        "all-gather": {"count": 1, "bytes": 4 * 3 * 3 * 16 * 8}
    }


@pytest.mark.parametrize(
    ("line", "kind", "size"),
    [
        ("bf16[8,4]{1,0:T(8,128)(2,1)} all-reduce(%a), channel_id=1", "all-reduce", 64),
        ("(f32[2]{0}, /*index=1*/bf16[3]{0}) all-reduce(%a, %b), channel_id=1", "all-reduce", 14),
        ("(f32[2]{0}, f32[3]{0}) all-reduce-start(%a, %b), channel_id=1", "all-reduce", 20),
        ("(f32[2]{0}, f32[8]{0}) all-gather-start(%a), channel_id=1", "all-gather", 32),
        ("((f32[1], f32[2]), (f32[4], f32[8])) all-gather-start(%a, %b)", "all-gather", 48),
        ("f32[2]{0} reduce-scatter(%a), channel_id=1", "reduce-scatter", 8),
        ("(s8[4], s8[4], u32[], u32[]) collective-permute-start(%a)", "collective-permute", 4),
        ("(pred[4]{0}, pred[4]{0}) all-to-all(%a, %b), channel_id=1", "all-to-all", 8),
    ],
)
def test_bytes_are_those_of_the_results(line, kind, size):
    assert costs.collective_traffic(entry(line)) == {kind: {"count": 1, "bytes": size}}


def test_the_done_of_an_asynchronous_collective_is_not_counted_again():
    lines = [
        "(f32[2]{0}, f32[8]{0}) all-gather-start(%a), channel_id=1",
        "f32[8]{0} all-gather-done(%x.0)",
        "f32[8]{0} get-tuple-element(%all-gather.3), index=0",
    ]
    assert costs.collective_traffic(entry(*lines))["all-gather"]["count"] == 1


def test_two_channels_are_two_collectives():
    lines = [f"f32[2]{{0}} all-reduce(%a), channel_id={channel}" for channel in (1, 2)]
    assert costs.collective_traffic(entry(*lines)) == {"all-reduce": {"count": 2, "bytes": 16}}


def test_no_collectives():
    assert costs.collective_traffic(entry("f32[2] add(%a, %b)")) == {}


@pytest.fixture(scope="module")
def program():
    """(x, w) -> (2 x + sum(w w), w) with x donated; arguments of 64 and 256 bytes."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    x, w = (jax.ShapeDtypeStruct(shape, np.float32, sharding=here) for shape in ((16,), (8, 8)))
    function = jax.jit(lambda x, w: (2 * x + (w @ w).sum(), w), donate_argnums=0)
    return function.lower(x, w).compile()


def test_memory_excludes_outputs_in_donated_buffers(program):
    found = costs.memory(program)
    assert found["arguments"] == 64 + 256
    assert 256 <= found["outputs"] < 256 + 64  # w and a table of pointers
    parts = ("arguments", "outputs", "temporaries", "code")
    assert found["total"] == sum(found[part] for part in parts)


def test_costs_are_those_of_the_compiler(program):
    flops, moved = costs.cost(program)
    assert flops >= 2 * 8**3
    assert moved >= 64 + 256


def test_held_bytes_are_those_of_the_shards():
    mesh = Mesh(
        np.array(jax.devices() * 8)[:8].reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2
    )
    split = NamedSharding(mesh, PartitionSpec("b", None))
    whole = NamedSharding(mesh, PartitionSpec())
    tree = {
        "split": jax.ShapeDtypeStruct((8, 3), np.float32, sharding=split),
        "whole": jax.ShapeDtypeStruct((5,), jax.numpy.bfloat16, sharding=whole),
    }
    assert costs.held(tree) == 2 * 3 * 4 + 5 * 2


BRIEF = (  # libtpu 0.0.42
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(20.39G) exceeds available HBM (15.75G)."
)
FULL = """\
RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of memory \
in memory space hbm. Used 63.80G of 30.75G hbm. Exceeded hbm capacity by 33.05G.

Total hbm usage >= 65.05G:
    reserved          1.25G
    program          63.80G

  Largest program allocations in hbm:

  1. Size: 2.00G
     Operator: op_name="jit(step)/transformer/dot_general" source_file="model.py" source_line=9
     Shape: f32[32,4096,4096]{1,2,0:T(8,128)}
     Unpadded size: 2.00G
     Allocation type: HLO temp
     ==========================

  2. Size: 512.00M
     Shape: bf16[32,4096,2048]{1,2,0:T(8,128)}
     Unpadded size: 512.00M
"""


def test_out_of_memory_message_gives_needed_and_available_bytes():
    found = costs.exhausted(BRIEF)
    assert found["needed"] == pytest.approx(20.39 * 2**30)
    assert found["available"] == 15.75 * 2**30
    assert found["reason"].startswith("Ran out of memory on HBM")
    assert found["largest"] == []


def test_out_of_memory_message_gives_the_largest_allocations():
    found = costs.exhausted(FULL)
    assert (found["needed"], found["available"]) == (63.8 * 2**30, 30.75 * 2**30)
    assert found["largest"] == [
        "2.00G f32[32,4096,4096]{1,2,0:T(8,128)} jit(step)/transformer/dot_general",
        "512.00M bf16[32,4096,2048]{1,2,0:T(8,128)} ",
    ]


def test_other_errors_are_not_out_of_memory():
    assert costs.exhausted("INTERNAL: the compiler has a bug; 2.00G") is None
    assert costs.exhausted("RESOURCE_EXHAUSTED: too many open files") is None
