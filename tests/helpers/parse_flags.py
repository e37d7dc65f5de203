"""Parses flags of Python programs without running them, for readme_commands.py.

stdin: JSON [{"folder": working directory, "argv": arguments of the interpreter}, ...].
stdout: JSON list of error messages, empty if valid. One fork per program, because programs define
flags of the same names; the forks share imports.
"""

import argparse
import json
import os
import runpy
import sys
import warnings
from typing import Any

from absl import app


class Parsed(Exception):  # noqa: N818
    """Stops a program once its flags are parsed."""


def main() -> None:
    """Parses the flags of all programs on stdin."""
    import simjax.runs.distill  # noqa: F401  # shared by all forks

    warnings.simplefilter("ignore")  # JAX warns of forks; no backend is initialized
    print(json.dumps([message(**job) for job in json.load(sys.stdin)]))


def message(folder: str, argv: list[str]) -> str:
    """Parses one program's flags in a fork; returns the error message."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.chdir(folder)
        with os.fdopen(write, "w") as pipe:
            pipe.write(parse(argv))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = pipe.read()
    _, status = os.waitpid(pid, 0)
    return found or ("" if status == 0 else f"exit status {status}")


def parse(argv: list[str]) -> str:
    """Starts a program, stops after flag parsing; returns the error message."""
    app.run = _parse_absl
    original = argparse.ArgumentParser.parse_args

    def parse_args(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        raise Parsed

    argparse.ArgumentParser.parse_args = parse_args
    sys.path[0] = ""  # was tests/helpers, whose configs.py would shadow configs/
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        if argv[0] == "-m":
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")
    except Parsed:
        return ""
    except SystemExit as error:
        return f"refused: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "parsed no flags"


def _parse_absl(run: Any, flags_parser: Any) -> None:
    """Replaces app.run: parses flags, checks the config of simjax.main."""
    flags_parser(sys.argv)
    if run.__module__ in ("simjax.main", "__main__"):
        from simjax.commands import flags
        from simjax.runs import check

        check.check(flags.CONFIG.value, devices=1)
    raise Parsed


if __name__ == "__main__":
    main()
