"""Compiles a config ahead of time for TPUs, on any machine.

Prints memory per chip, FLOPs, bytes, collectives and the roofline time per step. A program that
does not fit into memory ends with one message (which fields to change) and exit status 1.
Compilation takes minutes and needs libtpu: pip install -e ".[tpu]" in a separate environment.

Examples:
  python -m simjax aot --config=configs/cifar10.py --topology=v5e:2x4 --out=runs/aot/cifar10.json
  python -m simjax aot --config=configs/cifar10.py --topology=v4:2x2x1 --program=sample
  python -m simjax aot --table=runs/aot  # a Markdown table of such JSON files
"""

import pathlib

from absl import flags, logging

from simjax.commands import flags as command_line
from simjax.errors import ConfigError
from simjax.perf import chips, tables
from simjax.runtime import storage

flags.declare_key_flag("config")  # listed by --help
TOPOLOGY = flags.DEFINE_string("topology", None, f"TPU slice: {chips.examples()}, ...")
PROGRAM = flags.DEFINE_enum(
    "program",
    "train",
    list(tables.PROGRAMS),
    "Program to compile. train: a whole training step; fake_score, generator: one of its two "
    "updates; sample, teacher_sample: one batch of samples; encode_text: the text encoder.",
)
OUT = flags.DEFINE_string("out", None, "JSON file for the result.")
TABLE = flags.DEFINE_string("table", None, "Folder of JSON files of --out; prints them as a table.")
# -1 compiles a CIFAR-10 step four times faster than 0, and with slightly larger temporaries.
EFFORT = flags.DEFINE_float("effort", -1.0, "Optimization effort of XLA; 0 as in training.")


def main() -> None:
    """Entry point; user errors exit with status 1 and one message."""
    command_line.start(_run, parse=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    if not any(argument.startswith("--table") for argument in argv):
        return command_line.parse_flags(argv)
    return command_line.parse(argv)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    if TABLE.value:
        print(tables.table(tables.read(pathlib.Path(TABLE.value).expanduser())))
        return
    if not TOPOLOGY.value:
        raise ConfigError(f"--topology is missing; examples: {chips.examples()}.")
    out = None if OUT.value is None else storage.new_file(OUT.value, "--out")
    chips.prepare(TOPOLOGY.value)
    from simjax.perf import footprint  # imports JAX: only after chips.prepare

    result = {
        "command": command_line.spelled("aot", without=("out",)),
        "config": command_line.config_name(),
    }
    result |= footprint.compile_for(
        command_line.CONFIG.value, TOPOLOGY.value, PROGRAM.value, effort=EFFORT.value
    )
    print(tables.describe(result))
    if out:
        storage.write_json(out, result, indent=1)
        print(f"written to {out}")
