"""The flags that simjax's programs share: --config=FILE, --config.FIELD=VALUE, and their messages.

Called from every command. Imports no JAX: flags are refused within a moment.
"""

import difflib
import itertools
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from simjax.errors import ConfigError
from simjax.runtime import settings, values

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Python file whose get_config() returns a simjax.config.Config, or FILE:METHOD; any field is "
    "set by --config.FIELD=VALUE: --config=configs/digits.py --config.generator.optim.lr=1e-4.",
)
HELP = {"help": True, "h": True, "?": True, "helpshort": True, "helpfull": False}  # is it short


def parse_flags(argv: list[str]) -> list[str]:
    """Parses, with messages of our own for what users get wrong.

    Raises:
      ConfigError: an unknown flag or field, a value of the wrong type, an unreadable config file.
    """
    given = re.findall(r"^--?config\.([\w.]+)", "\n".join(argv[1:]), flags=re.MULTILINE)
    file, colon, method = (_given(argv, "config") or "").partition(":")
    if file and not os.path.isfile(file):
        raise ConfigError(f"--config: there is no file {file}.")
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None and _is_config(CONFIG.value) and not rest[1:]:
            return rest
    except (
        flags.Error,
        ValueError,
        TypeError,
        OSError,
        SyntaxError,
        ImportError,
        KeyError,
    ) as error:
        if refusal := _refusal_inside(error):
            raise refusal from error
        _require_fields(given)
        if "None" in f"{error}" and any(name.startswith("network.") for name in given):
            raise ConfigError(
                "config.network has no fields to set: the network comes with teacher.source."
            ) from error
        if colon and "get_config() takes 0" in f"{error}":
            raise ConfigError(f"--config: {file} has no methods; leave out :{method}.") from error
        raise ConfigError(f"{error}") from error
    if rest[1:]:
        raise ConfigError(f"unexpected arguments: {' '.join(rest[1:])}.")
    if not file:
        raise ConfigError("--config is missing, e.g. --config=configs/digits.py.")
    raise ConfigError(f"--config: get_config() in {file} must return a simjax.config.Config.")


def _is_config(value: Any) -> bool:
    """Whether a config file has returned one; then JAX is imported already."""
    from simjax.config import Config

    return isinstance(value, Config)


def _require_fields(given: Collection[str]) -> None:
    """Refuses fields that no config has; called once the file is loaded, which may register some.

    Raises:
      ConfigError: with those of nearly the same name.
    """
    from simjax.config import known_fields  # imports JAX

    known = known_fields()
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise ConfigError(f"config has no field {name}; did you mean: {', '.join(near)}?")


def start(
    run: Callable[[list[str]], None], parse: Callable[[list[str]], list[str]] = parse_flags
) -> None:
    """Parses flags, runs, and turns a user's mistake into one message and exit status 1."""
    _help_if_asked(sys.argv, run.__module__)
    settings.hold()
    try:
        app.run(run, flags_parser=parse)
    except ConfigError as error:
        sys.exit(f"simjax: {error}")


def parse(argv: list[str]) -> list[str]:
    """Parses the flags of a command without --config; what is left of them.

    Raises:
      ConfigError: a flag is wrong.
    """
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise ConfigError(f"{error}") from error


def parse_source(argv: list[str]) -> list[str]:
    """Parses the flags of a command that has --source and no --config.

    Raises:
      ConfigError: a flag is wrong, --source is missing, or there are other arguments.
    """
    rest = parse(argv)
    if rest[1:] or not flags.FLAGS["source"].value:
        raise ConfigError(f"expected --source=..., got {' '.join(rest[1:]) or 'nothing'}.")
    return rest


def require_used(kind: str, uses: Mapping[str, Collection[str]], hint: str = "") -> None:
    """Refuses the flags that were given and have no effect on this kind of source.

    Args:
      uses: the kinds that each flag of the command has an effect on.
      hint: what to do instead.

    Raises:
      ConfigError: naming them, the kinds that they are for, and the flags that apply.
    """
    idle = {name: kinds for name, kinds in uses.items() if kind not in kinds and was_given(name)}
    if idle:
        named = "; ".join(f"--{name} is for {' or '.join(kinds)}" for name, kinds in idle.items())
        useful = ", ".join(f"--{name}" for name, kinds in uses.items() if kind in kinds)
        raise ConfigError(f"the source is {kind}: {named}. It takes {useful}.{hint and ' '}{hint}")


def was_given(name: str) -> bool:
    """Whether a flag stands on the command line."""
    return bool(flags.FLAGS[name].present)


def require_positive(*names: str) -> None:
    """Has values of these flags refused that are not positive and finite."""
    for name in names:
        flags.register_validator(name, values.is_positive, "expected a positive number.")


def require_some(*names: str) -> None:
    """Has empty lists of these flags refused."""
    for name in names:
        flags.register_validator(name, lambda value: value != [], "expected at least one name.")


def spelled(command: str, without: Collection[str]) -> str:
    """A command as it was given, without some of its flags, such as where results go."""
    kept, skip = [], False
    for argument in sys.argv[1:]:
        name, equals, _ = argument.lstrip("-").partition("=")
        is_dropped = argument.startswith("-") and name in without
        if not is_dropped and not skip:
            kept.append(argument)
        skip = is_dropped and not equals  # --out FILE
    return " ".join([f"python -m simjax {command}", *kept])


def config_name() -> str:
    """What --config names: "cifar10", or "cifar10_sid" for configs/cifar10.py:sid."""
    filename, _, method = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = os.path.splitext(os.path.basename(filename))[0]
    return f"{name}_{method}" if method else name


def _given(argv: list[str], name: str) -> str | None:
    """The value of a flag, spelled --NAME=VALUE or --NAME VALUE."""
    for argument, following in itertools.zip_longest(argv[1:], argv[2:]):
        found = re.fullmatch(f"--?{name}(=(?P<value>.*))?", argument, re.DOTALL)
        if found:
            return following if found["value"] is None else found["value"]
    return None


def _help_if_asked(argv: list[str], module: str) -> None:
    """Ends the program with the help of a module's command, and exit status 0 (absl's is 1)."""
    for argument in argv[1:]:
        is_short = HELP.get(argument.lstrip("-")) if argument.startswith("-") else None
        if is_short is not None:
            own = argv[0] if module == "__main__" else module  # as absl names those that define
            print(sys.modules[module].__doc__)
            print(flags.FLAGS.module_help(own) if is_short else flags.FLAGS.get_help())
            print("\nAll flags of all libraries: --helpfull" * is_short)
            sys.exit(0)


def _refusal_inside(error: BaseException | None) -> ConfigError | None:
    """The config file's own ConfigError, which the flag library wraps together with its trace."""
    found = None
    while error is not None:
        found = error if isinstance(error, ConfigError) else found
        error = error.__cause__ or error.__context__
    return found
