"""Distils a teacher into a generator of one or a few steps.

python -m simjax.main --config=FILE[:PRESET] [--workdir=DIR] [--config.FIELD=VALUE ...]

Writes checkpoints, metrics, samples and a report to the run directory; the same command resumes an
interrupted run. Config fields and their defaults: simjax/config/schema.py.

Examples:
  python -m simjax.main --config=configs/digits.py
  python -m simjax.main --config=configs/digits.py:two_steps --workdir=runs/two
  python -m simjax.main --config=configs/cifar10.py --config.compute_dtype=bfloat16
"""

import os

from absl import flags, logging

from simjax.commands import flags as command_line

flags.declare_key_flag("config")  # listed by --help
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run directory; default: runs/NAME, named after the config (and preset)."
)


def main() -> None:
    """Entry point; user errors exit with status 1 and one message."""
    command_line.start(_run)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # libraries log warnings and errors only
    # These import JAX: only after the flags are validated.
    from simjax.runs import distill
    from simjax.runtime import cpu, processes

    processes.listen()
    processes.join()
    processes.reuse_compiled()
    config = command_line.CONFIG.value
    workdir = _WORKDIR.value or os.path.join("runs", command_line.config_name())
    try:
        with processes.failing_at_once():
            cpu.keep_freed()
            distill.distill(config, workdir)
    finally:
        processes.leave()


if __name__ == "__main__":
    main()
