"""python -m simjax.main --config=configs/digits.py [--workdir=RUN] [--config.FIELD=VALUE ...]"""

import difflib
import os
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from simjax import config as c

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; set its fields after it.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default runs/NAME of the config.")


def main() -> None:
    """Parses flags, runs, and turns a user's mistake into one message and exit status 1."""
    try:
        app.run(_run, flags_parser=_parse_flags)
    except c.ConfigError as error:
        sys.exit(f"simjax: {error}")


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # libraries speak up only when something is wrong
    from simjax import run  # imports JAX: only once the flags are known to be good

    config = _CONFIG.value
    c.require_known("mode", config.mode, run.MODES)
    run.MODES[config.mode](config, _WORKDIR.value or _default_workdir())


def _parse_flags(argv: list[str]) -> list[str]:
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
        if isinstance(_CONFIG.value, c.Config) and not rest[1:]:
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


def _refusal_inside(error: BaseException | None) -> c.ConfigError | None:
    """The config file's own ConfigError, which the flag library wraps together with its trace."""
    found = None
    while error is not None:
        found = error if isinstance(error, c.ConfigError) else found
        error = error.__cause__ or error.__context__
    return found


def _default_workdir() -> str:
    filename, _, method = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = os.path.splitext(os.path.basename(filename))[0]
    return os.path.join("runs", f"{name}_{method}" if method else name)


if __name__ == "__main__":
    main()
