"""Compiles a config's program for TPUs that this machine does not have, and says what it needs.

python -m simjax aot --config=configs/cifar10.py --topology=v5e:2x4 --out=runs/aot/cifar10.json
python -m simjax aot --config=configs/cifar10.py --topology=v4:2x2x1 --program=sample
python -m simjax aot --table=runs/aot          the table of the files that --out wrote there

It takes minutes, and libtpu (pip install -e ".[tpu]" in an environment of its own). A program that
would not fit ends with one message, what to change, and exit status 1.
"""

import pathlib

from absl import flags, logging

from simjax.commands import flags as command_line
from simjax.errors import ConfigError
from simjax.perf import chips, tables
from simjax.runtime import storage

flags.declare_key_flag("config")  # shown by --help
TOPOLOGY = flags.DEFINE_string("topology", None, f"TPU slice: {chips.examples()}, ...")
PROGRAM = flags.DEFINE_enum(
    "program",
    "train",
    list(tables.PROGRAMS),
    "fake_score, generator: one update of train's; sample: one call, as evaluated.",
)
OUT = flags.DEFINE_string("out", None, "JSON file for the result.")
TABLE = flags.DEFINE_string("table", None, "Folder of such files, to print as a table.")
# -1 compiles a CIFAR-10 step four times faster than 0, and with slightly larger temporaries.
EFFORT = flags.DEFINE_float("effort", -1.0, "Of the compiler's optimizations; 0 is a run's.")


def main() -> None:
    """Parses flags and compiles; a mistake, or a program too large, is one message and status 1."""
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
    from simjax.perf import footprint  # imports JAX: only now

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
