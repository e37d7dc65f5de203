"""python -m simjax.main --config=configs/digits.py [--workdir=RUN] [--config.FIELD=VALUE ...]"""

import os

from absl import flags, logging

from simjax.commands import flags as command_line

flags.declare_key_flag("config")  # shown by --help
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default runs/NAME of the config.")


def main() -> None:
    """Parses flags and runs; a user's mistake is one message and exit status 1."""
    command_line.start(_run)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # libraries speak up only when something is wrong
    # They import JAX: only once the flags are known to be good.
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
