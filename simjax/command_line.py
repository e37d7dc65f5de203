"""The flags that simjax's programs share: --config=FILE, --config.FIELD=VALUE, and their messages.

Called from main.py, aot.py and benchmark.py. Imports no JAX: flags are refused within a moment.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import config_flags

from simjax import config as c

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; set its fields after it.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses, with messages of our own for what users get wrong.

    Raises:
      ConfigError: an unknown flag or field, a value of the wrong type, an unreadable config file.
    """
    known = c.known_fields()
    given = re.findall(r"^--?config\.([\w.]+)", "\n".join(argv[1:]), flags=re.MULTILINE)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise c.ConfigError(f"config has no field {name}; did you mean: {', '.join(near)}?")
    try:
        rest = flags.FLAGS(argv)
        if isinstance(CONFIG.value, c.Config) and not rest[1:]:
            return rest
    except (flags.Error, ValueError, TypeError, OSError, SyntaxError, ImportError) as error:
        if refusal := _refusal_inside(error):
            raise refusal from error
        if isinstance(error, TypeError) and any(name.startswith("network.") for name in given):
            raise c.ConfigError(
                "config.network has no fields to set: the network comes with teacher.source."
            ) from error
        raise c.ConfigError(f"{error}") from error
    if rest[1:]:
        raise c.ConfigError(f"unexpected arguments: {' '.join(rest[1:])}.")
    file = next((a.partition("=")[2] for a in argv if re.match("--?config=", a)), None)
    if file is None:
        raise c.ConfigError("--config is missing, e.g. --config=configs/digits.py.")
    file = file.partition(":")[0]
    if not os.path.isfile(file):
        raise c.ConfigError(f"--config: there is no file {file}.")
    raise c.ConfigError(f"--config: get_config() in {file} must return a simjax.config.Config.")


def start(
    run: Callable[[list[str]], None], parse: Callable[[list[str]], list[str]] = parse_flags
) -> None:
    """Parses flags, runs, and turns a user's mistake into one message and exit status 1."""
    try:
        app.run(run, flags_parser=parse)
    except c.ConfigError as error:
        sys.exit(f"simjax: {error}")


def parse_source(argv: list[str]) -> list[str]:
    """Parses the flags of a command that has --source and no --config.

    Raises:
      ConfigError: a flag is wrong, --source is missing, or there are other arguments.
    """
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise c.ConfigError(f"{error}") from error
    if rest[1:] or not flags.FLAGS["source"].value:
        raise c.ConfigError(f"expected --source=..., got {' '.join(rest[1:]) or 'nothing'}.")
    return rest


def config_name() -> str:
    """What --config names: "cifar10", or "cifar10_sid" for configs/cifar10.py:sid."""
    filename, _, method = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = os.path.splitext(os.path.basename(filename))[0]
    return f"{name}_{method}" if method else name


def _refusal_inside(error: BaseException | None) -> c.ConfigError | None:
    """The config file's own ConfigError, which the flag library wraps together with its trace."""
    found = None
    while error is not None:
        found = error if isinstance(error, c.ConfigError) else found
        error = error.__cause__ or error.__context__
    return found
