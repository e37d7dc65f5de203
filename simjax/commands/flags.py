"""Command-line parsing, help texts and error messages of all commands.

Imports no JAX, so that wrong flags are rejected at once.
"""

import difflib
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from simjax.errors import ConfigError
from simjax.runtime import settings, values

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Python file whose get_config() returns a simjax.config.Config, or FILE:PRESET. "
    "--config.FIELD=VALUE overrides a field, e.g. --config.generator.optim.lr=1e-4.",
)
HELP = {"help": True, "h": True, "?": True, "helpshort": True, "helpfull": False}  # is it short?
EXAMPLES = "\n\nExamples:\n"  # heading of the examples in a command's docstring
WIDTH = 100  # columns of a help text


def parse_flags(argv: list[str]) -> list[str]:
    """Parses --config, its overrides and other flags.

    Raises:
      ConfigError: an unknown flag or field, a value of the wrong type, or a config file that cannot
        be read.
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
                "config.network cannot be set: the network is read from teacher.source."
            ) from error
        if colon and "get_config() takes 0" in f"{error}":
            raise ConfigError(f"--config: {file} has no presets; leave out :{method}.") from error
        raise ConfigError(f"{error}") from error
    if rest[1:]:
        raise ConfigError(f"unexpected arguments: {' '.join(rest[1:])}.")
    if not file:
        raise ConfigError("--config is missing, e.g. --config=configs/digits.py.")
    raise ConfigError(f"--config: get_config() in {file} must return a simjax.config.Config.")


def _is_config(value: Any) -> bool:
    """Whether a config file (which imports JAX) returned a Config."""
    from simjax.config import Config

    return isinstance(value, Config)


def _require_fields(given: Collection[str]) -> None:
    """Rejects unknown config fields, after the config file has registered its own.

    Raises:
      ConfigError: naming the closest field names.
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
    """Parses flags and runs; turns a ConfigError into one message, status 1."""
    _exit_with_help(sys.argv, run.__module__)
    settings.hold()
    try:
        app.run(run, flags_parser=parse)
    except ConfigError as error:
        sys.exit(f"simjax: {error}")


def parse(argv: list[str]) -> list[str]:
    """Parses the flags of a command without --config; returns the positional arguments.

    Raises:
      ConfigError: a flag is unknown or has a wrong value.

    >>> parse(["simjax port", "net.pkl"])
    ['simjax port', 'net.pkl']
    """
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise ConfigError(f"{error}") from error


def parse_source(argv: list[str]) -> list[str]:
    """Parses the flags of a command that needs --source.

    Raises:
      ConfigError: a flag is wrong, --source is missing, or there are positional arguments.
    """
    rest = parse(argv)
    if rest[1:] or not flags.FLAGS["source"].value:
        raise ConfigError(f"expected --source=..., got {' '.join(rest[1:]) or 'nothing'}.")
    return rest


def require_used(kind: str, uses: Mapping[str, Collection[str]], hint: str = "") -> None:
    """Rejects flags that have no effect on this kind of source.

    Args:
      kind: kind of source, as in the error message, e.g. "a run".
      uses: flag name -> the kinds of source on which it has an effect.
      hint: remedy appended to the error message.

    Raises:
      ConfigError: naming these flags, the kinds of source they are for, and the flags that apply.
    """
    idle = {name: kinds for name, kinds in uses.items() if kind not in kinds and was_given(name)}
    if idle:
        named = "; ".join(f"--{name} is for {' or '.join(kinds)}" for name, kinds in idle.items())
        useful = ", ".join(f"--{name}" for name, kinds in uses.items() if kind in kinds)
        raise ConfigError(
            f"the source is {kind}: {named}. Flags that apply: {useful}.{hint and ' '}{hint}"
        )


def was_given(name: str) -> bool:
    """Whether a flag is on the command line."""
    return bool(flags.FLAGS[name].present)


def require_positive(*names: str) -> None:
    """Makes these flags reject values that are not positive and finite."""
    for name in names:
        flags.register_validator(name, values.is_positive, "expected a positive number.")


def require_some(*names: str) -> None:
    """Makes these flags reject empty lists."""
    for name in names:
        flags.register_validator(name, lambda value: value != [], "expected at least one name.")


def spelled(command: str, without: Collection[str]) -> str:
    """The current command line without some flags, for records of a result.

    >>> from unittest import mock
    >>> with mock.patch.object(sys, "argv", ["x", "--steps=2", "--out", "a.json"]):
    ...     spelled("aot", without=["out"])
    'python -m simjax aot --steps=2'
    """
    kept, skip = [], False
    for argument in sys.argv[1:]:
        name, equals, _ = argument.lstrip("-").partition("=")
        is_dropped = argument.startswith("-") and name in without
        if not is_dropped and not skip:
            kept.append(argument)
        skip = is_dropped and not equals  # --out FILE
    return " ".join([f"python -m simjax {command}", *kept])


def config_name() -> str:
    """Name of --config: "cifar10", or "cifar10_sid" for configs/cifar10.py:sid."""
    filename, _, method = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = os.path.splitext(os.path.basename(filename))[0]
    return f"{name}_{method}" if method else name


def print_help(text: str) -> None:
    """Prints a help text; a closed pipe (`| head`) is no error.

    >>> print_help("simjax NAME [--FLAG=VALUE ...]")
    simjax NAME [--FLAG=VALUE ...]
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:  # Python flushes stdout again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _given(argv: list[str], name: str) -> str | None:
    """The value of a flag, spelled --NAME=VALUE or --NAME VALUE."""
    for argument, following in itertools.zip_longest(argv[1:], argv[2:]):
        found = re.fullmatch(f"--?{name}(=(?P<value>.*))?", argument, re.DOTALL)
        if found:
            return following if found["value"] is None else found["value"]
    return None


def _exit_with_help(argv: list[str], module: str) -> None:
    """Prints help and exits with status 0 if a flag requests it."""
    for argument in argv[1:]:
        is_short = HELP.get(argument.lstrip("-")) if argument.startswith("-") else None
        if is_short is not None:
            print_help(_help(module, argv[0]) if is_short else flags.FLAGS.get_help())
            sys.exit(0)


def _help(module: str, program: str) -> str:
    """Help of a command: description, flags and examples."""
    text, _, examples = (sys.modules[module].__doc__ or "").strip().partition(EXAMPLES)
    own = program if module == "__main__" else module  # absl's name of the defining module
    found = flags.FLAGS.get_key_flags_for_module(own)
    entries = "\n".join(map(_entry, sorted(found, key=lambda flag: flag.name != "config")))
    return f"{text}\n\nFlags (--helpfull: those of all libraries):\n{entries}{EXAMPLES}{examples}"


def _entry(flag: flags.Flag) -> str:
    """Help of one flag, wrapped."""
    notes = [flag.parser.syntactic_help] if flag.parser.syntactic_help else []
    if flag.default not in (None, "", []):
        notes.append(f"default {flag.default_as_str}")
    name = f"[no]{flag.name}" if flag.boolean else flag.name
    text = f"--{name}: {' '.join(flag.help.split())}" + (f" ({'; '.join(notes)})" if notes else "")
    indents = {"initial_indent": "  ", "subsequent_indent": "      "}
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False, **indents)


def _refusal_inside(error: BaseException | None) -> ConfigError | None:
    """ConfigError raised inside the config file, which the flag library wraps."""
    found = None
    while error is not None:
        found = error if isinstance(error, ConfigError) else found
        error = error.__cause__ or error.__context__
    return found
