"""`simjax benchmark` with tiny networks on one CPU: FLOPs, timing, tables."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from simjax import config
from simjax.errors import ConfigError
from simjax.models import build, port
from simjax.perf import chips, costs, programs, tables, timing
from simjax.runtime import sharding
from tests.helpers.command import refused
from tests.helpers.configs import DIRECTORY, load, small
from tests.helpers.configs import LARGER as NETWORK


@pytest.fixture(autouse=True)
def known_peaks(monkeypatch):
    """Published peaks for the CPU, so that none is measured."""
    monkeypatch.setitem(chips.GPUS, "cpu", {"float32": 1e12, "bfloat16": 2e12})


@pytest.fixture(scope="module")
def plan() -> config.Config:
    options = small()
    options.batch, options.evaluation.batch, options.evaluation.teacher_steps = 4, 3, (2,)
    options.steps_per_call = 1
    return port.plan(options)


def made(options: config.Config, program: str) -> programs.Program:
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return programs.PROGRAMS[program](options, *build.blank(options), mesh)


def row(**changes) -> dict:
    """A timing with round numbers on eight devices."""
    return {
        "program": "train",
        "batch": 256,
        "accumulate": 4,
        "steps_per_call": 2,
        "compute_dtype": "bfloat16",
        "mesh": {"data": 2, "fsdp": 4},
        "seconds": {"median": 0.5, "minimum": 0.25, "maximum": 1.0},
        "images_per_second": 1024.0,
        "mfu": 0.4567,
        "costs": {"flops_per_image": 440e9, "over_forwards": 1.0127, "forwards": 11},
        "memory": {"total": 3.25 * chips.GIB, "allocator_peak": 4 * chips.GIB},
        "compile_seconds": 61.23,
    } | changes


def test_programs_are_those_of_the_flags():
    assert tuple(programs.PROGRAMS) == tables.PROGRAMS


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)


@pytest.mark.whole_runs
def test_an_update_continues_from_the_state_of_the_last_call(plan):
    this = made(plan, "fake_score")
    arguments = this.values(programs.random_params(build.blank(plan)[1]))
    assert kinds(arguments) == kinds(this.arguments)
    binary = this.function.lower(*this.arguments).compile()
    for _ in range(3):
        arguments = this.after(binary(*arguments), arguments)
    assert int(arguments[0].step) == 3


@pytest.mark.parametrize("program", tables.SAMPLING)
def test_every_call_of_a_sampler_has_the_same_noise(program, plan):
    this = made(plan, program)
    arguments = this.values(programs.random_params(build.blank(plan)[1]))
    assert kinds(arguments) == kinds(this.arguments)
    _, z, labels, _ = arguments
    assert len(np.unique(z)) == z.size
    assert (labels.sum(1) == 1).all()
    assert this.after("images", arguments) is arguments


def test_random_parameters_preserve_the_scale_of_activations():
    like = {"kernel": np.zeros((3, 3, 64, 256), np.float32), "bias": np.zeros(4096, np.float32)}
    drawn = programs.random_params(like)
    assert drawn["kernel"].std() == pytest.approx((9 * 64) ** -0.5, rel=0.01)
    assert drawn["bias"].std() == pytest.approx(1, rel=0.05)
    assert drawn["kernel"].dtype == np.float32


LARGER = config.resolved(
    config.Config(
        batch=8,
        network=NETWORK,
        evaluation=config.Evaluation(batch=8, teacher_steps=(3,)),
    )
)


@pytest.mark.parametrize(
    ("program", "forwards"),
    [
        *(("sample", 1), ("teacher_sample", 5), ("generator", 7)),
        *(
            pytest.param(*each, marks=pytest.mark.whole_runs)
            for each in (("fake_score", 4), ("train", 11))
        ),
    ],
)
def test_flops_per_image_are_those_of_its_forwards(program, forwards):
    found = costs.of_program(LARGER, program)
    assert found["forwards"] == forwards
    assert 0.95 < found["over_forwards"] < 1.05
    assert found["flops_per_image"] == pytest.approx(
        forwards * found["flops_per_forward"], rel=0.05
    )


@pytest.mark.parametrize(
    ("steps", "program", "forwards"),
    [
        (4, "sample", 4),
        *(
            pytest.param(*each, marks=pytest.mark.whole_runs)
            for each in ((4, "train", 14), (2, "train", 12), (4, "generator", 8.5))
        ),
    ],
)
def test_flops_of_a_multi_step_generator_are_the_mean(steps, program, forwards):
    """XLA's analysis counts one iteration of the loop over calls, whose length is drawn."""
    chain = dataclasses.replace(LARGER, generator=config.Generator(steps=steps))
    found = costs.of_program(chain, program)
    assert found["forwards"] == forwards
    assert found["over_forwards"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("program", [pytest.param("train", marks=pytest.mark.whole_runs), "sample"])
def test_flops_are_those_of_the_local_backend(monkeypatch, program):
    """The CPU implementation splits convolutions of upsampled images (runtime/cpu.py)."""
    here = costs.of_program(LARGER, program)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = costs.of_program(LARGER, program)
    assert there["flops_per_image"] > 1.02 * here["flops_per_image"]
    assert there["flops_per_forward"] > 1.02 * here["flops_per_forward"]
    assert there["over_forwards"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "program",
    [*(pytest.param(n, marks=pytest.mark.whole_runs) for n in ("fake_score", "train")), "sample"],
)
def test_counted_flops_are_those_of_the_executed_program(program):
    run = made(LARGER, program)
    flops = run.function.lower(*run.arguments).cost_analysis()["flops"]
    assert flops / run.batch == pytest.approx(costs.of_program(LARGER, program)["flops_per_image"])


@pytest.mark.whole_runs
def test_convolutions_of_several_steps_on_a_cpu_are_nhwc():
    """XLA runs other layouts a hundred times slower on CPUs, without a warning."""
    run = made(dataclasses.replace(LARGER, steps_per_call=3), "fake_score")
    text = run.function.lower(*run.arguments).compile().as_text()
    assert set(re.findall(r"dim_labels=([^,\s]+)", text)) == {"b01f_01io->b01f"}


@pytest.mark.parametrize(
    ("program", "forwards"),
    [pytest.param("train", 13, marks=pytest.mark.whole_runs), ("teacher_sample", 10)],
)
def test_guidance_costs_a_second_forward(program, forwards):
    guided = dataclasses.replace(LARGER, teacher=dataclasses.replace(LARGER.teacher, guidance=2.0))
    found = costs.of_program(guided, program)
    assert found["forwards"] == forwards
    assert found["over_forwards"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("change", [{"steps_per_call": 2}, {"accumulate": 2}])
def test_accumulation_and_steps_per_call_keep_the_cost_per_image(change, plan):
    whole = costs.of_program(plan, "fake_score")
    assert costs.of_program(dataclasses.replace(plan, **change), "fake_score") == whole


def test_rates_of_a_made_up_chip(plan):
    # 10 images per step, 3 steps in 2 seconds; 11 forwards of 1 GFLOP; a peak of 660 GFLOP/s.
    this = dataclasses.replace(made(plan, "train"), batch=10, steps=3)
    found = timing.rates(this, [2.0, 1.5, 9.0], 1e9, 660e9)
    assert found["seconds"] == {"median": 2.0, "minimum": 1.5, "maximum": 9.0}
    assert found["images_per_second"] == 15
    assert found["mfu"] == pytest.approx(0.25)


def test_peaks_depend_on_dtype_and_number_of_devices():
    mesh = Mesh(np.array(jax.devices()[:1] * 4), ("data",))
    assert timing.peak(mesh, "bfloat16") == {"flops": 8e12, "source": "published"}
    assert chips.peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert chips.peak_flops("TPU v5 lite", "float32") == 197e12 / 6
    assert chips.peak_flops("TPU7x", "bfloat16") == 2307e12 / 2
    assert chips.peak_flops("NVIDIA H200", "float32") == 67e12
    assert chips.peak_flops("NVIDIA Z80", "float32") is None


def test_an_unknown_peak_is_measured(monkeypatch):
    monkeypatch.delitem(chips.GPUS, "cpu")
    monkeypatch.setattr(timing, "PRODUCT", 64)
    monkeypatch.setattr(timing, "LONG_ENOUGH", 0.01)
    found = timing.peak(sharding.make_mesh(devices=jax.devices()[:1]), "float32")
    assert found["source"] == "measured with 64 x 64 matmuls"
    assert 1e7 < found["flops"] < 1e13


def test_a_peak_is_measured_with_enough_matmuls(monkeypatch):
    iterations = []

    def two_per_second(function, arguments, after, count):
        iterations.append(arguments[1])
        return [arguments[1] / 2], arguments

    monkeypatch.setattr(timing, "PRODUCT", 8)
    monkeypatch.setattr(timing, "LONG_ENOUGH", 1.5)
    monkeypatch.setattr(timing, "timed_calls", two_per_second)
    rate = timing._measured_peak(sharding.make_mesh(devices=jax.devices()[:1]), "float32")
    assert iterations == [2, 4]
    assert rate == 2 * (2 * 8**3)


class Pending:
    """A result that is ready 5 seconds after block_until_ready is called."""

    def __init__(self, clock: list[float]):
        self.clock = clock

    def block_until_ready(self):
        self.clock[0] += 5.0
        return self


def test_a_call_is_timed_until_its_results_are_ready():
    clock, given = [100.0], []

    def call(state, constant):
        given.append((state, constant))
        clock[0] += 1.0
        return Pending(clock)

    def after(results, arguments):
        clock[0] += 1000.0  # not timed
        return (arguments[0] + 1, arguments[1])

    seconds, following = timing.timed_calls(call, (0, "w"), after, 3, clock=lambda: clock[0])
    assert seconds == [6.0, 6.0, 6.0]
    assert given == [(0, "w"), (1, "w"), (2, "w")]
    assert following == (3, "w")


def measured(configs, names, **options) -> list[dict]:
    peaks = timing.surroundings(configs)["peaks"]
    return list(timing.measure_all(configs, names, peaks, **options))


@pytest.mark.whole_runs
def test_rows_have_every_measurement(plan, monkeypatch, tmp_path):
    counts, timed = [], timing.timed_calls

    def counted(function, arguments, after, count):
        counts.append(count)
        return timed(function, arguments, after, count)

    monkeypatch.setattr(timing, "timed_calls", counted)
    configs = timing.combinations(plan, {"steps_per_call": [2], "batch": [4]})
    rows = measured(configs, ["fake_score", "sample"], repeats=3, profile=tmp_path)
    assert [(r["program"], r["steps_per_call"]) for r in rows] == [("fake_score", 2), ("sample", 1)]
    assert counts == [timing.WARM_UP, 3, timing.TRACED] * 2
    for found in rows:
        seconds = found["seconds"]
        assert seconds["minimum"] <= seconds["median"] <= seconds["maximum"]
        images = found["batch"] * found["steps_per_call"]
        assert found["batch"] == 4
        assert found["images_per_second"] == pytest.approx(images / seconds["median"])
        cost = found["costs"]
        needed = cost["forwards"] * cost["flops_per_forward"] * found["images_per_second"]
        assert found["mfu"] == pytest.approx(needed / 1e12)
        assert found["memory"]["total"] > 0
        assert found["compile_seconds"] > 0
        assert "allocator_peak" not in found["memory"]  # CPUs do not report it
        assert list((tmp_path / timing.label(found)).rglob("*.xplane.pb"))
        assert (
            tables.timing_line(json.loads(json.dumps(found))).count("|") == len(tables.TIMING) + 1
        )


@pytest.mark.whole_runs
def test_equal_programs_are_measured_once(plan):
    # Sampling does not depend on steps_per_call or accumulate; fsdp has no effect on one device.
    swept = {"accumulate": [1, 2], "steps_per_call": [1, 2], "fsdp": [1, 8], "batch": [2, 4]}
    rows = measured(timing.combinations(plan, swept), ["sample"], repeats=1)
    assert [found["batch"] for found in rows] == [2, 4]


def test_an_out_of_memory_row_does_not_stop_the_sweep(plan, monkeypatch):
    def measure(this, params, repeats, trace_to):
        if this.batch > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 GiB.\nHere.")
        return [1.0], {"memory": {}, "compile_seconds": 1.0}

    monkeypatch.setattr(timing, "_measure", measure)
    configs = timing.combinations(plan, {"batch": [8, 4]})
    large, fits = measured(configs, ["fake_score"], repeats=1)
    assert large["error"] == "out of memory"
    assert large["reason"] == "RESOURCE_EXHAUSTED: Out of memory: 9 GiB."
    assert fits["images_per_second"] == 4


def test_other_errors_are_not_hidden(plan, monkeypatch):
    def measure(*given):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(timing, "_measure", measure)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        measured([plan], ["sample"], repeats=1)


def test_the_allocators_peak_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    devices = [Device({"peak_bytes_in_use": n, "bytes_in_use": 99}) for n in (3, 7)]
    monkeypatch.setattr(jax, "local_devices", lambda: [*devices, Device(None)])
    assert timing._allocated() == {"allocator_peak": 7}


def test_every_combination_has_intervals_of_whole_calls():
    options = load("digits")
    options.steps, options.log_every, options.evaluation.every = 1001, 7, 50
    swept = {"batch": [8, 16], "steps_per_call": [1, 4], "compute_dtype": ["bfloat16"]}
    found = timing.prepare(options, swept)
    assert [(o.batch, o.steps_per_call) for o in found] == [(8, 1), (8, 4), (16, 1), (16, 4)]
    assert all(o.evaluation.batch == o.batch for o in found)
    assert {o.compute_dtype for o in found} == {"bfloat16"}
    assert (found[1].steps, found[1].log_every) == (1004, 8)
    assert (options.batch, options.evaluation.batch) == (64, 100)  # unchanged


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        ({"batch": [64, -1]}, "batch = -1 must be positive"),
        ({"compute_dtype": ["float16"]}, "compute_dtype = 'float16' is not known; known: bfloat16"),
    ],
)
def test_invalid_combinations_raise(swept, message):
    with pytest.raises(ConfigError, match=message):
        timing.prepare(load("digits"), swept)


def test_without_flags_the_config_is_unchanged():
    (only,) = timing.prepare(load("digits"), {})
    assert (only.batch, only.evaluation.batch, only.compute_dtype) == (64, 100, "float32")


def test_a_published_teachers_network_needs_no_file():
    (only,) = timing.prepare(load("cifar10"), {})
    assert only.network.channels == 128


def test_a_cpu_excluded_by_jax_platforms_raises(monkeypatch):
    def missing(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", missing)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ConfigError, match="set JAX_PLATFORMS=cuda,cpu, or unset it"):
        timing.prepare(load("digits"), {})


def test_the_table():
    what = {
        "versions": {"simjax": "0.1.0", "jax": "0.10.2", "jaxlib": "0.10.2"},
        "device": "TPU v5 lite",
        "devices": 8,
        "peaks": {"bfloat16": {"flops": 1576e12, "source": "published"}},
    }
    first, blank, columns, rule = tables.timing_header("cifar10", what, 20).split("\n")
    assert first.startswith("cifar10 on 8 x TPU v5 lite, simjax 0.1.0, jax 0.10.2, jaxlib 0.10.2.")
    assert "median (min to max) of 20 calls" in first
    assert "1576 TFLOP/s in bfloat16 (published)" in first
    assert not blank
    assert columns == (
        "| program | batch | dtype | data x fsdp | steps/call | step, ms | images/s | "
        "GFLOP/image | FLOPs / k F | MFU | memory, GiB | allocator, GiB | compile, s |"
    )
    assert rule == "| --- " * 13 + "|"
    assert tables.timing_line(row()) == (
        "| train | 256 in 4 parts | bfloat16 | 2 x 4 | 2 | 250 (125 to 500) | 1024 | 440 | "
        "1.013, k = 11 | 45.7 % | 3.250 | 4.000 | 61.2 |"
    )
    silent = row(memory={"total": chips.GIB}, accumulate=1)
    assert "| 256 | bfloat16 |" in tables.timing_line(silent)
    assert "| 1.000 | - | 61.2 |" in tables.timing_line(silent)


def test_row_of_an_out_of_memory_program():
    known = ("program", "batch", "accumulate", "steps_per_call", "compute_dtype", "mesh")
    failed = {name: row()[name] for name in known} | {"error": "out of memory"}
    assert tables.timing_line(failed) == (
        "| train | 256 in 4 parts | bfloat16 | 2 x 4 | 2 | out of memory |" + " - |" * 7
    )


def test_every_row_has_its_own_trace_folder():
    assert timing.label(row()) == "train_256_4_2_bfloat16_2x4"
    changes = [{"batch": 8}, {"accumulate": 1}, {"steps_per_call": 1}, {"mesh": {"a": 8, "b": 1}}]
    assert len({timing.label(row(**change)) for change in [{}, *changes]}) == 5


def benchmark(*given: str, **options) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "simjax",
        "benchmark",
        f"--config={DIRECTORY / 'digits.py'}",
    ]
    return subprocess.run([*command, *given], capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--programs=train,export", "--programs = 'export' is not known; known: encode_text"),
        ("--programs=", "--programs = '' is not known"),
        ("--batch=64,many", "--batch=64,many: expected a list of integers, e.g. --batch=1"),
        ("--fsdp=", "--fsdp= is empty; leave it out to use the config's value."),
        ("--repeats=0", "flag --repeats=0"),
        ("--accumulate=1,7", "batch = 64 is not divisible by accumulate = 7"),
    ],
)
def test_a_wrong_flag_raises_one_message(flag, message):
    done = benchmark(flag)
    assert message in refused(done)
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout  # all flags are checked before the first measurement


@pytest.mark.whole_runs
def test_the_command_prints_its_table_and_writes_the_same_rows(tmp_path):
    out = tmp_path / "made" / "digits.json"
    network = ["--config.network.channels=4", "--config.network.channel_mult=(1,)"]
    done = benchmark(*network, "--programs=sample", "--batch=2,3", "--repeats=2", f"--out={out}")
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["config"] == "digits"
    assert str(tmp_path) not in out.read_text()
    assert result["command"].startswith("python -m simjax benchmark --config=")
    assert "--batch=2,3 --repeats=2" in result["command"]
    assert result["versions"].keys() == {"simjax", "python", "jax", "jaxlib"}
    assert (result["device"], result["devices"], result["repeats"]) == ("cpu", 1, 2)
    assert result["peaks"]["float32"]["source"].startswith("measured with 4096 x 4096 matmuls")
    assert [found["batch"] for found in result["rows"]] == [2, 3]
    table = tables.timing_header("digits", result, 2).splitlines() + [
        *map(tables.timing_line, result["rows"])
    ]
    assert done.stdout.splitlines()[: len(table)] == table
