"""`simjax aot` without libtpu: chips, rooflines, programs, messages, the table.

tests/with_libtpu compiles for TPUs.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest
from absl import flags
from jax.sharding import Mesh

from simjax import config
from simjax.commands import aot
from simjax.errors import ConfigError
from simjax.models import build, port
from simjax.perf import chips, costs, footprint, programs, tables
from simjax.runtime import sharding, storage
from tests.helpers.command import refused as refused_command
from tests.helpers.configs import DIRECTORY, load, small

GIB = 2**30


def result(**changes) -> dict:
    """A footprint with round numbers for a 2 x 4 slice."""
    made = {
        "command": "python -m simjax aot --config=configs/cifar10.py --topology=v5e:2x4",
        "config": "cifar10",
        "topology": "v5e:2x4",
        "program": "train",
        "devices": 8,
        "devices_per_chip": 1,
        "mesh": {"data": 2, "fsdp": 4},
        "batch": 256,
        "accumulate": 1,
        "remat": "none",
        "compute_dtype": "bfloat16",
        "teacher_dtype": "float32",
        "arguments": {"teacher": GIB / 4, "generator": GIB / 2},
        "effort": -1.0,
        "memory": {
            "arguments": GIB,
            "outputs": 0,
            "temporaries": 2 * GIB,
            "code": GIB / 4,
            "total": 3.25 * GIB,
            "peak": 3 * GIB,
            "available": 16.0 * GIB,
        },
        "costs": {
            "flops": 14e12,
            "bytes": 90e9,
            "flops_per_image": 440e9,
            "flops_per_forward": 39.5e9,
            "forwards": 11,
            "over_forwards": 1.0127,
            "passes": 1,
            "roofline_seconds": 0.110,
            "roofline_bound": "bytes",
            "images_per_second_per_chip": 291.2,
        },
        "collectives": {"all-reduce": {"count": 5, "bytes": 224e6}},
        "seconds": {"lower": 9.0, "compile": 146.4, "forward": 12.0},
        "versions": {"simjax": "0.1.0", "jax": "0.10.2", "libtpu": "0.0.42.1"},
    }
    return made | changes


def test_a_roofline_is_the_slower_of_flops_and_bytes():
    v5e = chips.CHIPS["v5e"]  # 197e12 FLOP/s, 819e9 bytes/s
    assert chips.roofline(197e12, 0.0, v5e, passes=1) == (1.0, "flops")
    assert chips.roofline(197e12, 3 * 819e9, v5e, passes=1) == (3.0, "bytes")
    assert chips.roofline(197e12, 3 * 819e9, v5e, passes=6) == (6.0, "flops")


def test_each_of_two_devices_on_a_chip_has_half_its_rates():
    assert chips.roofline(2307e12, 7380e9, chips.CHIPS["tpu7x"], passes=1)[0] == 2.0


def test_float32_takes_the_passes_of_the_highest_precision():
    # The denoiser sets Precision.HIGHEST; JAX's docstring gives its number of bfloat16 passes.
    assert chips.PASSES.keys() == build.DTYPES.keys()
    said = jax.lax.Precision.__doc__.split("HIGHEST:")[1]
    assert f"{chips.PASSES['float32']}\n    bfloat16" in said


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:", "v5litepod-8", ""])
def test_an_unknown_topology_raises_with_examples(topology):
    with pytest.raises(ConfigError) as error:
        chips.prepare(topology)
    assert f"--topology={topology} is not known" in str(error.value)
    for example in ("v4:2x2x1", "v5e:2x4", "v5p:2x2x2", "v6e:4x4", "tpu7x:2x2x1"):
        assert example in str(error.value)


def test_without_libtpu_the_message_has_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install -e ".\[tpu\]"'):
        chips.prepare("v5e:2x4")


def test_variables_that_are_set_keep_their_value(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name in chips.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_MIN_LOG_LEVEL", "0")
    chips.prepare("v5e:2x4")
    assert {name: os.environ[name] for name in chips.ENVIRONMENT} == chips.ENVIRONMENT | {
        "TPU_MIN_LOG_LEVEL": "0"
    }


@pytest.fixture(scope="module")
def plan() -> config.Config:
    options = small()
    options.batch, options.accumulate, options.evaluation.batch = 16, 2, 3
    return port.plan(options)


def one_device() -> Mesh:
    return sharding.make_mesh(devices=jax.devices()[:1])


def on_cpu(options: config.Config, program: str) -> programs.Program:
    return programs.PROGRAMS[program](options, *build.blank(options), one_device())


def test_the_flag_offers_every_program():
    assert flags.FLAGS[aot.PROGRAM.name].parser.enum_values == list(programs.PROGRAMS)


def test_train_is_the_call_of_a_run_with_its_state(plan):
    made = on_cpu(plan, "train")
    parameters = 4 * build.count(made.trees["teacher"])
    sizes = {name: costs.held(tree) for name, tree in made.trees.items()}
    assert sizes.keys() == {
        "teacher",
        "generator",
        "generator_ema",
        "fake_score",
        "generator_opt",
        "fake_score_opt",
    }
    assert all(size == pytest.approx(parameters, abs=16) for size in sizes.values())  # beta1 is 0
    assert (made.batch, made.iterations, made.rows, made.forwards) == (16, 2, 8, 11)
    state, metrics = jax.eval_shape(made.function, *made.arguments)
    assert jax.tree.map(lambda leaf: leaf.shape, state) == jax.tree.map(
        lambda leaf: leaf.shape, made.arguments[0]
    )
    assert "generator/loss" in metrics


@pytest.mark.parametrize(("program", "forwards"), [("fake_score", 4), ("generator", 7)])
def test_a_single_update_keeps_the_state_of_a_run(plan, program, forwards):
    made, whole = on_cpu(plan, program), on_cpu(plan, "train")
    assert made.arguments == whole.arguments
    assert (made.batch, made.iterations, made.rows, made.forwards) == (16, 2, 8, forwards)
    assert ("teacher" in made.trees) == (program == "generator")
    state, metrics = jax.eval_shape(made.function, *made.arguments)
    assert jax.tree.structure(state) == jax.tree.structure(made.arguments[0])
    losses = {"fake_score/loss", "generator/loss"}
    assert losses & metrics.keys() == {f"{program}/loss"}


def test_samplers_have_the_batch_of_evaluation(plan):
    one, many = on_cpu(plan, "sample"), on_cpu(plan, "teacher_sample")
    assert (one.batch, one.iterations, one.forwards) == (3, 1, 1)
    assert (many.batch, many.iterations, many.forwards) == (3, 35, 35)  # 18 steps
    for made in (one, many):
        out = jax.eval_shape(made.function, *made.arguments)
        assert out.shape == (3, *build.image_shape(plan))


def test_costs_count_every_iteration_of_the_loop():
    # Two matmuls of 64 x 64 in two iterations; 5 images on each of 2 devices.
    def function(w):
        return jax.lax.scan(lambda x, _: (x @ w, None), w, length=2)[0]

    w = jax.ShapeDtypeStruct((64, 64), "float32")
    binary, _ = footprint._compile(jax.jit(function), (w,), effort=0.0)
    made = dataclasses.replace(on_cpu(small(), "train"), batch=10, iterations=2)
    chip, what = chips.CHIPS["tpu7x"], {"devices": 2, "compute_dtype": "float32"}
    costs = footprint._costs(binary, made, 1000.0, chip, what)
    assert costs["flops"] == pytest.approx(2 * 2 * 64**3, rel=0.01)
    assert costs["flops_per_image"] == costs["flops"] / 5
    assert costs["over_forwards"] == pytest.approx(costs["flops"] / 5 / 11000)
    assert costs["passes"] == 6
    seconds = 2 * max(6 * costs["flops"] / chip.flops, costs["bytes"] / chip.bandwidth)
    assert costs["roofline_seconds"] == pytest.approx(seconds)
    assert costs["images_per_second_per_chip"] == pytest.approx(10 / seconds)


def test_a_forward_is_per_image(plan):
    made = programs.PROGRAMS["sample"](plan, *build.blank(plan), one_device())
    flops = [footprint._forward(made, jax.devices()[0], rows, effort=0.0)[0] for rows in (2, 4)]
    assert flops[0] == pytest.approx(flops[1], rel=0.02)


def test_networks_with_fixed_constants_need_no_file():
    options = small()
    options.network.embedding = "fourier"
    options = port.plan(options)
    network = build.blank(options)
    function, arguments = programs.forward(options, *network, jax.devices()[0], rows=1)
    out = jax.eval_shape(function, *arguments)
    assert out.shape == (1, *build.image_shape(options))


def refused(shortage: dict, options: config.Config, **changes) -> str:
    what = {k: v for k, v in result(**changes).items() if k not in ("memory", "costs")}
    return tables.refusal(what, options, shortage)


def test_out_of_memory_error_has_amounts_largest_terms_and_remedies():
    shortage = {
        "needed": 40 * GIB,
        "available": 15.75 * GIB,
        "reason": "Ran out of memory",
        "largest": ["2.00G f32[32,4096,4096] jit(step)/dot_general"],
    }
    options = load("cifar10")
    options.fsdp = 4
    lines = refused(shortage, options).splitlines()
    assert lines[0] == (
        "train does not fit v5e:2x4: it needs 40.000 GiB per device, 15.750 GiB available."
    )
    assert lines[1] == ("Largest: temporaries 40.000 GiB, generator 0.500 GiB, teacher 0.250 GiB.")
    assert lines[2:4] == [
        "The compiler: Ran out of memory",
        "  2.00G f32[32,4096,4096] jit(step)/dot_general",
    ]
    assert [line.split()[0] for line in lines[5:]] == [
        "--config.accumulate=4",  # with 2: 20 GiB
        "--config.remat=blocks",
        "--config.fsdp=8",
        "--config.teacher.dtype=bfloat16",
        "--config.compute_dtype=bfloat16",
        "--topology=v5e:4x4",
    ]


def test_remedies_exclude_flags_already_set_or_impossible():
    options = load("cifar10")
    options.batch, options.remat, options.compute_dtype = 8, "blocks", "bfloat16"
    options.teacher.dtype = "bfloat16"
    shortage = {"needed": 17 * GIB, "available": 16 * GIB, "largest": []}
    changes = {"mesh": {"data": 1, "fsdp": 8}, "topology": "v5p:2x2x2"}
    text = refused(shortage, options, **changes)
    assert text.splitlines()[2:] == ["What would help:", "  --topology=v5p:2x2x4  twice the chips"]


@pytest.mark.parametrize(
    ("topology", "larger"),
    [("v5e:2x4", "v5e:4x4"), ("v5e:4x4", "v5e:4x8"), ("v4:2x2x1", "v4:2x2x2")],
)
def test_the_larger_topology_is_the_next_shape(topology, larger):
    shortage = {"needed": 17 * GIB, "available": 16 * GIB, "largest": []}
    text = refused(shortage, load("cifar10"), topology=topology)
    assert f"--topology={larger}  twice the chips" in text


def test_a_single_update_is_described_as_a_step():
    shortage = {"needed": 17 * GIB, "available": 16 * GIB, "largest": []}
    text = refused(shortage, load("cifar10"), program="generator")
    assert "--config.accumulate=2" in text
    alone = result(program="generator", accumulate=4)
    alone["costs"] = alone["costs"] | {"forwards": 7}
    assert "per chip and step: 1.4e+13 FLOPs" in tables.describe(alone)
    assert "| 256 in 4 parts |" in tables.table([alone])
    assert "| 1.013 (/ 7 F) |" in tables.table([alone])


def test_remedy_for_a_sampler_is_a_smaller_evaluation_batch():
    shortage = {"needed": 17 * GIB, "available": 16 * GIB, "largest": []}
    text = refused(shortage, load("cifar10"), program="sample", batch=104)
    assert "--config.evaluation.batch=52" in text
    assert "accumulate" not in text


def test_the_report_has_every_number():
    text = tables.describe(result())
    for part in (
        "cifar10, train on v5e:2x4: batch 256, bfloat16, remat none, data x fsdp 2 x 4",
        "memory per chip, GiB: 3.250 of 16.000",
        "teacher 0.250, generator 0.500",
        "temporaries 2.000, code 0.250, peak 3.000",
        "FLOPs per image: 4.4e+11, 1.013 times 11 forwards of 3.95e+10",
        "1.4e+13 FLOPs, 9e+10 bytes",
        "110 ms, bound by bytes, 291 images/s/chip",
        "5 all-reduce of 0.224 GB",
        "lowering 9, compilation 146, one forward 12; effort -1; simjax 0.1.0, jax 0.10.2, libtpu",
    ):
        assert part in text
    assert "memory per 1/2 chip" in tables.describe(result(devices_per_chip=2))
    assert "collectives per chip: none" in tables.describe(result(collectives={}))


def test_the_table_has_one_row_per_file(tmp_path):
    sample = result(program="sample", batch=600)
    sample["costs"] = sample["costs"] | {"forwards": 1, "over_forwards": 1.0}
    storage.write_json(tmp_path / "b.json", sample)
    (tmp_path / "notes.txt").write_text("")
    storage.write_json(tmp_path / "a.json", result(accumulate=4))
    assert tables.table(tables.read(tmp_path)).splitlines() == [
        "| config | program | topology | data x fsdp | batch | dtype | remat | memory, GiB | "
        "GFLOP/image | FLOPs / 11 F | roofline, ms | images/s/chip | compile, s |",
        "| --- " * 13 + "|",
        "| cifar10 | train | v5e:2x4 | 2 x 4 | 256 in 4 parts | bfloat16 | none | "
        "3.250 of 16.000 | 440 | 1.013 | 110 | 291 | 155 |",
        "| cifar10 | sample | v5e:2x4 | 2 x 4 | 600 | bfloat16 | none | 3.250 of 16.000 | "
        "440 | 1.000 (/ 1 F) | 110 | 291 | 155 |",
    ]


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"config": "cifar10"})])
def test_a_file_that_is_not_a_result_is_named(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ConfigError, match="other.json is not a result of simjax aot"):
        tables.read(tmp_path)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(ConfigError, match="has no .json file; write some with --out="):
        tables.read(tmp_path)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--program=export",
            "value should be one of <fake_score|generator|train|sample|teacher_sample|encode_text>",
        ),
        ("--topology=v9:2x2", "--topology=v9:2x2 is not known; examples: v4:2x2x1"),
        ("--config.remmat=dots", "config has no field remmat; did you mean: remat"),
        ("--table=nowhere", "nowhere has no .json file"),
        ("--config.batch=64", "--topology is missing; examples: v4:2x2x1"),
    ],
)
def test_a_wrong_flag_raises_one_message(flag, message):
    command = [
        sys.executable,
        "-m",
        "simjax",
        "aot",
        f"--config={DIRECTORY / 'digits.py'}",
        flag,
    ]
    assert message in refused_command(subprocess.run(command, capture_output=True, text=True))


def test_the_readme_has_the_table_of_the_stored_results():
    folder = DIRECTORY.parent / "launch" / "aot"
    assert tables.table(tables.read(folder)) in (folder / "README.md").read_text()
