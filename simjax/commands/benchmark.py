"""Times training step and samplers on this machine's devices.

Prints a Markdown table with a row per combination of the listed values: seconds per call, images/s,
FLOPs, MFU, memory, compile time; combinations that run out of memory are marked. Parameters are
random, nothing is downloaded.

Examples:
  python -m simjax benchmark --config=configs/cifar10.py
  python -m simjax benchmark --config=configs/digits.py --programs=train --profile=runs/profile
  python -m simjax benchmark --config=configs/cifar10.py --programs=train,sample \\
      --batch=64,256 --compute_dtype=float32,bfloat16 --out=runs/benchmark/cifar10.json
"""

import pathlib
from typing import Any

from absl import flags, logging

from simjax import config as c
from simjax.commands import flags as command_line
from simjax.errors import ConfigError
from simjax.perf import tables
from simjax.runtime import storage

# Config fields that can be swept, with their types.
FIELDS = {"batch": int, "accumulate": int, "steps_per_call": int, "compute_dtype": str, "fsdp": int}


def values(field: str, given: list[str]) -> list[Any]:
    """Converts a flag's list of strings to the field's type.

    Raises:
      ConfigError: the list is empty, or an integer field has other values.
    """
    flag = f"--{field}={','.join(given)}"
    if not given:
        raise ConfigError(f"{flag} is empty; leave it out to use the config's value.")
    try:
        return [FIELDS[field](value) for value in given]
    except ValueError as error:
        raise ConfigError(f"{flag}: expected a list of integers, e.g. --{field}=1,8.") from error


flags.declare_key_flag("config")  # listed by --help
PROGRAMS = flags.DEFINE_list(
    "programs",
    [*tables.TRAINING, *tables.SAMPLING],
    "train: a whole training step; fake_score, generator: one of its two updates; sample, "
    "teacher_sample: one batch of samples.",
)
SWEPT = {
    field: flags.DEFINE_list(field, None, f"Values of config.{field}; default: the config's value.")
    for field in FIELDS
}
REPEATS = flags.DEFINE_integer("repeats", 20, "Number of timed calls.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "JSON file for the rows.")
PROFILE = flags.DEFINE_string("profile", None, "Folder for profiler traces, of three calls a row.")


def main() -> None:
    """Entry point; user errors exit with status 1 and one message."""
    command_line.start(_run)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    for name in PROGRAMS.value or [""]:
        c.require_known("--programs", name, tables.PROGRAMS)
    swept = {
        field: values(field, flag.value) for field, flag in SWEPT.items() if flag.value is not None
    }
    # Checked before minutes of measurement.
    out = None if OUT.value is None else storage.new_file(OUT.value, "--out")
    profile = None if PROFILE.value is None else storage.new_folder(PROFILE.value, "--profile")
    import jax  # after the flags are validated

    from simjax.runtime import cpu, processes

    jax.config.update("jax_enable_compilation_cache", False)  # to measure compile time
    processes.join()
    try:
        with processes.failing_at_once():
            cpu.keep_freed()
            _measure(swept, out, profile)
    finally:
        processes.leave()


def _measure(
    swept: dict[str, list[Any]], out: pathlib.Path | None, profile: pathlib.Path | None
) -> None:
    """Measures and prints row by row; writes all rows so far."""
    from simjax.perf import timing
    from simjax.runtime import processes

    configs = timing.prepare(command_line.CONFIG.value, swept)
    result = {
        "command": command_line.spelled("benchmark", without=("out", "profile")),
        "config": command_line.config_name(),
        "repeats": REPEATS.value,
        **timing.surroundings(configs),
        "rows": [],
    }
    say = print if processes.is_first() else lambda *_, **__: None
    say(tables.timing_header(result["config"], result, REPEATS.value), flush=True)
    for row in timing.measure_all(
        configs, PROGRAMS.value, result["peaks"], repeats=REPEATS.value, profile=profile
    ):
        result["rows"].append(row)
        say(tables.timing_line(row), flush=True)
        if out and processes.is_first():
            storage.write_json(out, result, indent=1)
    if out:
        say(f"\nwritten to {out}")
    if profile:
        say(f"\ntraces in {profile}; pip install xprof, then: tensorboard --logdir {profile}")
